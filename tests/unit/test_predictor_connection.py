"""What clients that do not finish can take of a server: time, connections and bytes, each of them bounded."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from predictor.bodies import SPARED_BYTES, Bodies
from predictor.connection import end_overdue
from predictor.errors import Busy, TooLarge, TooSlow
from predictor.limits import Limits
from predictor.server import http

QUICK = Limits(head_s=0.3, body_s=0.3, idle_s=0.3, answer_s=0.3)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
DEADLINE_S = 10.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Serving:
    """A server of `app`, and connections to it."""

    def __init__(self, server: uvicorn.Server, port: int, limits: Limits) -> None:
        self.server, self.port, self.limits = server, port, limits
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, *sent: bytes) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        for data in sent:
            writer.write(data)
            await writer.drain()
        return reader, writer

    async def held(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.server.server_state.connections) != count:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        self.server.should_exit = self.server.force_exit = True


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has read the body."""
    await Response(scope["path"])(scope, receive, send)


def served(
    try_it: Callable[[Serving], Awaitable[None]], limits: Limits = QUICK, app: Callable[..., Awaitable[None]] = hello
) -> None:
    async def run() -> None:
        server = uvicorn.Server(http(app, limits))
        server.config.port = 0
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        serving = Serving(server, server.servers[0].sockets[0].getsockname()[1], limits)
        sweeping = asyncio.create_task(sweep(serving))
        try:
            async with asyncio.timeout(3 * DEADLINE_S):
                await try_it(serving)
        finally:
            sweeping.cancel()
            await serving.close()
            await running

    asyncio.run(run())


async def sweep(serving: Serving) -> None:
    while True:
        await asyncio.sleep(0.05)
        end_overdue(serving.server.server_state.connections, asyncio.get_running_loop().time(), serving.limits)


