"""From cumulative counters to windows: pure functions that know about resets."""

from collections.abc import Mapping

from pydantic import Field

from serin.judge.window import ArmCounts, Window
from serin.plan import Document


class Counters(Document):
    """Cumulative counts of one revision. `codes` are the gateway's answers by HTTP status; `latency` and `score`
    the predictor's, by bucket of `serin.histograms`; `boot` names the predictor process that counted them, "" while
    it has never answered."""

    codes: Mapping[int, int] = Field(default_factory=dict)
    boot: str = ""
    latency: Mapping[int, int] = Field(default_factory=dict)
    score: Mapping[int, int] = Field(default_factory=dict)


class Reading(Document):
    """Both arms at one moment. `gateway` names the gateway process: its counters start at zero with it.
    `stage` and `percent` are what was in force when it was taken."""

    at_s: float
    window_id: int
    stage: int
    percent: int
    gateway: str
    stable: Counters
    candidate: Counters


def carry_on(before: Counters, now: Counters) -> Counters:
    """`now`, with what the predictor last told when it gave no answer this time: the next answer makes up for it."""
    if now.boot:
        return now
    return now.model_copy(update={"boot": before.boot, "latency": before.latency, "score": before.score})


def window_between(before: Reading, after: Reading) -> Window:
    """What happened between two readings of the same pair of revisions.

    Counters of a process that was restarted meanwhile count from zero: what it counted after the last reading and
    before its end is lost for both errors and successes, never turned into a negative or a double count. What a
    predictor counted before its first answer is not known and not taken.
    """
    same_gateway = before.gateway == after.gateway
    return Window(
        id=after.window_id,
        start_s=before.at_s,
        end_s=after.at_s,
        stage=before.stage,
        share=before.percent / 100 if before.percent == after.percent else None,
        stable=_arm(before.stable, after.stable, same_gateway=same_gateway),
        candidate=_arm(before.candidate, after.candidate, same_gateway=same_gateway),
    )


def _arm(before: Counters, after: Counters, *, same_gateway: bool) -> ArmCounts:
    codes = _difference(before.codes if same_gateway else {}, after.codes)
    if not before.boot:
        before = before.model_copy(update={"latency": after.latency, "score": after.score})
    elif before.boot != after.boot:
        before = before.model_copy(update={"latency": {}, "score": {}})
    return ArmCounts(
        requests=sum(codes.values()),
        events={
            "errors": sum(count for code, count in codes.items() if code >= 500),
            "rejected": sum(count for code, count in codes.items() if 400 <= code < 500),
        },
        latency=_difference(before.latency, after.latency),
        score=_difference(before.score, after.score),
    )


def _difference(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, int]:
    """Growth per key, keys without growth left out; a counter that went down was reset and counts from zero."""
    if any(after.get(key, 0) < count for key, count in before.items()):
        before = {}
    return {key: count - before.get(key, 0) for key, count in after.items() if count > before.get(key, 0)}


def to_document(window: Window) -> dict[str, object]:
    """As JSON: one row of the rollout's timeline."""
    return {
        "id": window.id,
        "startS": window.start_s,
        "endS": window.end_s,
        "stage": window.stage,
        "share": window.share,
        "stable": _arm_document(window.stable),
        "candidate": _arm_document(window.candidate),
    }


def _arm_document(arm: ArmCounts) -> dict[str, object]:
    return {
        "requests": arm.requests,
        "events": dict(arm.events),
        "latency": {str(key): count for key, count in arm.latency.items()},
        "score": {str(key): count for key, count in arm.score.items()},
    }
