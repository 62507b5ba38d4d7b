"""Sums of counters over processes that come and go: pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import Field

from serin.measure.windows import Counters, ServerCounts
from serin.plan import Stored

CODES: Final = " codes"
PREDICTIONS: Final = " predictions"
OTHER: Final = " other"
EVENT: Final = " event "
PARTS: Final = 1000
"""Events of declared metrics may be parts of one, and are summed in thousandths."""
REFUSED: Final = 400
FAILED: Final = 500

Series = Mapping[str, Mapping[int, int]]
"""Cumulative counts by name of what is counted, "<revision> codes", "<revision> unanswered", "<revision> latency" or
"<revision> score", then by the keys that they have in `Counters`; and "<revision> predictions", the model servers'
own answers to inference requests, by HTTP status; and "<revision> event <metric>", a declared metric's events in
thousandths, by 0."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What had been counted of a rollout's two revisions at `at_s`, by the process that keeps the counts.

    `active`: requests under way by revision; None where the source does not tell. `latency_lag_s`: where the gateway
    counts latencies, how much later than answers it may show them; Knative's probes are among them. None where those
    count them who give the answers. `apart`: whether the revisions were counted at different moments, as is where
    each of their pods counts for itself. `incomplete`: some model server that counts predictions did not tell.
    `reports`: by revision, the declared metrics that every one of its processes told.
    """

    at_s: float
    read: Mapping[str, Series]
    active: Mapping[str, int] | None = None
    latency_lag_s: float | None = None
    apart: bool = False
    incomplete: bool = False
    reports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Tally(Stored):
    """What was counted since the first look. `seen` are the counts as last read, by the process that keeps them.

    Where model servers tell their predictions, the total also has "<revision> other": answers at the gateway to
    what was no prediction, by HTTP status.
    """

    seen: Mapping[str, Series] = Field(default_factory=dict)
    total: Series = Field(default_factory=dict)


def add(tally: Tally, read: Mapping[str, Series], *, complete: bool = True) -> Tally:
    """Add what each process counted since it was last read.

    The first look at a process only sets its baseline. A count that fell was reset and counts from zero; a series
    that is gone (a revision some time out of the route) counts from zero when it is back. What is no prediction is
    known only from a `complete` look.
    """
    total = {name: dict(counts) for name, counts in tally.total.items()}
    for process, series in read.items():
        before = tally.seen.get(process)
        if before is None:
            continue
        for name, counts in series.items():
            last = before.get(name, {})
            if any(counts.get(key, 0) < count for key, count in last.items()):
                last = {}
            sums = total.setdefault(name, {})
            for key, count in counts.items():
                if count > last.get(key, 0):
                    sums[key] = sums.get(key, 0) + count - last.get(key, 0)
    for name in {name for series in read.values() for name in series if name.endswith(PREDICTIONS)}:
        _tell_apart(tally.total, total, name.removesuffix(PREDICTIONS), complete=complete)
    return Tally(seen=read, total=total)


def _tell_apart(before: Series, total: dict[str, dict[int, int]], revision: str, *, complete: bool) -> None:
    """Take for other requests what the gateway counted beyond the model servers, whose counts are read later.

    The most that was ever seen: a few predictions that were counted there a moment sooner are lost once, and not
    with every look. Errors are never taken for something else: the model server may be dead.
    """
    known = before.get(f"{revision}{CODES}", {})
    if f"{revision}{OTHER}" not in before:  # nothing is known of what was counted before
        total[f"{revision}{OTHER}"] = {}
        total[f"{revision}{PREDICTIONS}"] = {code: count for code, count in known.items() if code < FAILED}
    if not complete:
        return
    other, told = total[f"{revision}{OTHER}"], total[f"{revision}{PREDICTIONS}"]
    for code, count in total.get(f"{revision}{CODES}", {}).items():
        if code < FAILED:
            more = min(count - told.get(code, 0) - other.get(code, 0), count - known.get(code, 0))
            if more > 0:
                other[code] = other.get(code, 0) + more


def tells_predictions(tally: Tally, revision: str) -> bool:
    return f"{revision}{OTHER}" in tally.total


def others(tally: Tally, revision: str) -> int:
    """How many answers were to what was no prediction."""
    return sum(tally.total.get(f"{revision}{OTHER}", {}).values())


def counters(tally: Tally, revision: str, *, predictions_alone: bool = False) -> Counters:
    """`predictions_alone`: without answers to other requests, and with errors that only the model servers counted,
    as those of gRPC, which are a 200 at the gateway."""
    codes = tally.total.get(f"{revision}{CODES}", {})
    return Counters(
        codes=_predictions(tally.total, revision, codes) if predictions_alone else codes,
        unanswered=tally.total.get(f"{revision} unanswered", {}),
        servers={
            0: ServerCounts(
                latency=tally.total.get(f"{revision} latency", {}),
                score=tally.total.get(f"{revision} score", {}),
                events={
                    name.removeprefix(f"{revision}{EVENT}"): sum(counts.values()) / PARTS
                    for name, counts in tally.total.items()
                    if name.startswith(f"{revision}{EVENT}")
                },
            )
        },
    )


def _predictions(total: Series, revision: str, codes: Mapping[int, int]) -> dict[int, int]:
    other, told = total.get(f"{revision}{OTHER}", {}), total.get(f"{revision}{PREDICTIONS}", {})
    answered = {code: count - other.get(code, 0) for code, count in codes.items()}
    refused = {code: max(count, answered.get(code, 0)) for code, count in told.items() if code >= REFUSED}
    return answered | refused
