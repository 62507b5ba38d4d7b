"""The API server as it can be: broken watches, too many requests, versions that are gone, nobody there at all."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3

from serin.controller.controller import service_of
from serin.errors import UserError
from serin.kube import informer as module
from serin.kube.api import Api, Conflict, Forbidden, Gone, NotFound, Unavailable
from serin.kube.connection import Connection
from serin.kube.informer import Cache

PATH = "/apis/serin.dev/v1alpha1/modelrollouts"
Answer = tuple[int, dict[str, str], bytes]


def document(name: str, version: int, uid: str = "1", generation: int = 1) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "serving", "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata | {"generation": generation, "creationTimestamp": "2026-11-22T09:30:00Z"}}


def listed(*documents: dict[str, Any], version: int) -> Answer:
    return 200, {}, json.dumps({"items": documents, "metadata": {"resourceVersion": str(version)}}).encode()


def events(*found: tuple[str, dict[str, Any]]) -> Answer:
    return 200, {}, b"".join(json.dumps({"type": kind, "object": each}).encode() + b"\n" for kind, each in found)


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"kind": "Status", "message": message}).encode()


class Server:
    """Gives its answers one after another, then ends the test's watch; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        self.drained = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if not server.answers:
                    server.drained.set()
                status, headers, body = server.answers.pop(0) if server.answers else refused(503)
                cut = headers.pop("Cut", None) is not None
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body) + cut), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = cut

            do_PATCH = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """A test reads what was asked from `asked`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.api = Api(Connection(address, urllib3.PoolManager(), lambda: "a token"))

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Gone),
        (422, UserError),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_a_refusal_is_yours_to_fix_or_to_be_tried_again(server: Server, status: int, error: type[Exception]) -> None:
    server.answers = [refused(status, "it was like this")]
    with pytest.raises(error, match="it was like this") as raised:
        server.api.patch(PATH, {})
    assert type(raised.value) is error
    assert server.api.failures == {str(status): 1}


def test_who_is_asked_to_wait_waits(server: Server) -> None:
    server.answers = [refused(429, **{"Retry-After": "7"})]
    with pytest.raises(Unavailable) as raised:
        server.api.list(PATH)
    assert raised.value.delay_s == 7


def test_a_server_that_is_away_is_told_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.stop()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            with pytest.raises(Unavailable, match="does not answer"):
                server.api.list(PATH)
    (told,) = caplog.messages
    assert "refused" in told
    assert server.api.failures == {"NewConnectionError": 5}


def follow(server: Server, monkeypatch: pytest.MonkeyPatch) -> tuple[Cache, list[module.Key]]:
    """A cache that followed the server until its answers were used up, and the groups that changed."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    cache = Cache(server.api, PATH, matters=lambda before, after: before["metadata"] != after["metadata"])
    changed: list[module.Key] = []
    cache.changed = changed.append
    stop = threading.Event()
    thread = threading.Thread(target=cache.follow, args=(stop,), daemon=True)
    thread.start()
    assert server.drained.wait(20)
    stop.set()
    thread.join(20)
    return cache, changed


def names(cache: Cache) -> dict[str, str]:
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in cache.documents()}


def test_a_watch_goes_on_where_it_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [
        listed(document("a", 3), version=5),
        events(("MODIFIED", document("a", 6)), ("ADDED", document("b", 7))),
        events(("BOOKMARK", {"metadata": {"resourceVersion": "90"}})),
        events(("DELETED", document("a", 91))),
    ]
    cache, changed = follow(server, monkeypatch)
    assert names(cache) == {"b": "7"}
    assert changed == [("serving", name) for name in "aaba"]
    assert [asked.split("resourceVersion=")[1].split("&")[0] for asked in server.asked[1:5]] == ["5", "7", "90", "91"]


@pytest.mark.parametrize(
    "breaks",
    [
        events(("ERROR", {"code": 410, "message": "too old resource version"})),
        refused(410, "too old resource version"),
        refused(429),
        refused(500),
        (200, {"Cut": "yes"}, json.dumps({"type": "ADDED", "object": document("c", 7)}).encode()[:-9]),
    ],
    ids=["gone", "gone at once", "too many requests", "broken server", "cut off"],
)
def test_whatever_breaks_a_watch_everything_is_read_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, breaks: Answer
) -> None:
    server.answers = [
        listed(document("a", 3), document("b", 4), version=5),
        breaks,
        refused(503),
        listed(document("b", 8), version=9),
    ]
    cache, changed = follow(server, monkeypatch)
    assert names(cache) == {"b": "8"}
    assert changed.count(("serving", "a")) == 2


def test_what_we_wrote_ourselves_is_no_news(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [listed(document("a", 3), version=5)]
    cache, changed = follow(server, monkeypatch)
    cache.put(document("a", 9))
    assert not cache._take("MODIFIED", document("a", 9))
    assert not cache._take("MODIFIED", document("a", 7)), "older than what is known"
    assert names(cache) == {"a": "9"}
    assert changed == [("serving", "a")]


def test_a_namesake_outlives_the_end_of_the_one_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [
        listed(version=5),
        events(("ADDED", document("a", 8, uid="2")), ("DELETED", document("a", 9, uid="1"))),
    ]
    cache, _ = follow(server, monkeypatch)
    assert names(cache) == {"a": "8"}


def test_an_answer_that_comes_after_the_end_of_its_object_revives_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [listed(document("a", 3), document("b", 4), version=5), events(("DELETED", document("a", 9)))]
    cache, _ = follow(server, monkeypatch)
    cache.put(document("a", 8))
    assert names(cache) == {"b": "4"}
    cache.put(document("a", 12, uid="2"))
    assert names(cache) == {"a": "12", "b": "4"}


def test_a_watch_that_ends_at_once_is_not_begun_again_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(0)

    server.answers = [listed(version=5), events(), events(), events(("ADDED", document("a", 6)))]
    monkeypatch.setattr(module, "RETRY_S", 3.0)
    stop = Stop()
    thread = threading.Thread(target=Cache(server.api, PATH).follow, args=(stop,), daemon=True)
    thread.start()
    assert server.drained.wait(20)
    stop.set()
    thread.join(20)
    assert waits[:3] == [3.0, 3.0, 3.0]


def test_an_answer_that_is_no_json_is_tried_again(server: Server) -> None:
    server.answers = [(200, {}, b"<html>a proxy's page</html>")]
    with pytest.raises(Unavailable, match="is not JSON"):
        server.api.list(PATH)


def test_what_comes_to_belong_to_something_else_leaves_what_it_belonged_to(server: Server) -> None:
    """As a ModelRollout whose service is corrected before it begins."""

    def of(service: str, version: int) -> dict[str, Any]:
        return {**document("a", version), "spec": {"service": service}}

    cache = Cache(server.api, PATH, group=service_of)
    cache.put(of("chrn", 3))
    cache.put(of("churn", 4))
    assert cache.groups() == [("serving", "churn")]
    cache.put(of("chrn", 3))
    assert cache.groups() == [("serving", "churn")]
