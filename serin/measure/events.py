"""Events of declared metrics, as a process counts them in Prometheus' text format."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from serin.judge.policy import Source

MOST_EVENTS: Final = 2**53
"""Beyond it, 1 more is not seen."""
MOST_SAMPLES: Final = 1000
MOST_CHARACTERS: Final = 4096
"""Of a counter, so that a pod of somebody else cannot keep the reader busy."""
_STARTED: Final = "process_start_time_seconds"


def parse(text: str, sources: Mapping[str, Source]) -> dict[str, float]:
    """Cumulative events by metric. A metric whose counter is not there is left out; where only label sets are counted
    that do not match, or none yet, it is 0. Raises `ValueError` for what is no such text, or no count."""
    return {name: count for name, each in sources.items() if (count := _count(text, each)) is not None}


def process(text: str) -> str:
    """When the process began, which tells it from the one before it in the same pod; empty where it does not say."""
    return next((str(each.value) for each in _samples(text, _STARTED)), "")


def _count(text: str, source: Source) -> float | None:
    samples = list(_samples(text, source.counter))
    declared = {source.counter, source.counter.removesuffix("_total")}
    if not samples and not any(line.split()[2:3] == [name] for line in _comments(text) for name in declared):
        return None
    wanted = source.labels.items()
    count = math.fsum(each.value for each in samples if wanted <= each.labels.items())
    if not 0 <= count < MOST_EVENTS:  # NaN is neither
        raise ValueError(f"{source.counter} is {count}, not a count")
    return count


def _comments(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.startswith("# TYPE "))


def _samples(text: str, name: str) -> Iterator[Sample]:
    """Only of its own lines: the histograms beside it are long."""
    ours = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    if len(ours) > MOST_SAMPLES or any(len(line) > MOST_CHARACTERS for line in ours):
        raise ValueError(f"{name} has more label sets, or longer ones, than a counter has")
    try:
        for family in text_string_to_metric_families("".join(f"{line}\n" for line in ours)):
            yield from family.samples
    except LookupError as error:  # of the parser, for what is no such text
        raise ValueError(f"{name} is not in Prometheus' text format") from error
