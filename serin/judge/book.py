"""Every bet the judge holds: against "no harm" over the whole rollout, against "harm" afresh in each stage."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serin.judge import acceptance, events, latency, scores, split
from serin.judge.categories import EVENTS, REQUESTS, Categories
from serin.judge.policy import LATENCY, SCORES, Policy, metric_name
from serin.judge.portfolio import Portfolio, Weighted
from serin.judge.primitive import Floats
from serin.judge.reference import Reference


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must be shown before a stage is passed. `category` is the event it is about."""

    metric: str
    what: str
    category: int


@dataclass(frozen=True, slots=True)
class Book:
    """`harm` has two processes per event metric (ratio, floor), then latency, scores and the split.

    `metrics` names what is judged, in the order of `weights` and of `evidence`.
    """

    categories: Categories
    metrics: tuple[str, ...]
    weights: Floats
    harm: Portfolio
    claims: Portfolio | None
    claimed: tuple[Claim, ...]

    @classmethod
    def of(cls, policy: Policy, margin: float | None, latencies: Reference, score_values: Reference) -> Self:
        """`margin` is the stage's."""
        categories = Categories.of(policy, latencies.edges, score_values.edges)
        claimed = tuple(_claimed(categories))
        harm = Portfolio.of(_harm(policy, categories, latencies.below, score_values.below))
        claims = None if margin is None else Portfolio.of(_claims(policy, claimed, margin))
        shares = policy.shares
        return cls(categories, tuple(shares), np.array(list(shares.values())), harm, claims, claimed)

    def evidence(self, wealth: Floats, cash: float) -> tuple[Floats, float]:
        """The e-value of every metric and of the split."""
        processes = self.harm.evidence(wealth) + cash
        return self._by_metric(processes), float(processes[-1])

    def kept(self, wealth: Floats, start_share: float) -> Floats:
        """Of every metric, what its bets on harm now hold for each unit put into them at the start."""
        return self._by_metric(self.harm.evidence(wealth)) / start_share

    def claims_about(self, latencies_scores: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each claim is about latencies, about scores, where that is asked for."""
        asked = dict(zip((LATENCY, SCORES), latencies_scores.tolist(), strict=True))
        return np.array([asked.get(claim.metric, False) for claim in self.claimed])

    def harm_about(self, latencies_scores: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each bet on harm is about latencies, about scores, where that is asked for."""
        processes = np.zeros(self.harm.processes, dtype=np.bool_)
        processes[-3:-1] = latencies_scores
        return processes[self.harm.process]

    def harm_of_events(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Whether each bet on harm is about these events."""
        events = self.categories.row.events
        processes = np.zeros(self.harm.processes, dtype=np.bool_)
        processes[: 2 * len(events)] = np.repeat([name in names for name in events], 2)
        return processes[self.harm.process]

    def claims_of_events(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Whether each bet of the claims is about these events; there are some."""
        about = np.array([claim.metric in names for claim in self.claimed])
        return about if self.claims is None else about[self.claims.process]

    def _by_metric(self, processes: Floats) -> Floats:
        events = 2 * len(self.categories.row.events)
        return np.append(np.minimum(processes[0:events:2], processes[1:events:2]), processes[events:-1])


def _harm(
    policy: Policy, categories: Categories, latency_below: Floats, score_below: Floats
) -> Iterator[Iterator[Weighted]]:
    for k, metric in enumerate(policy.event_metrics):
        yield events.ratio_bets(metric, EVENTS + k)
        yield events.floor_bets(metric, EVENTS + k)
    yield latency.bets(latency_below, categories.latency)
    yield scores.bets(score_below, categories.score_up, categories.score_down, categories.score)
    yield split.bets(REQUESTS)


def _claimed(categories: Categories) -> Iterator[Claim]:
    for k, name in enumerate(categories.row.events):
        yield Claim(name, metric_name(name), EVENTS + k)
    for k, name in enumerate(latency.SLOW):
        yield Claim(LATENCY, f"latency above {name}", categories.slow + k)
    for k, name in enumerate(("lowest", "highest")):
        yield Claim(SCORES, f"{name} scores", categories.extreme + k)


def _claims(policy: Policy, claimed: tuple[Claim, ...], margin: float) -> Iterator[list[Weighted]]:
    acceptable = {metric.name: metric.acceptable_rate for metric in policy.event_metrics}
    for claim in claimed:
        ratio: list[Weighted] = list(acceptance.ratio_bets(claim.category, margin))
        if claim.metric not in acceptable:
            yield ratio
            continue
        rate: list[Weighted] = list(acceptance.rate_bets(claim.category, margin * acceptable[claim.metric]))
        yield [(acceptance.RATIO * w, bet) for w, bet in ratio] + [(acceptance.RATE * w, bet) for w, bet in rate]
