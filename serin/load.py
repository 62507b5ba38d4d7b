"""An open-loop load generator: requests leave on schedule, whatever the answers do.

A closed loop slows down with the server and so hides what its users would see. Every answer is counted by the
revision that gave it and by status; requests that got none are counted too.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serin.model import Record

if TYPE_CHECKING:
    import aiohttp

NO_ANSWER: Final = 0
"""Counted as the status of a request that got no answer."""
REVISION_HEADER: Final = "x-serin-revision"
DIGEST_HEADER: Final = "x-serin-model-digest"
MAX_IN_FLIGHT: Final = 2000
RECENT_S: Final = 10.0


@dataclass(slots=True)
class Tally:
    """Answers by (revision, status); the revision is "" when the answer named none."""

    sent: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    started_s: float = field(default_factory=time.time)

    @property
    def failed(self) -> int:
        return sum(count for (_, status), count in self.answers.items() if not 200 <= status < 300)

    def document(self) -> dict[str, object]:
        return {
            "startedS": self.started_s,
            "endedS": time.time(),
            "sent": self.sent,
            "answered": sum(self.answers.values()),
            "failed": self.failed,
            "answers": [
                {"revision": revision, "status": status, "count": count}
                for (revision, status), count in sorted(self.answers.items())
            ],
        }


class Losses:
    """Requests that no model answered, as the tally in `file` shows while a load generator renews it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: deque[tuple[float, int, int]] = deque()

    def recent(self, now_s: float) -> str | None:
        """Those of the last seconds in words, None when all was answered. `now_s`: of any clock."""
        if not self._file.exists():
            return None
        tally = json.loads(self._file.read_text(encoding="utf-8"))
        lost = sum(each["count"] for each in tally["answers"] if not each["revision"])
        self._seen.append((now_s, lost, tally["answered"]))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - RECENT_S:
            self._seen.popleft()
        start_s, lost_before, answered_before = self._seen[0]
        if lost == lost_before:
            return None
        return (
            f"{lost - lost_before:,} of the load generator's last {tally['answered'] - answered_before:,} requests "
            f"({max(1, round(now_s - start_s))} s) got no answer from a model"
        )


async def run(
    address: str,
    service: str,
    records: Sequence[Record],
    *,
    rate: float,
    stop: asyncio.Event,
    tally: Tally,
    timeout_s: float = 10,
    host: str | None = None,
) -> None:
    """Send `records` over and over at `rate` requests per second until `stop` is set, then wait for the answers.

    `host` is what the requests ask for when it is not the host of `address`, as behind a gateway of many services.
    Updates `tally` as answers come. A schedule that fell behind (a busy machine) is caught up, never thinned out.
    """
    url = f"{address}/v1/models/{service}:predict"
    bodies = itertools.cycle([json.dumps({"instances": [record]}).encode() for record in records])
    headers = {"content-type": "application/json"} | ({"host": host} if host else {})
    gate = asyncio.Semaphore(MAX_IN_FLIGHT)
    import aiohttp  # a command that sends nothing starts sooner without it

    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
        asyncio.TaskGroup() as group,
    ):
        for due in _schedule(rate):
            wait_s = due - time.monotonic()
            if wait_s > 0:
                await _sleep(stop, wait_s)
            if stop.is_set():
                break
            await gate.acquire()
            tally.sent += 1
            group.create_task(_send(session, url, headers, next(bodies), tally, gate))


def _schedule(rate: float) -> Iterator[float]:
    start = time.monotonic()
    for number in itertools.count():
        yield start + number / rate


async def _sleep(stop: asyncio.Event, seconds: float) -> None:
    if seconds < 0.05:
        await asyncio.sleep(seconds)
        return
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


async def _send(
    session: "aiohttp.ClientSession",
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    tally: Tally,
    gate: asyncio.Semaphore,
) -> None:
    import aiohttp

    try:
        async with session.post(url, data=body, headers=headers) as response:
            await response.read()
            tally.answers[response.headers.get(REVISION_HEADER, ""), response.status] += 1
    except (aiohttp.ClientError, TimeoutError):
        tally.answers["", NO_ANSWER] += 1
    finally:
        gate.release()


async def run_to_file(
    address: str,
    service: str,
    records: Sequence[Record],
    *,
    rate: float,
    seconds: float | None,
    out: Path | None,
    host: str | None = None,
) -> Tally:
    """Run until `seconds` are over or SIGTERM/SIGINT comes; keep the tally in `out`, renewed every second."""
    import signal

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    tally = Tally()

    async def keep() -> None:
        while not stop.is_set():
            _save(tally, out)
            await _sleep(stop, 1.0)

    keeper = asyncio.create_task(keep())
    try:
        await run(address, service, records, rate=rate, stop=stop, tally=tally, host=host)
    finally:
        stop.set()
        await keeper
        _save(tally, out)
    return tally


def _save(tally: Tally, out: Path | None) -> None:
    if out is not None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(tally.document()), encoding="utf-8")
        partial.replace(out)