async def answer(streams: Streams) -> bytes:
    """Until the server closes; what was answered before a reset counts."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := await streams[0].read(65536):
            received += part
    return received


async def first_line(streams: Streams) -> bytes:
    return (await streams[0].readline()).strip()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (GET[:-2], b"HTTP/1.1 408 Request Timeout"),
        (GET, b"HTTP/1.1 200 OK"),
        (b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf", b"HTTP/1.1 200 OK"),
    ],
    ids=["silent", "half a head", "kept alive", "half a body that nobody reads"],
)
def test_a_client_that_stops_is_disconnected(sent: bytes, expected: bytes) -> None:
    async def try_it(serving: Serving) -> None:
        received = await answer(await serving.connect(sent))
        assert received.partition(b"\r\n")[0] == expected

    served(try_it)


@pytest.mark.parametrize(
    ("start", "drip"),
    [(GET[:-2], b"a: b\r\n"), (b"", b"\r\n"), (b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b"x")],
    ids=["head", "empty lines", "body"],
)
def test_a_client_that_drips_is_disconnected(start: bytes, drip: bytes) -> None:
    async def try_it(serving: Serving) -> None:
        streams = await serving.connect(start)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    streams[1].write(drip)
                    await streams[1].drain()
                    await asyncio.sleep(0.05)

    served(try_it)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 2000),
        (b"GET / HTTP/1.1\r\na: ", b"b" * 10_000),
        (b"GET /", b"b" * 10_000),
        (b"", b"\r\n" * 5000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 2000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"b" * 10_000),
    ],
    ids=["headers", "header", "path", "empty lines", "trailers", "chunk extension"],
)
def test_what_the_parser_keeps_has_an_end(start: bytes, more: bytes) -> None:
    patient = Limits()

    async def try_it(serving: Serving) -> None:
        streams = await serving.connect(start)
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 100 * patient.head_bytes:
                streams[1].write(more)
                await streams[1].drain()
                sent += len(more)
                await asyncio.sleep(0)

    served(try_it, patient)


def test_a_pipeline_has_an_end() -> None:
    async def forever(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def try_it(serving: Serving) -> None:
        assert (await answer(await serving.connect(GET * 1000))).startswith(b"HTTP/1.1 400")

    served(try_it, Limits(), forever)


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"x" * 50_000_000)(scope, receive, send)

    async def try_it(serving: Serving) -> None:
        await serving.connect(GET)
        await serving.held(1)
        await serving.held(0)

    served(try_it, QUICK, large)
    served(try_it, Limits(body_bytes=1_000_000), large)  # in time, but above what all answers may take


def test_the_connection_that_waits_longest_makes_room() -> None:
    async def try_it(serving: Serving) -> None:
        idle = [await serving.connect(GET) for _ in range(2)]
        for streams in idle:
            await first_line(streams)
        half = await serving.connect(GET[:-2])
        await serving.held(3)
        fresh = await serving.connect(GET)
        assert await first_line(fresh) == b"HTTP/1.1 200 OK"
        await answer(idle[0])
        idle[1][1].write(GET)
        half[1].write(b"\r\n")
        assert await first_line(half) == b"HTTP/1.1 200 OK"
        await serving.held(3)

    served(try_it, Limits(connections=3, spared_s=0))


def test_where_all_are_being_served_there_is_a_reserve() -> None:
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if "serin.crowded" in scope:
            await Response("crowded")(scope, receive, send)
        else:
            await release.wait()
            await Response("served")(scope, receive, send)

    async def try_it(serving: Serving) -> None:
        busy = [await serving.connect(GET) for _ in range(2)]
        async with asyncio.timeout(DEADLINE_S):
            while len(serving.server.server_state.tasks) < 2:
                await asyncio.sleep(0.01)
        silent = await serving.connect()
        await serving.held(3)
        reserve = await serving.connect(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await answer(reserve)).endswith(b"crowded")
        assert await answer(silent) == b"", "it made room: the reserve is full, too"
        release.set()
        for streams in busy:
            assert await first_line(streams) == b"HTTP/1.1 200 OK"

    served(try_it, Limits(connections=2, reserved=1), slow)


# ---- bodies


LIMITS = Limits(body_bytes=500_000, body_s=DEADLINE_S)


async def parts(*sizes: int, then: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size
    if then:
        await then.wait()


def test_bytes_are_given_back() -> None:
    async def run() -> None:
        bodies = Bodies(LIMITS)
        with bodies.body() as body:
            assert len(await body.read(parts(200_000, 100_000))) == 300_000
            assert bodies.free == LIMITS.bytes_in_flight - 300_000 + SPARED_BYTES
        assert bodies.free == LIMITS.bytes_in_flight
        with pytest.raises(TooLarge), bodies.body() as body:
            await body.read(parts(400_000, 200_000))
        assert bodies.free == LIMITS.bytes_in_flight

    asyncio.run(run())


def test_the_body_that_takes_longest_makes_room() -> None:
    async def run() -> None:
        bodies, never = Bodies(LIMITS), asyncio.Event()

        async def read(*sizes: int, then: asyncio.Event | None = None) -> int:
            with bodies.body() as body:
                return len(await body.read(parts(*sizes, then=then)))

        small = asyncio.create_task(read(SPARED_BYTES, then=never))
        stalled = [asyncio.create_task(read(490_000, then=never)) for _ in range(9)]
        await asyncio.sleep(0)
        assert await read(500_000) == 500_000
        first, second, *others = stalled
        with pytest.raises(Busy):
            await first
        assert second.done() or all(not other.done() for other in others)
        assert not small.done() and bodies.free >= 0
        for task in (small, *others):
            task.cancel()
        await asyncio.gather(small, *stalled, return_exceptions=True)
        assert bodies.free == LIMITS.bytes_in_flight

    asyncio.run(run())


def test_bodies_that_are_being_answered_are_not_given_up() -> None:
    async def run() -> None:
        bodies = Bodies(Limits(body_bytes=100_000))
        with contextlib.ExitStack() as answering:
            for _ in range(23):
                await answering.enter_context(bodies.body()).read(parts(100_000))
            with pytest.raises(Busy), bodies.body() as body:
                await body.read(parts(100_000))
            with bodies.body() as body:
                assert len(await body.read(parts(SPARED_BYTES))) == SPARED_BYTES

    asyncio.run(run())


def test_a_body_has_a_deadline() -> None:
    async def run() -> None:
        with pytest.raises(TooSlow, match=r"within 0\.3 s, got 5 bytes"), Bodies(QUICK).body() as body:
            await body.read(parts(5, then=asyncio.Event()))

    asyncio.run(run())
