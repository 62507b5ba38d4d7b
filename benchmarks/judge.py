"""`make bench-judge`: the judge on invented traffic, beside the policies of other canary judges on the same requests.

Every request carries both arms' answers, so all judges see the same stream. Seeds are fixed: two runs give the same
figures, except for the time a window takes.
"""

import argparse
import json
import os
import statistics
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import scenarios
from benchmarks.common import Row, report, shown
from benchmarks.peers import (
    ARGO_DOCS,
    FLAGGER_DOCS,
    Limits,
    Looks,
    Traffic,
    Verdict,
    argo,
    calibrated,
    flagger,
    kayenta,
    looks_needed,
)
from benchmarks.peers import Table as LooksTable
from benchmarks.scenarios import SPLIT_OF_LABELS, Counted, LateLabels
from serin.judge import (
    Action,
    ArmCounts,
    EventMetric,
    JudgeSpec,
    LatencyMetric,
    Policy,
    ScoreMetric,
    State,
    Window,
    decide,
    observe,
    policy_for,
    start,
)
from serin.judge.cohorts import Cohort, Labels
from serin.judge.cohorts import windows as mature_windows
from serin.judge.simulate import Phase, Stream, run
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.plan import PROFILES

MINUTE_S: Final = 60
HORIZON_S: Final = 60 * MINUTE_S
RATES: Final = (100, 10, 1)
WINDOW_S: Final = {100: 1.0, 10: 1.0, 1: 5.0}
"""Length of a window at each rate."""

SCENARIOS: Final[dict[str, scenarios.Scenario]] = {
    "errors 1 → 1.5 %": scenarios.errors(0.015),
    "errors 1 → 2 %": scenarios.errors(0.02),
    "errors 1 → 5 %": scenarios.errors(0.05),
    "total failure": scenarios.errors(1.0),
    "p99 +20 %": scenarios.heavier_tail(0.2),
    "p99 +50 %": scenarios.heavier_tail(0.5),
    "p99 +100 %": scenarios.heavier_tail(1.0),
    "all latencies +20 %": scenarios.slower(1.2),
    "score collapse": scenarios.collapsed_scores,
    "score shift 0.3 sd": scenarios.shifted_scores(0.3),
    "leak": scenarios.leak,
}
HEALTHY: Final[dict[str, scenarios.Scenario]] = {
    "healthy": scenarios.healthy,
    "shared incident": scenarios.incident,
    "diurnal drift": scenarios.diurnal,
    "intended drift 0.05 sd": scenarios.shifted_scores(0.05),
}

SERIN: Final = "serin"
TIGHT: Final = "serin, m = 1.05"
STRICT: Final = "serin, strict"
POLICIES: Final = {
    SERIN: Policy(),
    TIGHT: Policy(latency=LatencyMetric(margin=1.05)),
    STRICT: Policy(scores=ScoreMetric(tolerance=0.0)),
}
TIGHTER: Final = {
    **dict.fromkeys(("p99 +20 %", "p99 +50 %", "p99 +100 %", "all latencies +20 %"), TIGHT),
    "score shift 0.3 sd": STRICT,
}
"""Where a tighter setting than the default is of interest, too."""

_EXPOSURE: Final = (
    ("total failure", SERIN, 10),
    ("score collapse", SERIN, 20),
    ("errors 1 → 5 %", SERIN, 200),
    ("p99 +100 %", TIGHT, 400),
    ("all latencies +20 %", TIGHT, 260),
    ("score shift 0.3 sd", STRICT, 200),
    ("errors 1 → 2 %", SERIN, 2000),
)
_SETTING: Final = {SERIN: "", TIGHT: ", margin 1.05", STRICT: ", strict"}
_SLOWEST: Final = ("errors 1 → 2 %", 10)

