"""The API server, as JSON documents and paths. Nothing else in serin speaks to it."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode

import orjson
import urllib3

from serin.errors import TryAgain, UserError
from serin.kube.connection import POD_ACCOUNT, Connection, context, from_kubeconfig, in_pod

Json = dict[str, Any]
TIMEOUT_S: Final = (3.0, 10.0)
"""To connect, and to answer."""
WATCH_S: Final = 30
"""A watch is begun anew this often, so that one whose other end is gone does not stay unnoticed."""
RETRY_S: Final = 1.0
TELL_AGAIN_S: Final = 60.0
MERGE_PATCH: Final = "application/merge-patch+json"
ACCOUNT: Final = Path("/var/run/secrets/serin.dev/account")
"""Where the token of another ServiceAccount is mounted that a pod is to use in place of its own: pipeline steps all
run as the same one, and only one of them is to ask for rollouts."""
_log = logging.getLogger("serin.api")


class Conflict(TryAgain):
    """The object is not any more what it was when it was read, or exists already."""


class Unavailable(TryAgain):
    """The API server does not answer, or asks to be left alone for a while. It is in the log already."""


class Gone(TryAgain):
    """The version a watch was to begin at is too old: list again."""


def default_namespace(name: str | None = None) -> str:
    """Of the current kubeconfig, or of one of its contexts; without a kubeconfig that of the pod this runs in."""
    try:
        namespace: str = context(name).get("namespace", "default")
    except UserError:
        if name is None and (POD_ACCOUNT / "namespace").exists():
            return (POD_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        raise
    return namespace


class NotFound(UserError):
    """There is no such object, or no such kind of objects."""


class Forbidden(UserError):
    """Whoever asks has not the right to."""


class Api:
    """Raises `TryAgain` for what passes, `UserError` with the server's sentence for what does not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told_s = -math.inf
        self.failures: Counter[str] = Counter()
        """Requests without a good answer, by HTTP status or kind of error."""

    @classmethod
    def connect(cls, name: str | None = None) -> Self:
        """To the cluster this runs in, else to that of the current kubeconfig; or to that of one of its contexts."""
        account = ACCOUNT if (ACCOUNT / "token").exists() else POD_ACCOUNT
        here = in_pod(account) if name is None else None
        return cls(here if here is not None else from_kubeconfig(name))

    def get(self, path: str) -> Json | None:
        """None when there is no such object."""
        try:
            return self._request("GET", path)
        except NotFound:
            return None

    def text(self, path: str) -> str | None:
        """What is not JSON, such as what a pod says through the API server's proxy; None when there is nothing."""
        try:
            return self._call("GET", path, query={}).data.decode()
        except NotFound:
            return None

    def list(self, path: str, labels: str = "") -> Json:
        return self._request("GET", path, query={"labelSelector": labels} if labels else {})

    def create(self, path: str, document: Json) -> Json:
        return self._request("POST", path, document)

    def patch(self, path: str, document: Json) -> Json:
        """A JSON merge patch; with `metadata.resourceVersion` in it, only of that version."""
        return self._request("PATCH", path, document, content=MERGE_PATCH)

    def replace(self, path: str, document: Json) -> Json:
        return self._request("PUT", path, document)

    def delete(self, path: str, resource_version: str | None = None) -> None:
        """With a version, only of that version."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if resource_version is not None:
            body["preconditions"] = {"resourceVersion": resource_version}
        try:
            self._request("DELETE", path, body)
        except NotFound:
            return

    def watch(self, path: str, resource_version: str, labels: str = "") -> Iterator[Json]:
        """Events from there on, bookmarks among them, until the server ends the stream. Raises `Gone` when it is too
        long ago."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": str(WATCH_S)}
        query |= {"allowWatchBookmarks": "true"} | ({"labelSelector": labels} if labels else {})
        stream = self._call("GET", path, query=query, timeout_s=(TIMEOUT_S[0], WATCH_S + TIMEOUT_S[1]), stream=True)
        try:
            rest = b""
            for chunk in stream.stream(2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        raise Gone(f"watch of {path}: {event['object'].get('message')}", delay_s=RETRY_S)
                    yield event
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise TryAgain(f"watch of {path} was interrupted", delay_s=RETRY_S) from error
        finally:
            stream.close()  # what is left in it would be read by the next request

    def _request(
        self, method: str, path: str, body: Json | None = None, *, content: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        told = self._call(method, path, body, content=content, query=query or {}).data
        try:
            answer: Json = orjson.loads(told)
        except ValueError as error:
            raise self._unavailable(f"{method} {path}: the answer is not JSON", RETRY_S) from error
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        content: str = "application/json",
        query: Mapping[str, str],
        timeout_s: tuple[float, float] = TIMEOUT_S,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "Content-Type": content, "User-Agent": "serin"}
        token = self._connection.token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            answer = self._connection.http.request(
                method,
                f"{self._connection.host}{path}{'?' if query else ''}{urlencode(query)}",
                body=orjson.dumps(body) if body is not None else None,
                headers=headers,
                timeout=urllib3.Timeout(connect=timeout_s[0], read=timeout_s[1]),
                retries=False,
                preload_content=not stream,
            )
            if answer.status < 300:
                return answer
            told = answer.data
        except urllib3.exceptions.HTTPError as error:
            self._failed(type(error).__name__)
            raise self._unavailable(f"the API server does not answer ({error})", RETRY_S) from error
        self._failed(str(answer.status))
        refused = _refusal(f"{method} {path}", answer.status, told)
        if refused is not None:
            raise refused
        wait_s = answer.headers.get("Retry-After", "")
        raise self._unavailable(
            f"{method} {path}: {answer.status} {_message(told)}", float(wait_s) if wait_s.isdigit() else RETRY_S
        )

    def _failed(self, kind: str) -> None:
        self.failures[kind] += 1

    def _unavailable(self, told: str, delay_s: float) -> Unavailable:
        """When nothing can be reached, everything fails: that is said once a minute."""
        if time.monotonic() - self._told_s > TELL_AGAIN_S:
            self._told_s = time.monotonic()
            _log.warning("%s; trying again", told)
        return Unavailable(told, delay_s=delay_s)


def _message(told: bytes) -> str:
    try:
        return str(json.loads(told)["message"])
    except (TypeError, ValueError, KeyError):
        return told.decode(errors="replace")[:200]


def _refusal(request: str, status: int, told: bytes) -> Exception | None:
    """None when trying the same again may help."""
    message = f"{request}: {_message(told)}"
    if status == 404:
        return NotFound(message)
    if status == 409:
        return Conflict(message, delay_s=0)
    if status == 410:
        return Gone(message, delay_s=RETRY_S)
    if status == 403:
        return Forbidden(message)
    if status in (400, 401, 405, 413, 415, 422):
        return UserError(message)
    return None
