"""What the judge says."""

from dataclasses import dataclass
from enum import StrEnum


class Action(StrEnum):
    ADVANCE = "advance"
    WAIT = "wait"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The state of one metric.

    `log10_e` is log10 of the e-value against "no harm". `safe` says whether harm of the stage's margin is rejected.
    What only one revision has reported, or none, is not `judged`, nor is the split where no window had a known share.
    """

    metric: str
    log10_e: float
    judged: bool
    safe: bool
    stable_requests: int
    candidate_requests: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is one sentence for people. `alert` is set when a person should look (sample-ratio mismatch);
    the judge then never advances. `needs_requests` estimates the candidate requests still needed to advance,
    `needs_s` the seconds at the traffic seen so far; None when unknown or nothing is needed. `would` is set in a dry
    run: what the judge would have done, while `action` goes by time alone.
    """

    action: Action
    reason: str
    log10_e: float
    evidence: tuple[Evidence, ...]
    blamed: str | None = None
    would: Action | None = None
    alert: str | None = None
    needs_requests: int | None = None
    needs_s: float | None = None