FLAGGER, FLAGGER_FITTED = "Flagger, docs", "Flagger, calibrated"
ARGO, ARGO_FITTED, KAYENTA = "Argo, docs", "Argo, calibrated", "Kayenta"
PEERS: Final = (FLAGGER, FLAGGER_FITTED, ARGO, ARGO_FITTED, KAYENTA)
FALSE_ROLLBACK_OF_PEERS: Final = 0.01
_ARGO_DOCS_MINUTES: Final = 5


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many runs of each kind; `healthy` and `harmful` per scenario, by rate; `bounded` where there is a bound."""

    healthy: Mapping[int, int]
    harmful: Mapping[int, int]
    bounded: int
    fitted: int
    times: Mapping[tuple[str, int], int]
    sticky: Mapping[Counted, int]
    pods: int
    labels: int
    windows: int


FULL: Final = Sizes(
    healthy={100: 2150, 10: 260, 1: 100},
    harmful={100: 150, 10: 100, 1: 30},
    bounded=500,
    fitted=600,
    times={("balanced", 100): 100, ("careful", 100): 40},
    sticky={Counted.CLIENT: 200, Counted.CLIENT_AND_SECOND: 100, Counted.REQUEST: 100},
    pods=500,
    labels=1000,
    windows=20_000,
)
QUICK: Final = Sizes(
    healthy={100: 20, 10: 6, 1: 2},
    harmful={100: 6, 10: 6, 1: 2},
    bounded=10,
    fitted=60,
    times={("balanced", 100): 4, ("careful", 100): 2},
    sticky=dict.fromkeys(Counted, 4),
    pods=10,
    labels=10,
    windows=300,
)


# ---- one stream, many judges


@dataclass(frozen=True, slots=True)
class Result:
    """How one judge ended one rollout. `harmed` is not known of peers."""

    phase: Phase
    t: float
    requests: int
    harmed: int | None = None

    @property
    def rolled_back(self) -> bool:
        return self.phase is Phase.ROLLED_BACK


@dataclass(frozen=True, slots=True)
class Job:
    """Streams `seeds` of one scenario at one rate. `judges` are names of POLICIES and PEERS."""

    scenario: str
    rps: int
    seeds: range
    judges: tuple[str, ...]
    plan: str = "fast"
    horizon_s: float = HORIZON_S
    limits: Mapping[str, Limits] | None = None


def generator(what: str, rps: float, seed: int) -> np.random.Generator:
    return np.random.default_rng((zlib.crc32(what.encode()), int(rps), seed))


def stream_of(scenario: str, rps: int, seed: int, horizon_s: float) -> Stream:
    change = {**SCENARIOS, **HEALTHY}[scenario]
    return scenarios.stream(generator(scenario, rps, seed), rps, horizon_s, change)


def judged(stream: Stream, name: str, plan: str = "fast", window_s: float = 1.0) -> Result:
    outcome = run(stream, plan, POLICIES[name], window_s=window_s)
    return Result(outcome.phase, outcome.t, outcome.candidate_requests, outcome.harmed_requests)


def work(job: Job) -> list[dict[str, Result]]:
    """Of each stream, how every judge ended it."""
    results = []
    for seed in job.seeds:
        stream = stream_of(job.scenario, job.rps, seed, job.horizon_s)
        traffic = Traffic(stream)
        results.append(
            {
                name: judged(stream, name, job.plan, WINDOW_S[job.rps])
                if name in POLICIES
                else _peer(name, traffic, job.limits or {})
                for name in job.judges
            }
        )
    return results


def _peer(name: str, traffic: Traffic, limits: Mapping[str, Limits]) -> Result:
    verdict = _decided(name, traffic, limits)
    return Result(Phase.ROLLED_BACK if verdict.rolled_back else Phase.PROMOTED, verdict.t, verdict.requests)


def _decided(name: str, traffic: Traffic, limits: Mapping[str, Limits]) -> Verdict:
    if name == FLAGGER:
        return flagger(traffic.candidate, FLAGGER_DOCS)
    if name == ARGO:
        return argo(traffic.candidate, ARGO_DOCS, interval=_ARGO_DOCS_MINUTES)
    if name == FLAGGER_FITTED:
        return flagger(traffic.candidate, limits[name])
    if name == ARGO_FITTED:
        return _argo_by_minute(traffic.candidate, limits[name])
    return kayenta(traffic.candidate, traffic.baseline)


def _argo_by_minute(looks: Looks, limits: Limits) -> Verdict:
    return argo(looks, limits, interval=1)


# ---- what is run in other processes besides


def fitting_looks(rps: int, seeds: range) -> list[LooksTable]:
    """What peers see of healthy candidates, on streams of their own."""
    horizon_s = 30 * MINUTE_S
    streams = (scenarios.stream(generator("fitting", rps, seed), rps, horizon_s) for seed in seeds)
    return [looks_needed(Traffic(stream)) for stream in streams]


def fit(policy: Callable[[Looks, Limits], Verdict], healthy: Sequence[LooksTable]) -> Limits:
    return calibrated(policy, healthy, FALSE_ROLLBACK_OF_PEERS)


def sticky_rollbacks(burst: int, counted: Counted, seeds: range) -> int:
    streams = (
        scenarios.sticky(generator(f"sticky {burst}", 100, seed), 100, 30 * MINUTE_S, burst, counted)
        for seed in seeds
    )
    return sum(judged(stream, SERIN).rolled_back for stream in streams)


def pod_rollbacks(candidate_pods: int, seeds: range) -> int:
    rolled_back = 0
    for seed in seeds:
        rng = generator(f"pods {candidate_pods}", 100, seed)
        pods = scenarios.uneven_pods(rng, 0.05, candidate_pods)
        rolled_back += judged(scenarios.stream(rng, 100, 15 * MINUTE_S, pods), SERIN).rolled_back
    return rolled_back


# ---- labels that come late

WRONG: Final = "wrong_decisions"
LABEL_POLICY: Final = policy_for(PROFILES["fast"], JudgeSpec(metrics=(EventMetric(name=WRONG, weight=10.0),)))
COHORT_S: Final = MINUTE_S
LONGEST_DELAY_S: Final = 50 * MINUTE_S
LABELLED_S: Final = 30 * MINUTE_S


def label_windows_by_cohort(labels: LateLabels) -> Iterator[Window]:
    """Each cohort's labels, as they are known when it is mature."""
    cohort = (labels.t / COHORT_S).astype(int)
    known = labels.known_t <= (cohort + 1) * COHORT_S + LONGEST_DELAY_S
    everything = np.ones_like(known)
    counts = [_per_arm(cohort, labels.to_candidate, which) for which in (everything, known, known & labels.bad)]
    for k, (requests, labelled, bad) in enumerate(zip(*counts, strict=True)):
        start_s, end_s = float(k * COHORT_S), float((k + 1) * COHORT_S)
        stable, candidate = (Labels(int(requests[arm]), int(labelled[arm]), float(bad[arm])) for arm in (0, 1))
        cohorts = [Cohort(k, start_s, end_s, 0, stable, candidate)]
        yield from mature_windows(cohorts, WRONG, end_s + LONGEST_DELAY_S, longest_delay_s=LONGEST_DELAY_S)


