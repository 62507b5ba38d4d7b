"""Objects of one kind, kept current by a watch."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import orjson

from serin.errors import TryAgain, UserError
from serin.kube.api import RETRY_S, Api

Document = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name."""
LONGEST_RETRY_S: Final = 10.0
_log = logging.getLogger("serin.cache")


def key(document: Document) -> Key:
    return document["metadata"]["namespace"], document["metadata"]["name"]


class Cache:
    """What the watch shows may be late, never torn: whoever writes from it sends the version along, and the API
    server refuses what is out of date.

    `group` says what a document belongs to. `changed`, which may be set, is called with the group of every document
    that came, went, or changed in a way that `matters`, unless we changed it. `keep` makes a document smaller before
    it is kept. `filled` is set once everything has been read.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        *,
        labels: str = "",
        group: Callable[[Document], Key] = key,
        keep: Callable[[Document], Document] = lambda document: document,
        matters: Callable[[Document, Document], bool] = lambda before, after: True,
    ) -> None:
        self._api, self._path, self._labels = api, path, labels
        self._group, self._keep, self._matters = group, keep, matters
        self._lock = threading.Lock()
        self._groups: dict[Key, dict[Key, bytes]] = {}
        self._group_of: dict[Key, Key] = {}
        self._upto = 0
        """The version up to which the watch has shown everything."""
        self.changed: Callable[[Key], object] = lambda _: None
        self.filled = threading.Event()

    def groups(self) -> list[Key]:
        with self._lock:
            return list(self._groups)

    def of(self, group: Key) -> list[Document]:
        """Oldest first."""
        with self._lock:
            kept = list(self._groups.get(group, {}).values())
        found: list[Document] = [orjson.loads(each) for each in kept]
        return sorted(found, key=lambda each: (each["metadata"]["creationTimestamp"], *key(each)))

    def documents(self) -> list[Document]:
        with self._lock:
            kept = [each for members in self._groups.values() for each in members.values()]
        return [orjson.loads(each) for each in kept]

    def put(self, document: Document) -> None:
        """What the API server answered, unless the watch has shown something newer already, or its end."""
        self._take("MODIFIED", document)

    def refresh(self) -> str:
        """Read everything; returns the version to watch from."""
        listed = self._api.list(self._path, self._labels)
        groups: dict[Key, dict[Key, bytes]] = {}
        for each in listed["items"]:
            groups.setdefault(self._group(each), {})[key(each)] = self._kept(each)
        version: str = listed["metadata"]["resourceVersion"]
        with self._lock:
            touched = self._groups.keys() | groups.keys()
            self._groups, self._upto = groups, int(version)
            self._group_of = {name: group for group, members in groups.items() for name in members}
        self.filled.set()
        for group in touched:
            self.changed(group)
        return version

    def follow(self, stop: threading.Event) -> None:
        """Until `stop`. Whatever breaks the watch, everything is read again."""
        wait_s = RETRY_S
        while not stop.is_set():
            try:
                version = self.refresh()
                while not stop.is_set():
                    begun = version
                    for event in self._api.watch(self._path, version, self._labels):
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK" and self._take(event["type"], event["object"]):
                            self.changed(self._group(event["object"]))
                        self._upto = int(version)
                    wait_s = RETRY_S
                    if version == begun:
                        stop.wait(RETRY_S)  # whoever ends watches at once must not be asked without a pause
            except (TryAgain, UserError) as error:
                _log.log(
                    logging.INFO if isinstance(error, TryAgain) else logging.ERROR, "%s; reading it again", error
                )
                stop.wait(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    def _kept(self, document: Document) -> bytes:
        # as JSON, a fifth of the memory; copied, as orjson's own buffers are five times as large as what is in them
        return bytes(memoryview(orjson.dumps(self._keep(document))))

    def _take(self, event: str, document: Document) -> bool:
        """Whether something is there now that was not and that matters."""
        group, name = self._group(document), key(document)
        with self._lock:
            was = self._group_of.get(name)
            before: Document | None = orjson.loads(self._groups[was][name]) if was is not None else None
            if event == "DELETED":
                news = before is not None and before["metadata"]["uid"] == document["metadata"]["uid"]
            else:
                news = (self._upto if before is None else _version(before)) < _version(document)
            if news and was is not None:
                del self._groups[was][name], self._group_of[name]
                if not self._groups[was]:
                    del self._groups[was]
            if news and event != "DELETED":
                self._groups.setdefault(group, {})[name] = self._kept(document)
                self._group_of[name] = group
        return news and (before is None or event == "DELETED" or self._matters(before, document))


def _version(document: Document) -> int:
    # Kubernetes 1.35 makes the order of versions official; etcd's have always been rising integers
    return int(document["metadata"]["resourceVersion"])
