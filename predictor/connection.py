"""HTTP connections, bounded in number and in how long they wait for their clients."""

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from predictor.app import CROWDED
from predictor.limits import Limits


class Connection(HttpToolsProtocol):
    """One that is above `limits.connections` takes the place of the one that has waited longest for its client. Where
    none waits, all are being served: it is let in for what is always answered."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._clients_turn_s = self.loop.time()
        self._in_head = False
        self._heeded = False
        self._unheeded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        super().connection_made(transport)
        limits, count = self._limits, len(self.connections)
        if count <= limits.connections:
            return
        others = cast("set[Connection]", self.connections) - {self}
        longest = min((each for each in others if each.waits()), key=lambda each: each._clients_turn_s, default=None)
        full = count > limits.connections + limits.reserved
        if longest and (full or self.loop.time() - longest._clients_turn_s > limits.spared_s):
            longest.drop()
        elif full:
            self.drop()

    def drop(self) -> None:
        self.connections.discard(self)
        self.transport.abort()

    def waits(self) -> bool:
        """Whether it is its client's turn: to read an answer, or to send (more of) a request."""
        if self.transport.get_write_buffer_size() > 0:
            return True
        return not self.pipeline and (self.cycle is None or self.cycle.response_complete or self.cycle.more_body)

    def overdue(self, now_s: float) -> bool:
        """Whether its client has taken too long; bodies that are being read have a deadline of their own."""
        limits = self._limits
        if self.transport.get_write_buffer_size() > 0:
            limit_s = limits.answer_s
        elif self._in_head:
            limit_s = limits.head_s
        elif self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body):
            limit_s = limits.idle_s
        elif self.cycle.response_complete:
            limit_s = limits.body_s
        else:
            return False
        return now_s - self._clients_turn_s > limit_s

    def end(self) -> None:
        """Of a connection that is overdue."""
        if self._in_head and (self.cycle is None or self.cycle.response_complete):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.drop()

    def data_received(self, data: bytes) -> None:
        """The parser keeps a head (and a trailer, and what it skips) that has no end: not beyond the limit."""
        self._heeded = False
        super().data_received(data)
        self._unheeded_bytes = 0 if self._heeded else self._unheeded_bytes + len(data)
        if self._unheeded_bytes > self._limits.head_bytes and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._heeded = True
        if len(self.pipeline) >= self._limits.pipelined:
            raise ValueError("too many requests in the pipeline")  # becomes a 400
        super().on_message_begin()
        self._clients_turn_s = self.loop.time()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._heeded = True
        self._in_head = False
        if len(self.tasks) >= self._limits.connections:
            self.scope[CROWDED] = True  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._heeded = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._clients_turn_s = self.loop.time()
        super().on_response_complete()

    def _refuse(self, status: HTTPStatus) -> None:
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self.transport.write(head.encode())
        self.transport.close()


def end_overdue(connections: Iterable[Connection], now_s: float, limits: Limits) -> None:
    """Also those with the largest unread answers, where all of them together are too large."""
    remaining = []
    for connection in list(connections):
        if connection.overdue(now_s):
            connection.end()
        else:
            remaining.append((connection.transport.get_write_buffer_size(), connection))
    unread_bytes = sum(size for size, _ in remaining)
    for size, connection in sorted(remaining, key=lambda each: -each[0]):
        if unread_bytes <= limits.bytes_in_flight:
            break
        connection.drop()
        unread_bytes -= size
