"""Coverage-guided fuzzing of the predictor: libFuzzer (through atheris) makes whole HTTP requests and keeps those
that reach code no other has reached. They go through uvicorn's own HTTP protocol into the application, in process.

    python -m benchmarks.predictor_fuzz_guided MODEL RESULT CORPUS --requests 100000 --seed 1

Needs requirements-fuzz.txt. RESULT gets `Outcome` as JSON; CORPUS gets the requests that are kept, but for those
without an end.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvicorn
from uvicorn.server import ServerState

from benchmarks.predictor_fuzz import ANSWER_S, Fuzzer, with_length
from serin import model

SEEDS: Final = 40
MAX_BYTES: Final = 16_384
READS: Final = (
    "/", "/metrics", "/metrics/serin.json", "/v1/models", "/v1/models/churn", "/v2", "/v2/models", "/v2/models/churn",
    "/v2/models/churn/ready", "/v2/health/ready", "/v2/health/live",
)  # fmt: skip


@dataclass
class Outcome:
    """`statuses`: how many requests ended in which; "cut off" are those whose own end was missing, "none" those
    without an answer. `failures`: some with a 5xx or without an answer, and what was answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class _Transport(asyncio.Transport):
    """Keeps what the protocol writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def statuses(self) -> list[str]:
        """Of the answers in order; heads are written apart from bodies."""
        heads = [part for part in self.written if part.startswith(b"HTTP/1.1 ")]
        return [status for head in heads if (status := head[9:12].decode()) != "100"]


async def answered(config: uvicorn.Config, request: bytes) -> str:
    """The worst status among the answers to `request`, which may be several in a pipeline."""
    state, transport = ServerState(), _Transport()
    if not config.loaded:
        config.load()
    protocol: Any = config.http_protocol_class(config=config, server_state=state, app_state={})
    protocol.connection_made(transport)
    protocol.data_received(request)
    cut_off = protocol.cycle is None or protocol.cycle.more_body
    if cut_off:
        protocol.connection_lost(None)
    while state.tasks:
        await asyncio.wait_for(asyncio.gather(*state.tasks), ANSWER_S)
    if not cut_off:
        protocol.connection_lost(None)
    return max(transport.statuses(), default="cut off" if cut_off else "none")


def served(root: Path) -> uvicorn.Config:
    from predictor import app, explain, scorer, server, telemetry

    scores = scorer.Scorer.load(root, model.verify(root))
    service = app.Service(
        "churn",
        "churn-00001",
        model.digest(root),
        scores,
        telemetry.Telemetry("churn", "churn-00001"),
        app.Health(),
        explainer=explain.load(root, scores.layout),
    )
    return server.http(app.Observed(app.application(service), service), service.limits)


Mutator = Callable[[bytes, int, int], bytes]
"""Of a request, the most bytes the result may have, and a seed."""


def mutator(records: Sequence[Any], mutate_bytes: Callable[[bytes, int], bytes]) -> Mutator:
    def mutate(request: bytes, max_bytes: int, seed: int) -> bytes:
        fuzzer = Fuzzer(seed, "churn", records)
        match seed % 8:
            case 0:
                mutated = fuzzer.request()
            case 1 | 2 | 3 | 4:
                mutated = fuzzer.mutated(request)
            case _:
                mutated = mutate_bytes(request, max_bytes)
        return (mutated if seed % 16 == 5 else with_length(mutated))[:max_bytes]

    return mutate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    import atheris

    with atheris.instrument_imports(include=["predictor"]):
        config = served(arguments.model)
    arguments.corpus.mkdir(exist_ok=True)
    records = model.samples(arguments.model).records
    fuzzer = Fuzzer(arguments.seed, "churn", records)
    seeds = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in READS]
    for i, seed in enumerate((*seeds, *(fuzzer.valid() for _ in range(SEEDS)))):
        (arguments.corpus / f"seed-{i}").write_bytes(seed)
    loop, outcome = asyncio.new_event_loop(), Outcome()
    asyncio.set_event_loop(loop)

    def one(data: bytes) -> None:
        try:
            status = loop.run_until_complete(answered(config, data))
        except TimeoutError:
            status = "none"
        outcome.statuses[status] += 1
        if (status.startswith("5") or status == "none") and len(outcome.failures) < 5:
            outcome.failures.append(f"{data[:1000]!r} -> {status}")
        if outcome.statuses.total() - outcome.statuses["cut off"] >= arguments.requests:
            for path in arguments.corpus.iterdir():
                if loop.run_until_complete(answered(config, path.read_bytes())) == "cut off":
                    path.unlink()
            arguments.result.write_bytes(orjson.dumps({"statuses": outcome.statuses, "failures": outcome.failures}))
            os._exit(0)  # libFuzzer counts its runs itself, with those that were cut off

    options = [f"-seed={arguments.seed}", f"-max_len={MAX_BYTES}", "-len_control=0", "-print_final_stats=1",
               f"-timeout={2 * ANSWER_S:.0f}", f"-artifact_prefix={arguments.result}-"]  # fmt: skip
    mutate = mutator(records, lambda request, size: atheris.Mutate(request, size))  # Fuzz() replaces atheris.Mutate
    atheris.Setup([sys.argv[0], *options, str(arguments.corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
