"""An HTTP load generator for one server: closed loop (as fast as `connections` clients get answers) and open loop
(requests leave on schedule, whatever the server does; waiting for a free connection counts as latency)."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import uvloop


@dataclass
class Load:
    """`latencies_s` of the answers with status 200, in order of their end."""

    seconds: float
    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, q: float) -> float:
        return float(np.percentile(self.latencies_s, q)) * 1000


class _Connection(asyncio.Protocol):
    """Sends one request at a time; `answered` gets the status of each answer."""

    def __init__(self) -> None:
        self.waiting: asyncio.Future[int] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes) -> "asyncio.Future[int]":
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        lowered = head.lower()
        start = lowered.find(b"content-length:")
        if start < 0:
            raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
        end = lowered.find(b"\r\n", start)
        length = int(lowered[start + 15 : end if end > 0 else None])
        if len(rest) < length:
            return
        self._buffer = b""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(error or ConnectionError("the server closed the connection"))


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def _connect(port: int, connections: int) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(_Connection, "127.0.0.1", port))[1] for _ in range(connections)]


async def _closed(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    load = Load(seconds)
    end_s = time.perf_counter() + seconds

    async def client(connection: _Connection, offset: int) -> None:
        i = offset
        while (started_s := time.perf_counter()) < end_s:
            status = await connection.send(requests[i % len(requests)])
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies_s.append(time.perf_counter() - started_s)
            i += connections

    opened = await _connect(port, connections)
    await asyncio.gather(*(client(connection, i) for i, connection in enumerate(opened)))
    for connection in opened:
        connection.transport.close()
    return load


async def _open(port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int) -> Load:
    load = Load(seconds)
    idle = deque(await _connect(port, connections))
    opened = list(idle)
    due: deque[tuple[float, bytes]] = deque()
    pending: set[asyncio.Task[None]] = set()

    async def run(connection: _Connection, due_s: float, request: bytes) -> None:
        while True:
            status = await connection.send(request)
            load.statuses[status] = load.statuses.get(status, 0) + 1
            if status == 200:
                load.latencies_s.append(time.perf_counter() - due_s)
            if not due:
                idle.append(connection)
                return
            due_s, request = due.popleft()

    count, start_s = int(rate * seconds), time.perf_counter()
    gaps = np.random.default_rng(7).exponential(1 / rate, count).cumsum() + start_s
    for i, due_s in enumerate(gaps.tolist()):
        if (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        request = requests[i % len(requests)]
        if idle:
            task = asyncio.create_task(run(idle.popleft(), due_s, request))
            pending.add(task)
            task.add_done_callback(pending.discard)
        else:
            due.append((due_s, request))
    await asyncio.wait_for(asyncio.gather(*pending), 60)
    load.seconds = time.perf_counter() - start_s
    for connection in opened:
        connection.transport.close()
    return load


def closed_loop(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    return uvloop.run(_closed(port, requests, connections, seconds))


def open_loop(port: int, requests: Sequence[bytes], *, rate: float, seconds: float, connections: int = 64) -> Load:
    """Poisson arrivals at `rate` per second."""
    return uvloop.run(_open(port, requests, rate, seconds, connections))
