"""From cumulative counters to windows: pure functions that know about resets."""

from collections import Counter
from collections.abc import Mapping
from typing import Final, TypeVar

from pydantic import Field

from serin.judge.window import ABANDONED, ArmCounts, Window
from serin.plan import Document

CUT_OFF: Final = 0
TIMED_OUT: Final = 1
_Key = TypeVar("_Key", int, str)
_Number = TypeVar("_Number", int, float)


class ServerCounts(Document):
    """What one predictor process counted, by bucket of `serin.model.histograms`; `boot` names it, None while it has
    never answered. `events` are the declared metrics' by name."""

    boot: str | None = ""
    latency: Mapping[int, int] = Field(default_factory=dict)
    score: Mapping[int, int] = Field(default_factory=dict)
    events: Mapping[str, float] = Field(default_factory=dict)


class Counters(Document):
    """Cumulative counts of one revision.

    `codes` are the gateway's answers by HTTP status; `retried` of those requests were lost by one of the revision's
    processes and answered by another. `unanswered` are requests that the gateway took back from the model server, by
    `CUT_OFF` (all of them) and `TIMED_OUT` (those that it answered with 504 itself). `servers` are the processes' own
    counts. `active` requests are at the gateway; of them, `old` may have been split by an earlier percent.
    `reports` are the declared metrics whose events every process told; `ahead` are events of requests that the
    gateway had not yet counted: model servers count while they answer, the gateway afterwards.
    """

    codes: Mapping[int, int] = Field(default_factory=dict)
    retried: int = 0
    unanswered: Mapping[int, int] = Field(default_factory=dict)
    active: int = 0
    old: int = 0
    servers: Mapping[int, ServerCounts] = Field(default_factory=dict)
    reports: tuple[str, ...] = ()
    ahead: Mapping[str, float] = Field(default_factory=dict)


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


def following(before: Reading | None, now: Reading) -> Reading:
    """`now` in the light of the reading before it.

    A predictor that gave no answer is taken to have counted nothing since: its next answer makes up for it. Requests
    in flight when a split was first seen in force are `old`, until as many have been answered. Events that are
    `ahead` of their requests belong to the split they were seen under.
    """
    if before is None:
        arms = {"stable": _all_old(now.stable), "candidate": _all_old(now.candidate)}
    else:
        same_split = before.percent == now.percent
        arms = {
            "stable": _arm_following(before.stable, now.stable, same_split=same_split),
            "candidate": _arm_following(before.candidate, now.candidate, same_split=same_split),
        }
    return now.model_copy(update=arms)


def _all_old(now: Counters) -> Counters:
    return now.model_copy(update={"old": now.active})


def _arm_following(before: Counters, now: Counters, *, same_split: bool) -> Counters:
    silent = {number: before.servers[number] for number, each in now.servers.items()
              if each.boot is None and number in before.servers}  # fmt: skip
    now = now.model_copy(update={"servers": {**now.servers, **silent}})
    if not same_split:
        return _all_old(now)
    answered = sum(_difference(before.codes, now.codes).values()) + _abandoned(before, now)
    old = max(0, min(before.old - answered, now.active))
    return now.model_copy(update={"old": old, "ahead": ahead(before, now)})


def ahead(before: Counters, after: Counters) -> dict[str, float]:
    """Events of requests that are counted later than at the reading `after`."""
    answered = sum(_difference(before.codes, after.codes).values()) + _abandoned(before, after)
    events = _declared(before, after)
    return {name: count - answered for name, count in events.items() if count > answered}


def window_between(before: Reading, after: Reading) -> Window:
    """What happened between two readings of the same pair of revisions.

    Counters of a process that was restarted meanwhile count from zero: what it counted after the last reading and
    before its end is lost for both errors and successes, never turned into a negative or a double count. What a
    predictor counted before its first answer is not known and not taken. The share is known only if the same split
    was in force at both ends and every answer was to a request it had split.
    """
    same_gateway = before.gateway == after.gateway
    settled = before.stable.old == before.candidate.old == 0
    return Window(
        id=after.window_id,
        start_s=before.at_s,
        end_s=after.at_s,
        stage=before.stage,
        share=before.percent / 100 if before.percent == after.percent and settled else None,
        stable=_arm(before.stable, after.stable, same_gateway=same_gateway),
        candidate=_arm(before.candidate, after.candidate, same_gateway=same_gateway),
    )


def _arm(before: Counters, after: Counters, *, same_gateway: bool) -> ArmCounts:
    """A request that only a retry saved is an error of the revision, though its user saw none."""
    if not same_gateway:
        before = before.model_copy(update={"codes": {}, "retried": 0, "unanswered": {}})
    codes, abandoned = _difference(before.codes, after.codes), _abandoned(before, after)
    answered = sum(codes.values())
    requests = answered + abandoned
    failed = sum(count for code, count in codes.items() if code >= 500)
    retried = after.retried - (before.retried if before.retried <= after.retried else 0)
    latency, score = Counter[int](), Counter[int]()
    for number, server in after.servers.items():
        base = _base(before.servers.get(number), server)
        latency.update(_difference(base.latency, server.latency))
        score.update(_difference(base.score, server.score))
    return ArmCounts(
        requests=requests,
        events={
            "errors": min(failed + retried, answered) + abandoned,
            "rejected": sum(count for code, count in codes.items() if 400 <= code < 500),
            **({ABANDONED: abandoned} if abandoned else {}),
            **{name: min(count, requests) for name, count in _declared(before, after).items()},
        },
        latency=dict(latency),
        score=dict(score),
    )


def _declared(before: Counters, after: Counters) -> dict[str, float]:
    """Events of the declared metrics since `before`, and those that were ahead then.

    Only of metrics that every process told at both ends: events that come later than the other revision's would be
    judged against its requests alone. So those of a time of silence are lost, and that time is not judged.
    """
    events = {name: before.ahead.get(name, 0.0) for name in after.reports if name in before.reports}
    for number, server in after.servers.items():
        base = _base(before.servers.get(number), server)
        grown = _difference(base.events, server.events)
        events = {name: count + grown.get(name, 0.0) for name, count in events.items()}
    return events


def _base(before: ServerCounts | None, after: ServerCounts) -> ServerCounts:
    """From which the counts of a process grew."""
    if before is None or before.boot is None:
        return after
    return before if before.boot == after.boot else ServerCounts()


def _abandoned(before: Counters, after: Counters) -> int:
    """Requests whose clients were gone before the answer."""
    grown = _difference(before.unanswered, after.unanswered)
    return max(0, grown.get(CUT_OFF, 0) - grown.get(TIMED_OUT, 0))


def _difference(before: Mapping[_Key, _Number], after: Mapping[_Key, _Number]) -> dict[_Key, _Number]:
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
        "countedApart": window.counted_apart,
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
