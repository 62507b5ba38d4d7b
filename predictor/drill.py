"""The model server made deliberately bad, to show that a rollout notices. For drills only: `python -m predictor`
knows nothing of it.

    python -m predictor.drill --fault errors|latency|scores|crash|slowstart [--rate 1.0] …arguments of predictor

SERIN_FAULT and SERIN_FAULT_RATE stand in for `--fault` and `--rate`.
"""

import asyncio
import os
import random
import sys
import time
from argparse import Namespace
from enum import StrEnum
from typing import Any, Final

from numpy.typing import NDArray
from starlette.types import ASGIApp, Receive, Scope, Send

from predictor import server
from predictor.columns import Batch
from predictor.scorer import Scores

DELAY_S: Final = 0.15
SLOW_START_S: Final = 600.0
REQUESTS_BEFORE_CRASH: Final = 50
COLLAPSED_SCORE: Final = 0.97


class Fault(StrEnum):
    ERRORS = "errors"
    LATENCY = "latency"
    SCORES = "scores"
    CRASH = "crash"
    SLOWSTART = "slowstart"


class FaultyApp:
    """Hits a share `rate` of the inference requests: an error, a delay, or (after some requests) the end."""

    def __init__(self, app: ASGIApp, fault: Fault, rate: float) -> None:
        self._app, self._fault, self._rate = app, fault, rate
        self._hits = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "POST" and random.random() < self._rate:  # noqa: S311
            self._hits += 1
            if self._fault is Fault.ERRORS:
                raise RuntimeError("drill: errors")
            if self._fault is Fault.LATENCY:
                await asyncio.sleep(DELAY_S)
            if self._fault is Fault.CRASH and self._hits > REQUESTS_BEFORE_CRASH:
                os._exit(1)
        await self._app(scope, receive, send)


class CollapsedScores:
    """Gives a share `rate` of the rows one and the same high score."""

    def __init__(self, scores: Scores, rate: float) -> None:
        self.signature, self.layout = scores.signature, scores.layout
        self._scores, self._rate = scores, rate

    def score(self, batch: Batch) -> NDArray[Any]:
        scores = self._scores.score(batch)
        for row in range(batch.rows):
            if random.random() < self._rate:  # noqa: S311
                scores[row] = COLLAPSED_SCORE
        return scores


def serve(arguments: Namespace) -> None:
    fault, rate = Fault(arguments.fault), arguments.rate
    if fault is Fault.SLOWSTART:
        time.sleep(SLOW_START_S)
    server.serve(
        arguments,
        scores=lambda scores: CollapsedScores(scores, rate) if fault is Fault.SCORES else scores,
        wrap=lambda app: FaultyApp(app, fault, rate),
    )


def main() -> int:
    parser = server.parser("python -m predictor.drill")
    fault, rate = os.environ.get("SERIN_FAULT"), os.environ.get("SERIN_FAULT_RATE", "1")
    parser.add_argument("--fault", choices=list(Fault), default=fault, required=fault is None)
    parser.add_argument("--rate", type=float, default=rate, help="fraction of requests affected, 0 to 1")
    return server.main(parser, serve)


if __name__ == "__main__":
    sys.exit(main())
