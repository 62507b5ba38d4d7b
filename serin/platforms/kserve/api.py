"""The API server, as JSON documents and paths. Nothing else in serin speaks to it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]
from kubernetes.config.incluster_config import InClusterConfigLoader  # type: ignore[import-untyped]

from serin.errors import TryAgain, UserError

Json = dict[str, Any]
TIMEOUT_S: Final = (3.0, 10.0)
"""To connect, and to answer."""
WATCH_S: Final = 240
RETRY_S: Final = 1.0
MERGE_PATCH: Final = "application/merge-patch+json"
POD_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ACCOUNT: Final = Path("/var/run/secrets/serin.dev/account")
"""Where the token of another ServiceAccount is mounted that a pod is to use in place of its own: pipeline steps all
run as the same one, and only one of them is to ask for rollouts."""


class Conflict(TryAgain):
    """The object is not any more what it was when it was read, or exists already."""


class Gone(TryAgain):
    """The version a watch was to begin at is too old: list again."""


def _configure(context: str | None) -> None:
    if context is None:
        with suppress(ConfigException):
            account = ACCOUNT if (ACCOUNT / "token").exists() else POD_ACCOUNT
            InClusterConfigLoader(str(account / "token"), str(account / "ca.crt")).load_and_set()
            return
    config.load_kube_config(context=context)


def default_namespace(context: str | None = None) -> str:
    """Of the current kubeconfig, or of one of its contexts; without a kubeconfig that of the pod this runs in."""
    try:
        contexts, active = config.list_kube_config_contexts()
    except ConfigException as error:
        if context is None and (POD_ACCOUNT / "namespace").exists():
            return (POD_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        raise UserError(f"There is no cluster to talk to ({error}); set KUBECONFIG.") from error
    chosen = active if context is None else next((each for each in contexts if each["name"] == context), None)
    if chosen is None:
        known = ", ".join(each["name"] for each in contexts)
        raise UserError(f"There is no context {context} in the kubeconfig; known: {known}.")
    namespace: str = chosen["context"].get("namespace", "default")
    return namespace


class NotFound(UserError):
    """There is no such object, or no such kind of objects."""


class Forbidden(UserError):
    """Whoever asks has not the right to."""


class Api:
    """Raises `TryAgain` for what passes, `UserError` with the server's sentence for what does not."""

    def __init__(self, connection: client.ApiClient) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, context: str | None = None) -> "Api":
        """To the cluster this runs in, else to that of the current kubeconfig; or to that of one of its contexts."""
        try:
            _configure(context)
        except ConfigException as error:
            raise UserError(f"There is no cluster to talk to ({error}); set KUBECONFIG.") from error
        return cls(client.ApiClient())

    def get(self, path: str) -> Json | None:
        """None when there is no such object."""
        try:
            return self._request("GET", path)
        except NotFound:
            return None

    def text(self, path: str) -> str | None:
        """What is not JSON, such as what a pod says through the API server's proxy; None when there is no such thing."""
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

    def delete(self, path: str, resource_version: str) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": resource_version}}
        try:
            self._request("DELETE", path, body)
        except NotFound:
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


def _error(method: str, path: str, error: client.ApiException) -> Exception:
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        message = error.reason
    told = f"{method} {path}: {message}"
    if error.status == 404:
        return NotFound(told)
    if error.status == 409:
        return Conflict(told, delay_s=0)
    if error.status == 410:
        return Gone(told, delay_s=RETRY_S)
    if error.status == 403:
        return Forbidden(told)
    if error.status in (400, 401, 405, 415, 422):
        return UserError(told)
    return TryAgain(told, delay_s=RETRY_S)