def label_windows_as_they_come(labels: LateLabels) -> Iterator[Window]:
    """What two counters per arm give: requests when they come, wrong decisions when they are known."""
    everything = np.ones_like(labels.bad)
    requests = _per_arm((labels.t / COHORT_S).astype(int), labels.to_candidate, everything)
    bad = _per_arm((labels.known_t / COHORT_S).astype(int), labels.to_candidate, labels.bad)
    for k, ours in enumerate(requests):
        share = SPLIT_OF_LABELS[len(SPLIT_OF_LABELS) * k // len(requests)]
        stable, candidate = (ArmCounts(int(ours[arm]), {WRONG: int(bad[k, arm])}) for arm in (0, 1))
        yield Window(k, float(k * COHORT_S), float((k + 1) * COHORT_S), 0, share, stable, candidate)


def _per_arm(part: NDArray[np.intp], to_candidate: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Counts [part, arm] of the chosen; arm 0 is stable."""
    size = int(part.max()) + 1
    return np.bincount((2 * part + to_candidate)[chosen], minlength=2 * size).reshape(size, 2)


def label_rollbacks(windows_of: Callable[[LateLabels], Iterator[Window]], ratio: float, seeds: range) -> int:
    rolled_back = 0
    for seed in seeds:
        state = start(LABEL_POLICY)
        for window in windows_of(scenarios.late_labels(generator("late labels", 20, seed), 20, LABELLED_S, ratio)):
            state = observe(state, window)
        rolled_back += decide(state, LABELLED_S).action is Action.ROLLBACK
    return rolled_back


# ---- the pool


@dataclass(slots=True)
class Pool:
    """Two processes, and a line now and then about how far they are."""

    executor: ProcessPoolExecutor
    began_s: float

    def map(self, what: str, function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        results = []
        count = len(arguments[0])
        for result in self.executor.map(function, *arguments):
            results.append(result)
            if len(results) == count or len(results) % max(1, count // 5) == 0:
                elapsed_s = time.monotonic() - self.began_s
                print(f"{elapsed_s:5.0f} s  {what}: {len(results)} of {count}", file=sys.stderr, flush=True)
        return results


def parts(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


# ---- the rows


Cells = dict[tuple[str, int, str], list[Result]]
"""(scenario, rate, judge) -> its results."""


def collect(pool: Pool, what: str, jobs: Sequence[Job]) -> Cells:
    cells: Cells = {}
    for job, results in zip(jobs, pool.map(what, work, jobs), strict=True):
        for by_judge in results:
            for judge, result in by_judge.items():
                cells.setdefault((job.scenario, job.rps, judge), []).append(result)
    return cells


def fitted_limits(pool: Pool, sizes: Sizes) -> dict[int, dict[str, Limits]]:
    limits = {}
    for rps in RATES:
        seeds = parts(sizes.fitted, 20)
        chunks = pool.map(f"healthy streams for peers at {rps} rps", fitting_looks, [rps] * len(seeds), seeds)
        healthy = [table for chunk in chunks for table in chunk]
        policies = {FLAGGER_FITTED: flagger, ARGO_FITTED: _argo_by_minute}
        found = pool.map(f"peers calibrated at {rps} rps", fit, list(policies.values()), [healthy] * len(policies))
        limits[rps] = dict(zip(policies, found, strict=True))
    return limits


def healthy_jobs(sizes: Sizes, limits: Mapping[int, Mapping[str, Limits]]) -> Iterator[Job]:
    """Peers judge as many healthy streams as harmful ones, over the whole hour; ours judges all of them."""
    for rps in RATES:
        both = sizes.harmful[rps]
        for scenario in HEALTHY:
            for seeds in parts(both, 10):
                yield Job(scenario, rps, seeds, (SERIN, *PEERS), limits=limits[rps])
            horizon_s = 15 * MINUTE_S if rps == 100 else HORIZON_S
            for seeds in parts(sizes.healthy[rps] - both, 20):
                yield Job(scenario, rps, range(both + seeds.start, both + seeds.stop), (SERIN,), horizon_s=horizon_s)


def harmful_jobs(sizes: Sizes, limits: Mapping[int, Mapping[str, Limits]]) -> Iterator[Job]:
    for rps in RATES:
        for scenario in SCENARIOS:
            ours = (SERIN, TIGHTER[scenario]) if scenario in TIGHTER else (SERIN,)
            for seeds in parts(sizes.harmful[rps], 10):
                yield Job(scenario, rps, seeds, (*ours, *PEERS), limits=limits[rps])
    for scenario, rps, judge in ((*_SLOWEST, SERIN), *((scenario, 100, judge) for scenario, judge, _ in _EXPOSURE)):
        for seeds in parts(sizes.bounded - sizes.harmful[rps], 20):
            seeds = range(sizes.harmful[rps] + seeds.start, sizes.harmful[rps] + seeds.stop)
            yield Job(scenario, rps, seeds, (judge,), horizon_s=HORIZON_S if rps < 100 else 20 * MINUTE_S)


def share(results: Sequence[Result]) -> float:
    """Percent rolled back."""
    return 100 * sum(result.rolled_back for result in results) / len(results)


def exposed(results: Sequence[Result]) -> float:
    """Median requests of those rolled back; NaN if there are none."""
    return statistics.median([result.requests for result in results if result.rolled_back] or [np.nan])


def promoted_after_s(results: Sequence[Result]) -> float:
    return statistics.median(result.t if result.phase is Phase.PROMOTED else np.inf for result in results)


def false_rollback_rows(cells: Cells) -> list[Row]:
    ours = {key: results for key, results in cells.items() if key[2] == SERIN}
    everything = [result for results in ours.values() for result in results]
    rows = [Row(f"healthy candidates rolled back, of {len(everything):,}", share(everything), "%", "<= 0.2")]
    for scenario in HEALTHY:
        some = [result for key, results in ours.items() if key[0] == scenario for result in results]
        rows.append(Row(f"… {scenario}, of {len(some):,}", share(some), "%"))
    return rows


def exposure_rows(cells: Cells) -> Iterator[Row]:
    for scenario, judge, bound in _EXPOSURE:
        results = cells[scenario, 100, judge]
        what = f"exposed until rollback at 100 rps: {scenario}{_SETTING[judge]} ({share(results):.0f} % caught)"
        yield Row(what, exposed(results), "requests", f"<= {bound}")
    yield Row("errors 1 → 2 % caught at 10 rps", share(cells[*_SLOWEST, SERIN]), "%", ">= 95")
    for scenario, bound in (("total failure", 100), ("errors 1 → 5 %", 6)):
        ours = exposed(cells[scenario, 100, SERIN])
        best = min(exposed(cells[scenario, 100, judge]) for judge in (FLAGGER_FITTED, ARGO_FITTED))
        against = f"{scenario} at 100 rps: fewer exposed than"
        yield Row(f"{against} the best calibrated policy model", best / ours, "×", f">= {bound}")
        yield Row(f"{against} Kayenta's", exposed(cells[scenario, 100, KAYENTA]) / ours, "×", f">= {bound}")


def leak_rows(pool: Pool, sizes: Sizes, cells: Cells) -> Iterator[Row]:
    """A leak needs time to show: the fast profile is done before it hurts."""
    seeds = parts(sizes.harmful[100], 10)
    patient = collect(pool, "leaks", [Job("leak", 100, some, (SERIN,), "balanced") for some in seeds])
    for plan, found, bound in (("fast", cells, ""), ("balanced", patient, ">= 99")):
        results = found["leak", 100, SERIN]
        what = f"leak caught at 100 rps, {plan} (median {shown(exposed(results))} requests exposed)"
        yield Row(what, share(results), "%", bound)


def time_rows(pool: Pool, sizes: Sizes, healthy: Cells) -> Iterator[Row]:
    jobs = [
        Job("healthy", rps, seeds, (SERIN,), plan)
        for (plan, rps), count in sizes.times.items()
        for seeds in parts(count, 5)
    ]
    found: dict[tuple[str, int], list[Result]] = {("fast", rps): healthy["healthy", rps, SERIN] for rps in (100, 10)}
    for job, results in zip(jobs, pool.map("times to 100 %", work, jobs), strict=True):
        found.setdefault((job.plan, job.rps), []).extend(result[SERIN] for result in results)
    bounds = {("fast", 100): "<= 3.5", ("balanced", 100): "<= 8", ("fast", 10): "<= 25"}
    for (plan, rps), results in found.items():
        minutes = promoted_after_s(results) / MINUTE_S
        yield Row(f"healthy to 100 %, {plan} at {rps} rps", minutes, "min", bounds.get((plan, rps), ""))


def routing_rows(pool: Pool, sizes: Sizes) -> Iterator[Row]:
    for counted, runs in sizes.sticky.items():
        for burst in (2, 5, 10):
            seeds = parts(runs, 10)
            what = f"sticky bursts of {burst}, counted once per {counted}"
            found = pool.map(what, sticky_rollbacks, [burst] * len(seeds), [counted] * len(seeds), seeds)
            bound = "<= 1" if counted is Counted.CLIENT else ""
            yield Row(f"{what}: rolled back, of {runs}", 100 * sum(found) / runs, "%", bound)
    seeds = parts(sizes.pods, 10)
    for pods in (1, 2):
        what = f"same model, pods differ by 5 % (sd), {pods} candidate pod{'s' * (pods > 1)} of {4 + pods}"
        found = pool.map(what, pod_rollbacks, [pods] * len(seeds), seeds)
        yield Row(f"{what}: rolled back, of {sizes.pods}", 100 * sum(found) / sizes.pods, "%", "<= 1")


def label_rows(pool: Pool, sizes: Sizes) -> Iterator[Row]:
    seeds = parts(sizes.labels, 50)
    ways = {"by mature cohort": label_windows_by_cohort, "as they come": label_windows_as_they_come}
    cases = (("by mature cohort", 1.0, "<= 1"), ("as they come", 1.0, ""), ("by mature cohort", 1.5, ""))
    for way, ratio, bound in cases:
        candidate = "harmless" if ratio == 1 else f"{ratio:g} times the wrong decisions"
        what = f"late labels, 2 min on the candidate, 10 min on stable, {way}: {candidate}"
        found = pool.map(what, label_rollbacks, [ways[way]] * len(seeds), [ratio] * len(seeds), seeds)
        yield Row(f"{what}, rolled back, of {sizes.labels:,}", 100 * sum(found) / sizes.labels, "%", bound)


# ---- one window


def windows(count: int) -> Iterator[Window]:
    """A second each of a healthy service at 100 rps, a quarter of it on the candidate, and a metric of the user's."""
    rng = np.random.default_rng(7)
    stream = scenarios.stream(rng, 100, 60)
    latency = np.searchsorted(1000 * np.array(LATENCY_EDGES_S), stream.lat_stable)
    score = np.searchsorted(SCORE_EDGES, stream.score_stable)

    def arm(requests: int) -> ArmCounts:
        failed = int(rng.binomial(requests, scenarios.ERROR_RATE))
        rows = rng.integers(len(latency), size=requests - failed)
        events = {
            "errors": failed,
            "rejected": rng.binomial(requests, 0.002),
            "refused": rng.binomial(requests, 0.05),
        }
        return ArmCounts(requests, events, Counter(latency[rows].tolist()), Counter(score[rows].tolist()))

    for k in range(count):
        candidate = int(rng.binomial(100, 0.25))
        yield Window(k, float(k), k + 1.0, 1, 0.25, arm(100 - candidate), arm(candidate))


def window_rows(count: int) -> list[Row]:
    judge = Policy(metrics=(EventMetric(name="refused", weight=0.1),))
    state = start(policy_for(PROFILES["careful"], judge))
    times_us: list[float] = []
    size_kb = {}
    for window in windows(count):
        began_ns = time.process_time_ns()
        state = observe(state, window)
        decide(state, window.end_s)
        times_us.append((time.process_time_ns() - began_ns) / 1000)
        if len(times_us) in (10, count):
            size_kb[len(times_us)] = document_kb(state)
    early, late = (statistics.median(some) for some in (times_us[: count // 4], times_us[-count // 4 :]))
    return [
        Row("CPU time of observe and decide, all metrics on, median", statistics.median(times_us), "µs", "<= 250"),
        Row("… the last quarter of the windows vs the first", late / early, "×", "<= 1.2"),
        *(Row(f"the judge's state after {seen:,} windows", size, "kB", "<= 32") for seen, size in size_kb.items()),
    ]


def document_kb(state: State) -> float:
    return len(json.dumps(state.dump()).encode()) / 1000


# ---- the whole


def comparison(cells: Cells) -> list[dict[str, Any]]:
    """Every judge in every scenario, also where ours is behind."""
    return [
        {
            "scenario": scenario,
            "rps": rps,
            "judge": judge if judge in POLICIES else f"{judge} (policy model)",
            "runs": len(results),
            "rolled_back_percent": round(share(results), 2),
            "median_exposed": None if np.isnan(exposed(results)) else exposed(results),
            "median_harmed": _median_harmed(results),
        }
        for (scenario, rps, judge), results in cells.items()
    ]


def _median_harmed(results: Sequence[Result]) -> float | None:
    harmed = [result.harmed for result in results if result.rolled_back and result.harmed is not None]
    return statistics.median(harmed) if harmed else None


def print_comparison(cells: Cells) -> None:
    judges = (SERIN, TIGHT, STRICT, *PEERS)
    console = Console(width=None if sys.stdout.isatty() else 160)
    for rps in RATES:
        title = f"{rps} rps: median candidate requests until rollback (rolled back, if not all); peers: policy models"
        table = Table(title=title, title_justify="left")
        table.add_column("scenario")
        for judge in judges:
            table.add_column(judge, justify="right")
        for scenario in (*HEALTHY, *SCENARIOS):
            table.add_row(scenario, *(_cell(cells.get((scenario, rps, judge))) for judge in judges))
        console.print(table)


def _cell(results: Sequence[Result] | None) -> str:
    if results is None:
        return ""
    caught = share(results)
    if not caught:
        return "none"
    return shown(exposed(results)) if caught == 100 else f"{shown(exposed(results))} ({caught:.2g} %)"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few runs, figures of no worth, nothing is written")
    quick = parser.parse_args(arguments).quick
    sizes = QUICK if quick else FULL
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(2) as executor:
        pool = Pool(executor, time.monotonic())
        limits = fitted_limits(pool, sizes)
        healthy = collect(pool, "healthy candidates", list(healthy_jobs(sizes, limits)))
        harmful = collect(pool, "harmful candidates", list(harmful_jobs(sizes, limits)))
        rows = [
            *false_rollback_rows(healthy),
            *exposure_rows(harmful),
            *leak_rows(pool, sizes, harmful),
            *time_rows(pool, sizes, healthy),
            *routing_rows(pool, sizes),
            *label_rows(pool, sizes),
        ]
        took_min = (time.monotonic() - pool.began_s) / MINUTE_S
    rows += window_rows(sizes.windows)
    rows.append(Row("duration of the simulation", took_min, "min", "<= 15"))
    cells = {**healthy, **harmful}
    print_comparison(cells)
    return report("judge", rows, packages=("numpy",), details={"comparison": comparison(cells)}, keep=not quick)


if __name__ == "__main__":
    sys.exit(main())
