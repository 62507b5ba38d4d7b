"""Runs in a pod: constant load on a service, told as one JSON line a second until the file /tmp/stop is there.

python loader.py ADDRESS HOST SERVICE RATE RECORDS
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

from serin import load

STOP = Path("/tmp/stop")  # noqa: S108 - the only folder of the pod that can be written


async def main(address: str, host: str, service: str, rate: float, records: list[load.Record]) -> None:
    tally, stop = load.Tally(), asyncio.Event()
    told: Counter[tuple[str, int]] = Counter()

    async def tell() -> None:
        while not stop.is_set():
            await asyncio.sleep(1)
            say()
            if STOP.exists():
                stop.set()

    def say() -> None:
        now = Counter(tally.answers)
        answers = [[revision, status, count] for (revision, status), count in (now - told).items()]
        told.update(now - told)
        print(json.dumps({"at": time.time(), "sent": tally.sent, "answers": answers}), flush=True)

    teller = asyncio.create_task(tell())
    await load.run(address, service, records, rate=rate, stop=stop, tally=tally, host=host)
    await teller
    say()
    print(json.dumps({"at": time.time(), "sent": tally.sent, "answers": [], "done": True}), flush=True)


if __name__ == "__main__":
    address, host, service, rate, records = sys.argv[1:]
    asyncio.run(main(address, host, service, float(rate), json.loads(records)))
