"""What clients may take of one server."""

from dataclasses import dataclass
from typing import Final

BODIES_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """`body_bytes`, `rows`: of one request. `connections`: served at once, and how many may be open before those are
    closed that have waited for their clients for longer than `spared_s`; `reserved` more are let in for what is
    always answered. `head_s`, `body_s`, `answer_s`: how long a client may take for a head, for its body, and for
    reading an answer; `idle_s` between requests, longer than a proxy's idle time-out, so that the proxy closes first.
    """

    body_bytes: int = 8 * 2**20
    rows: int = 10_000
    connections: int = 512
    reserved: int = 64
    spared_s: float = 0.25
    head_bytes: int = 64 * 2**10
    pipelined: int = 16
    head_s: float = 10.0
    body_s: float = 30.0
    answer_s: float = 30.0
    idle_s: float = 65.0

    @property
    def bytes_in_flight(self) -> int:
        """Of all bodies that are being received or answered, and of all answers that nobody reads."""
        return BODIES_AT_ONCE * self.body_bytes


DEFAULTS: Final = Limits()
