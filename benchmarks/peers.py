"""How other canary judges would decide on the same requests: policy models written from their source and their
documentation, not their binaries. Nobody is charged for the delay of telemetry or of actuation.

Each policy reads what its Prometheus queries would give, counts over whole minutes, and says when it rolled back.
All go through 5, 25 and 50 % before 100 %.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np

from serin.judge.primitive import Floats
from serin.judge.simulate import Stream

SHARES: Final = (0.05, 0.25, 0.50)
_MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Look:
    """One arm between two times. Everything but `requests` is NaN where there is nothing to compute it from."""

    requests: int
    error_rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_score: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`t`: seconds until the decision; `requests`: those the candidate got until then."""

    rolled_back: bool
    t: float
    requests: int


Looks = Callable[[int, int, float], Look]
"""(first minute, minutes, the candidate's share) -> what the candidate did."""


class Traffic:
    """A stream as the peers see it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.candidate: Looks = cache(lambda first, minutes, share: self._look("candidate", first, minutes, 0, share))
        self.baseline: Looks = cache(
            lambda first, minutes, share: self._look("stable", first, minutes, share, 2 * share)
        )
        """Stable's requests with as large a share of the traffic as the candidate's."""

    def _look(self, arm: str, first: int, minutes: int, low: float, high: float) -> Look:
        stream = self._stream
        begin, end = np.searchsorted(stream.t, (_MINUTE_S * first, _MINUTE_S * (first + minutes)))
        rows = slice(int(begin), int(end))
        chosen = (stream.u[rows] >= low) & (stream.u[rows] < high)
        failed = getattr(stream, f"err_{arm}")[rows][chosen]
        latency, score = (getattr(stream, f"{what}_{arm}")[rows][chosen][~failed] for what in ("lat", "score"))
        if not len(latency):
            return Look(len(failed), float(failed.mean()) if len(failed) else np.nan, *(np.nan,) * 4)
        p50, p90, p99 = np.quantile(latency, (0.5, 0.9, 0.99)).tolist()
        return Look(len(failed), float(failed.mean()), p50, p90, p99, float(score.mean()))


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of a user's configuration; a value at its limit passes."""

    error_rate: float
    p99_ms: float
    score_low: float = -np.inf
    score_high: float = np.inf

    def broken(self, look: Look) -> list[str]:
        """The metrics that are beyond their limits; NaN never is."""
        checks = {
            "errors": look.error_rate > self.error_rate,
            "latency": look.p99_ms > self.p99_ms,
            "scores": look.mean_score < self.score_low or look.mean_score > self.score_high,
        }
        return [metric for metric, failed in checks.items() if failed]


FLAGGER_DOCS: Final = Limits(error_rate=0.01, p99_ms=500)
ARGO_DOCS: Final = Limits(error_rate=0.05, p99_ms=500)


def flagger(looks: Looks, limits: Limits, *, threshold: int = 5, horizon: int = 60) -> Verdict:
    """A check a minute; a passed one moves on. Failed checks add up over all metrics and stages, no traffic fails,
    and the threshold is looked at on the tick after it was reached (pkg/controller/scheduler.go)."""
    failures, stage, requests = 0, 0, 0
    for minute in range(horizon):
        look = looks(minute, 1, SHARES[stage])
        requests += look.requests
        if failures >= threshold:
            return Verdict(True, _MINUTE_S * (minute + 1), requests)
        if not look.requests or limits.broken(look):
            failures += 1
        elif stage == len(SHARES) - 1:
            return Verdict(False, _MINUTE_S * (minute + 1), requests)
        else:
            stage += 1
    return Verdict(False, _MINUTE_S * horizon, requests)


