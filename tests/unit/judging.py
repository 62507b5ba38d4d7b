"""Windows and judges for tests: a service with 1 % errors, latencies around 80 ms, scores over the whole range."""

from collections.abc import Mapping

import numpy as np

from serin.judge import ArmCounts, Policy, State, Window, observe, start
from serin.judge.state import BEFORE
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES

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


def chances(edges: tuple[float, ...], values: np.ndarray) -> np.ndarray:
    """The part of the values in each bucket."""
    return np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values)


LATENCY = chances(LATENCY_EDGES_S, LATENCY_S)
SCORES = chances(SCORE_EDGES, SCORE)


def draw(
    rng: np.random.Generator,
    requests: int,
    rates: Mapping[str, float],
    latency: np.ndarray = LATENCY,
    score: np.ndarray = SCORES,
) -> ArmCounts:
    """One arm's window: binomial events, latencies and scores from the given chances per bucket."""
    buckets = [rng.multinomial(requests, each) for each in (latency, score)]
    return ArmCounts(
        requests,
        {name: int(rng.binomial(requests, rate)) for name, rate in rates.items()},
        *({int(k): int(counts[k]) for k in np.flatnonzero(counts)} for counts in buckets),
    )
