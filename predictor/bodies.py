"""Bodies of requests, within one budget of bytes for all of them."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from predictor.errors import Busy, TooLarge, TooSlow
from predictor.limits import Limits

SPARED_BYTES: Final = 64 * 2**10
"""The first of each body are outside of the budget: small requests are served however full it is."""
BUSY: Final = "The memory for request bodies is in use; retry in a second."


class Bodies:
    """When the budget is used up, the body whose client has taken longest is given up: whoever stops in the middle
    makes room first, and the others go on."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.free = limits.bytes_in_flight
        self._unfinished: dict[Body, None] = {}

    def body(self) -> "Body":
        return Body(self, self._unfinished)


class Body:
    """As context manager it keeps its bytes of the budget until the end of the context."""

    def __init__(self, bodies: Bodies, unfinished: "dict[Body, None]") -> None:
        self._bodies, self._unfinished = bodies, unfinished
        self._parts: list[bytes] = []
        self._size = self._taken = 0
        self._given_up = False
        self._deadline: asyncio.Timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._bodies.free += self._taken

    async def read(self, stream: AsyncIterator[bytes]) -> bytes:
        """Raises `TooLarge`, `TooSlow` or `Busy`."""
        body_s = self._bodies.limits.body_s
        self._unfinished[self] = None
        try:
            async with asyncio.timeout(body_s) as self._deadline:
                async for part in stream:
                    self._add(part)
        except TimeoutError as error:
            if self._given_up:
                raise Busy(BUSY) from error
            raise TooSlow(f"The body: expected all of it within {body_s:g} s, got {self._size} bytes.") from error
        finally:
            del self._unfinished[self]
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def _add(self, part: bytes) -> None:
        if self._given_up:
            return  # the time-out that tells its client is on its way
        limit_bytes = self._bodies.limits.body_bytes
        self._size += len(part)
        if self._size > limit_bytes:
            raise TooLarge(f"The body: expected at most {limit_bytes} bytes, got more.")
        needed = max(0, self._size - SPARED_BYTES) - self._taken
        while needed > self._bodies.free:
            longest = next(body for body in self._unfinished if body._taken or body is self)
            if longest is self:
                raise Busy(BUSY)
            longest._give_up()
        self._taken += needed
        self._bodies.free -= needed
        self._parts.append(part)

    def _give_up(self) -> None:
        self._bodies.free += self._taken
        self._taken = 0
        self._given_up = True
        self._parts.clear()
        if not self._deadline.expired():
            self._deadline.reschedule(0)
