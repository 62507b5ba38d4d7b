"""The API server, as JSON documents and paths. Nothing else in serin speaks to it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import urllib3
from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]

from serin.errors import TryAgain, UserError

Json = dict[str, Any]
TIMEOUT_S: Final = (3.0, 10.0)
"""To connect, and to answer."""
WATCH_S: Final = 240
RETRY_S: Final = 1.0
MERGE_PATCH: Final = "application/merge-patch+json"


class Conflict(TryAgain):
    """The object is not any more what it was when it was read, or exists already."""


class Gone(TryAgain):
    """The version a watch was to begin at is too old: list again."""


class Api:
    """Raises `TryAgain` for what passes, `UserError` with the server's sentence for what does not."""

    def __init__(self, connection: client.ApiClient) -> None:
        self._connection = connection

    @classmethod
    def connect(cls) -> "Api":
        """To the cluster this runs in, else to that of the current kubeconfig."""
        try:
            config.load_incluster_config()
        except ConfigException:
            try:
                config.load_kube_config()
            except ConfigException as error:
                raise UserError(f"There is no cluster to talk to ({error}); set KUBECONFIG.") from error
        return cls(client.ApiClient())

    def get(self, path: str) -> Json | None:
        """None when there is no such object."""
        try:
            return self._request("GET", path)
        except _NotFound:
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

    def delete(self, path: str, resource_version: str) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": resource_version}}
        try:
            self._request("DELETE", path, body)
        except _NotFound:
            return

    def watch(self, path: str, resource_version: str) -> Iterator[Json]:
        """Events from there on, until the server ends the stream. Raises `Gone` when it is too long ago."""
        query = {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": str(WATCH_S)}
        stream = self._call("GET", path, None, "application/json", query, timeout=(TIMEOUT_S[0], WATCH_S), raw=True)
        try:
            rest = b""
            for chunk in stream.stream(None):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise Gone(f"watch of {path}: {event['object'].get('message')}", delay_s=RETRY_S)
                    yield event
        except urllib3.exceptions.HTTPError as error:
            raise TryAgain(f"watch of {path} broke off", delay_s=RETRY_S) from error
        finally:
            stream.release_conn()

    def _request(
        self, method: str, path: str, body: Json | None = None, *, content: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:  # fmt: skip
        answer: Json = self._call(method, path, body, content, query or {})
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: Json | None,
        content: str,
        query: Mapping[str, str],
        *,
        timeout: tuple[float, float] = TIMEOUT_S,
        raw: bool = False,
    ) -> Any:  # noqa: ANN401 - JSON, or the stream of a watch
        try:
            return self._connection.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content},
                body=body,
                response_type=None if raw else "object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=not raw,
                _request_timeout=timeout,
            )
        except client.ApiException as error:
            raise _error(method, path, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise TryAgain(f"the API server does not answer ({type(error).__name__})", delay_s=RETRY_S) from error


class _NotFound(UserError):
    pass


def _error(method: str, path: str, error: client.ApiException) -> Exception:
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason
    told = f"{method} {path}: {message}"
    if error.status == 404:
        return _NotFound(told)
    if error.status == 409:
        return Conflict(told, delay_s=0)
    if error.status == 410:
        return Gone(told, delay_s=RETRY_S)
    if error.status in (400, 401, 403, 405, 415, 422):
        return UserError(told)
    return TryAgain(told, delay_s=RETRY_S)
