"""Messages of gRPC calls: as many at once as there is room for the largest."""

import asyncio

import pytest

from predictor.bodies import SPARED_BYTES
from predictor.errors import Busy, InvalidInput, TooSlow
from predictor.inbox import Inbox
from predictor.limits import BODIES_AT_ONCE, Limits

grpc = pytest.importorskip("grpc")
LARGE = b"x" * (SPARED_BYTES + 1)


class Call:
    """Gives its message once it is there."""

    def __init__(self, message: object = None) -> None:
        self._message: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if message is not None:
            self._message.set_result(message)

    async def read(self) -> object:
        return await self._message


async def size(inbox: Inbox, call: Call) -> int:
    async with inbox.message(call) as message:
        return len(message)


def test_a_message_has_a_deadline_and_is_one() -> None:
    async def run() -> None:
        inbox = Inbox(Limits(body_s=0.1))
        with pytest.raises(TooSlow, match=r"within 0\.1 s"):
            await size(inbox, Call())
        with pytest.raises(InvalidInput, match="got none"):
            await size(inbox, Call(grpc.aio.EOF))
        assert await size(inbox, Call(LARGE)) == len(LARGE)

    asyncio.run(run())


def test_those_that_do_not_come_make_room_for_those_that_wait() -> None:
    async def run() -> None:
        inbox = Inbox(Limits(spared_s=0.1))
        stalled = [asyncio.create_task(size(inbox, Call())) for _ in range(BODIES_AT_ONCE)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in stalled), "nobody waits"
        more = [asyncio.create_task(size(inbox, Call())) for _ in range(3 * BODIES_AT_ONCE)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(size(inbox, Call(LARGE)), 5) == len(LARGE)
        assert all(isinstance(each, Busy) for each in await asyncio.gather(*stalled, return_exceptions=True))
        for task in more:
            task.cancel()
        await asyncio.gather(*more, return_exceptions=True)
        assert await asyncio.wait_for(size(inbox, Call(b"small")), 5) == 5

    asyncio.run(run())


def test_a_large_message_keeps_its_room_while_it_is_answered() -> None:
    async def run() -> None:
        inbox, answered = Inbox(Limits(body_s=0.2)), asyncio.Event()

        async def answer(message: bytes) -> None:
            async with inbox.message(Call(message)):
                await answered.wait()

        small = [asyncio.create_task(answer(b"small")) for _ in range(5 * BODIES_AT_ONCE)]
        large = [asyncio.create_task(answer(LARGE)) for _ in range(BODIES_AT_ONCE)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await size(inbox, Call(b"x"))
        answered.set()
        await asyncio.gather(*small, *large)
        assert await size(inbox, Call(b"x")) == 1

    asyncio.run(run())
