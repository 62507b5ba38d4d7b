"""All ModelRollouts, kept current by a watch."""

import logging
import threading
from typing import Any

from serin.errors import TryAgain, UserError
from serin.platforms.kserve import objects
from serin.platforms.kserve.api import RETRY_S, Api

_log = logging.getLogger("serin.controller")
Key = tuple[str, str]
"""Namespace and name."""


def key(document: dict[str, Any]) -> Key:
    return document["metadata"]["namespace"], document["metadata"]["name"]


class Cache:
    """What the watch shows may be late, never torn: whoever writes from it sends the version along, and the API
    server refuses what is out of date."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._documents: dict[Key, dict[str, Any]] = {}
        self.changed = threading.Event()

    def documents(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._lock:
            found = list(self._documents.values())
        return sorted(found, key=lambda each: (each["metadata"]["creationTimestamp"], *key(each)))

    def put(self, document: dict[str, Any]) -> None:
        """What the API server answered to a write: newer than what the watch has shown so far."""
        with self._lock:
            self._documents[key(document)] = document

    def refresh(self) -> str:
        """Read everything; returns the version to watch from."""
        listed = self._api.list(objects.rollouts())
        with self._lock:
            self._documents = {key(each): each for each in listed["items"]}
        self.changed.set()
        version: str = listed["metadata"]["resourceVersion"]
        return version

    def follow(self, stop: threading.Event) -> None:
        """Until `stop`. Whatever breaks the watch, everything is read again."""
        while not stop.is_set():
            try:
                version = self.refresh()
                for event in self._api.watch(objects.rollouts(), version):
                    self._take(event)
                    if stop.is_set():
                        return
            except (TryAgain, UserError) as error:
                _log.warning("%s; reading everything again", error)
                stop.wait(RETRY_S)

    def _take(self, event: dict[str, Any]) -> None:
        document = event["object"]
        with self._lock:
            before = self._documents.get(key(document))
            if event["type"] == "DELETED":
                if before is not None and before["metadata"]["uid"] == document["metadata"]["uid"]:
                    del self._documents[key(document)]
            elif before is None or _version(before) < _version(document):
                self._documents[key(document)] = document
            else:
                return
        self.changed.set()


def _version(document: dict[str, Any]) -> int:
    # Kubernetes 1.35 makes the order of versions official; etcd's have always been rising integers
    return int(document["metadata"]["resourceVersion"])
