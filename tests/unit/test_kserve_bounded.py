"""HTTP to pods that flood, drip and hang."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import urllib3

from serin.platforms.kserve.bounded import Http, TooLarge

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def served(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers each request on each connection with `answer`."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while connection.recv(65536):
                answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def drips(text: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return answer


def test_an_answer_and_the_next_on_the_same_connection() -> None:
    asked = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.getpeername())
        connection.sendall(HEAD + b"Content-Length: 5\r\n\r\nhello")

    with served(answer) as url:
        http = Http(1)
        assert [(each.status, each.body) for each in (http.request("GET", url, timeout_s=5) for _ in range(2))] == [
            (200, b"hello")
        ] * 2
    assert len(set(asked)) == 1


@pytest.mark.parametrize(
    "text", [HEAD + b"X: " + b"x" * 200, HEAD + b"Content-Length: 200\r\n\r\n" + b"x" * 200], ids=["head", "body"]
)
def test_what_drips_ends_when_the_time_for_all_of_it_is_over(text: bytes) -> None:
    with served(drips(text)) as url:
        start = time.monotonic()
        with pytest.raises(urllib3.exceptions.HTTPError):
            Http(1).request("GET", url, timeout_s=0.5)
        assert time.monotonic() - start < 4


def test_what_floods_is_read_up_to_a_size() -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Encoding: gzip\r\n\r\n")
        for _ in range(512):
            connection.sendall(b"x" * 2**20)
            sent.append(1)

    with served(flood) as url, pytest.raises(TooLarge):
        Http(1).request("GET", url, timeout_s=10)
    assert len(sent) < 64