def argo(looks: Looks, limits: Limits, *, interval: int, failure_limit: int = 3, pause: int = 10) -> Verdict:
    """Steps with pauses of ten minutes beside an analysis every `interval` minutes, which fails when one metric has
    failed more than `failure_limit` times in all (analysis/analysis.go)."""
    failures: Counter[str] = Counter()
    requests = 0
    for minute in range(0, pause * len(SHARES), interval):
        look = looks(minute, interval, SHARES[minute // pause])
        requests += look.requests
        failures.update(limits.broken(look))
        if failures and max(failures.values()) > failure_limit:
            return Verdict(True, _MINUTE_S * (minute + interval), requests)
    return Verdict(False, _MINUTE_S * pause * len(SHARES), requests)


_CRITICAL: Final = "error_rate"
_METRICS: Final = {_CRITICAL: False, "p50_ms": False, "p90_ms": False, "p99_ms": False, "mean_score": True}
"""Whether a metric may not fall either."""
_MARGINAL, _PASS = 75, 95


def kayenta(candidate: Looks, baseline: Looks, *, points: int = 20) -> Verdict:
    """Twenty minutes a stage, judged after ten (goes on above the marginal score) and after twenty (must pass)."""
    requests = 0
    for stage, share in enumerate(SHARES):
        first = stage * points
        for minutes in (points // 2, points):
            arms = [
                [looks(minute, 1, share) for minute in range(first, first + minutes)]
                for looks in (candidate, baseline)
            ]
            score = _kayenta_score(*arms)
            if score <= _MARGINAL if minutes < points else score < _PASS:
                requests += sum(look.requests for look in arms[0])
                return Verdict(True, _MINUTE_S * (first + minutes), requests)
        requests += sum(look.requests for look in arms[0])
    return Verdict(False, _MINUTE_S * points * len(SHARES), requests)


def _kayenta_score(candidate: Sequence[Look], baseline: Sequence[Look]) -> float:
    passed = 0
    for metric, falls in _METRICS.items():
        values = [np.array([getattr(look, metric) for look in arm]) for arm in (candidate, baseline)]
        differs = mann_whitney_differs(*(arm[~np.isnan(arm)] for arm in values), falls=falls)
        if differs and metric == _CRITICAL:
            return 0.0
        passed += not differs
    return 100 * passed / len(_METRICS)


def mann_whitney_differs(
    experiment: Floats, control: Floats, *, falls: bool, confidence: float = 0.98, tolerance: float = 0.25
) -> bool:
    """Whether the confidence interval of the shift lies beyond `tolerance` times its Hodges-Lehmann estimate, above
    or, if it `falls`, below (MannWhitneyClassifier.scala). The interval is that of R's wilcox.test for large samples.
    """
    n, m = len(experiment), len(control)
    if n < 3 or m < 3:
        return False
    shifts = np.sort(np.subtract.outer(experiment, control), axis=None)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first = max(0, round(n * m / 2 - z * np.sqrt(n * m * (n + m + 1) / 12)))
    tolerated = tolerance * abs(float(np.median(shifts)))
    return bool(shifts[first] > tolerated or (falls and shifts[-1 - first] < -tolerated))


Table = dict[tuple[int, int, float], Look]


def looks_needed(traffic: Traffic) -> Table:
    """All that Flagger and Argo may look at in a healthy rollout, a minute at a time."""
    early = [(minute, 1, share) for minute in range(10) for share in SHARES]
    later = [(minute, 1, SHARES[minute // 10]) for minute in range(10, 30)]
    return {key: traffic.candidate(*key) for key in {*early, *later}}


def calibrated(policy: Callable[[Looks, Limits], Verdict], healthy: Sequence[Table], false_rollback: float) -> Limits:
    """The tightest limits, as quantiles of what healthy candidates do in a minute, that roll back at most this share
    of them: an oracle no user has."""
    seen = [[look for key, look in table.items() if key[2] == SHARES[0]] for table in healthy]
    values = {
        name: np.array([getattr(look, name) for looks in seen for look in looks])
        for name in ("error_rate", "p99_ms", "mean_score")
    }

    def limits(level: float) -> Limits:
        errors, p99 = (float(np.nanquantile(values[name], 1 - level)) for name in ("error_rate", "p99_ms"))
        low, high = np.nanquantile(values["mean_score"], (level / 2, 1 - level / 2)).tolist()
        return Limits(errors, p99, low, high)

    def rolled_back(level: float) -> float:
        chosen = limits(level)
        return float(np.mean([policy(lambda *key, t=table: t[key], chosen).rolled_back for table in healthy]))

    tight, loose = 0.5, 1e-6
    for _ in range(20):
        middle = float(np.sqrt(tight * loose))
        tight, loose = (middle, loose) if rolled_back(middle) > false_rollback else (tight, middle)
    return limits(loose)
