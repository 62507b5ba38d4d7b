"""Requests to a service while it is released, from a process of its own that ends with its parent.

`python -m pipelines.traffic ARGUMENTS OUT`: `ARGUMENTS` is a JSON object of `Requests`; counts go to the file `OUT`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from serin import load, model, parent
from serin.platforms.embedded import processes

STOP_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Requests:
    """`samples`: the model directory whose recorded samples are sent. `host`: see `serin.load.run`."""

    address: str
    service: str
    samples: str
    rate: float
    host: str | None


class Traffic:
    """The load generator, from `start` to the end of the block."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "traffic.log"
        self._arguments = folder / "traffic.json"
        self._out = folder / "load.json"
        self.losses = load.Losses(self._out)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, requests: Requests) -> None:
        self._arguments.write_text(json.dumps(asdict(requests)), encoding="utf-8")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                processes.python("pipelines.traffic", str(self._arguments), str(self._out)),
                stdin=subprocess.PIPE,  # see `serin.parent`
                stdout=log,
                stderr=log,  # not ours: whoever reads that waits until all who hold it are gone
                start_new_session=True,
            )

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()

    @property
    def tally(self) -> dict[str, Any]:
        return dict(json.loads(self._out.read_text(encoding="utf-8"))) if self._out.exists() else {}


def main(arguments: Path, out: Path) -> None:
    parent.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    requests = Requests(**json.loads(arguments.read_text(encoding="utf-8")))
    records = model.samples(Path(requests.samples)).records
    asyncio.run(
        load.run_to_file(
            requests.address,
            requests.service,
            records,
            rate=requests.rate,
            seconds=None,
            out=out,
            host=requests.host,
        )
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
