"""Windows and judges for tests: a service with 1 % errors, latencies around 80 ms, scores over the whole range."""

from collections.abc import Mapping

import numpy as np

from serin.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.judge import ArmCounts, Policy, State, Window, observe, start
from serin.judge.state import BEFORE

RNG = np.random.default_rng(7)
LATENCY_S = 0.08 * np.exp(0.5 * RNG.standard_normal(4000))
SCORE = RNG.beta(1.5, 3.0, 4000)


def histogram(edges: tuple[float, ...], values: np.ndarray) -> dict[int, int]:
    buckets, counts = np.unique(np.searchsorted(edges, values), return_counts=True)
    return dict(zip(buckets.tolist(), counts.tolist(), strict=True))


def arm(
    requests: int,
    errors: int = 0,
    *,
    latency_s: np.ndarray | None = None,
    score: np.ndarray | None = None,
    **events: int,
) -> ArmCounts:
    return ArmCounts(
        requests,
        {"errors": errors, **events},
        {} if latency_s is None else histogram(LATENCY_EDGES_S, latency_s),
        {} if score is None else histogram(SCORE_EDGES, score),
    )


def window(
    number: int, stable: ArmCounts, candidate: ArmCounts, *, share: float | None = 0.05, stage: int = 0
) -> Window:
    """Window `number` lasts from second number to number + 1."""
    return Window(number, float(number), number + 1.0, stage, share, stable, candidate)


def taught(policy: Policy | None = None) -> State:
    """A judge that has seen an hour of stable before the rollout."""
    history = arm(len(SCORE), 40, latency_s=LATENCY_S, score=SCORE)
    return observe(start(policy or Policy()), window(0, history, ArmCounts(), share=0.0, stage=BEFORE))


def draw(
    rng: np.random.Generator,
    requests: int,
    rates: Mapping[str, float],
    *,
    slower: float = 1.0,
    moved: float = 0.0,
) -> ArmCounts:
    """One arm's window: binomial events, latencies and scores drawn from stable's, changed as told."""
    return ArmCounts(
        requests,
        {name: int(rng.binomial(requests, rate)) for name, rate in rates.items()},
        histogram(LATENCY_EDGES_S, slower * rng.choice(LATENCY_S, requests)),
        histogram(SCORE_EDGES, np.clip(rng.choice(SCORE, requests) + moved, 0.001, 0.999)),
    )
