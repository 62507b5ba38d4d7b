"""HTTP to pods of others, who may flood, drip or hang: at most so many bytes, in so many seconds altogether.

urllib3's read timeout is for one piece of an answer: who sends a byte a second holds a thread for ever.
"""

import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_S: Final = 1.0
MOST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


class TooLarge(Exception):
    """An answer has more bytes than anybody asked for."""


class _Socket(socket.socket):
    end_s = math.inf

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0) -> int:
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the time for the whole answer is over")
        if left_s < math.inf:
            self.settimeout(left_s)
        return super().recv_into(buffer, nbytes, flags)


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        timeout_s = made.gettimeout()
        bounded = _Socket(made.family, made.type, made.proto, fileno=made.detach())
        bounded.settimeout(timeout_s)
        return bounded

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3's own
        if isinstance(self.sock, _Socket) and isinstance(self.timeout, float | int):
            self.sock.end_s = time.monotonic() + self.timeout
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class Http:
    """Keeps connections; may be used by several threads."""

    def __init__(self, connections: int) -> None:
        self._http = urllib3.PoolManager(retries=False, maxsize=connections)
        self._http.pool_classes_by_scheme = {"http": _Pool}

    def request(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> Answer:
        """`timeout_s` is for the answer from its first to its last byte. Raises `TooLarge`, or
        `urllib3.exceptions.HTTPError` when no answer came in time."""
        response = self._http.request(
            method,
            url,
            headers=headers,
            body=body,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=timeout_s),
            preload_content=False,
            decode_content=False,
        )
        read = response.read(most_bytes + 1)
        if len(read) > most_bytes:
            response.close()
            raise TooLarge(f"more than {most_bytes:,} bytes")
        return Answer(response.status, read)
