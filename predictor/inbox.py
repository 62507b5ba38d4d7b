"""Messages of gRPC calls. Only who reads one learns how large it is, so as many are read at once as there is room for
the largest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc  # type: ignore[import-untyped]

from predictor.bodies import BUSY, SPARED_BYTES
from predictor.errors import Busy, InvalidInput, TooSlow
from predictor.limits import BODIES_AT_ONCE, Limits


class Inbox:
    """While messages wait for room, those that are being read have no more than `limits.spared_s` for it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._room = asyncio.Semaphore(BODIES_AT_ONCE)
        self._waiting = 0
        self._reading: dict[asyncio.Timeout, float] = {}
        """Deadlines, with the times to which they are put forward when others wait."""

    @asynccontextmanager
    async def message(self, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """A large one has its room until the context ends. Raises `TooSlow`, `Busy` or `InvalidInput`."""
        await self._enter()
        small = False
        try:
            data = await self._read(context)
            small = len(data) <= SPARED_BYTES
            if small:
                self._room.release()
            yield data
        finally:
            if not small:
                self._room.release()

    async def _enter(self) -> None:
        self._waiting += 1
        self._hurry()
        try:
            async with asyncio.timeout(self._limits.body_s):
                await self._room.acquire()
        except TimeoutError as error:
            raise Busy(BUSY) from error
        finally:
            self._waiting -= 1

    async def _read(self, context: grpc.aio.ServicerContext) -> bytes:
        body_s = self._limits.body_s
        try:
            async with asyncio.timeout(body_s) as deadline:
                self._reading[deadline] = asyncio.get_running_loop().time() + self._limits.spared_s
                self._hurry()
                data = await context.read()
        except TimeoutError as error:
            if deadline not in self._reading:
                raise Busy(BUSY) from error
            raise TooSlow(f"The message: expected all of it within {body_s:g} s.") from error
        finally:
            self._reading.pop(deadline, None)
        if data is grpc.aio.EOF:
            raise InvalidInput("The call: expected one message, got none.")
        return bytes(data)

    def _hurry(self) -> None:
        if self._waiting and self._room.locked():
            for deadline, at_s in self._reading.items():
                if not deadline.expired():
                    deadline.reschedule(at_s)
            self._reading.clear()
