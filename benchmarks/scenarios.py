"""Invented request streams: a baseline service, what may go wrong with a candidate, and what only looks like it.

Baseline: 1 % errors; latency 80 ms times a lognormal (sigma 0.5), 2 % of it times a Pareto(2.5) factor; scores
sigmoid(N(-1, 1)). A candidate answers the same request as stable does, changed by the scenario.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Final

import numpy as np

from serin.judge.primitive import Floats
from serin.judge.simulate import Bools, Stream

ERROR_RATE: Final = 0.01
_P90_MS, _P99_MS = 151.8, 265.8


@dataclass(frozen=True, slots=True)
class Arms:
    """What scenarios change: error rate, latency in ms and logit of the score for both arms, per request."""

    rate_stable: Floats
    rate_candidate: Floats
    lat_stable: Floats
    lat_candidate: Floats
    logit_stable: Floats
    logit_candidate: Floats


Scenario = Callable[[Arms, Floats], Arms]


def healthy(arms: Arms, t: Floats) -> Arms:
    return arms


def errors(rate: float) -> Scenario:
    return lambda arms, t: replace(arms, rate_candidate=np.full_like(t, rate))


def slower(factor: float) -> Scenario:
    return lambda arms, t: replace(arms, lat_candidate=factor * arms.lat_candidate)


def heavier_tail(increase: float) -> Scenario:
    """Stretch what lies above p90, on a log scale, so that p99 grows by `increase` (0.5 is half as much again)."""
    power = np.log((1 + increase) * _P99_MS / _P90_MS) / np.log(_P99_MS / _P90_MS)

    def change(arms: Arms, t: Floats) -> Arms:
        stretched = _P90_MS * (arms.lat_candidate / _P90_MS) ** power
        return replace(arms, lat_candidate=np.where(arms.lat_candidate > _P90_MS, stretched, arms.lat_candidate))

    return change


def shifted_scores(deviations: float) -> Scenario:
    return lambda arms, t: replace(arms, logit_candidate=arms.logit_candidate + deviations)


def collapsed_scores(arms: Arms, t: Floats) -> Arms:
    return replace(arms, logit_candidate=np.zeros_like(t))


def leak(arms: Arms, t: Floats) -> Arms:
    """Latency grows by 5 % a minute, from minute 6 on also the error rate by half a point a minute."""
    minutes = np.maximum(t, 0.0) / 60
    return replace(
        arms,
        rate_candidate=arms.rate_candidate + 0.005 * np.maximum(minutes - 6, 0.0),
        lat_candidate=arms.lat_candidate * (1 + 0.05 * minutes),
    )


def incident(arms: Arms, t: Floats) -> Arms:
    """Both arms suffer from 90 s to 270 s: 10 % errors, twice the latency."""
    during = (t >= 90) & (t < 270)
    return replace(
        arms,
        rate_stable=np.where(during, 0.10, arms.rate_stable),
        rate_candidate=np.where(during, 0.10, arms.rate_candidate),
        lat_stable=np.where(during, 2.0, 1.0) * arms.lat_stable,
        lat_candidate=np.where(during, 2.0, 1.0) * arms.lat_candidate,
    )


def diurnal(arms: Arms, t: Floats) -> Arms:
    """Both arms' error rate swings between 0.5 % and 2 %, their latency by a quarter, once in 20 minutes."""
    wave = np.sin(2 * np.pi * t / 1200)
    return replace(
        arms,
        rate_stable=arms.rate_stable * 2**wave,
        rate_candidate=arms.rate_candidate * 2**wave,
        lat_stable=arms.lat_stable * 1.25**wave,
        lat_candidate=arms.lat_candidate * 1.25**wave,
    )


def uneven_pods(rng: np.random.Generator, sd: float, candidate_pods: int, stable_pods: int = 4) -> Scenario:
    """The same model on both arms, but every pod is slower or faster than average by a factor of its own."""

    def factor(pods: int, requests: int) -> Floats:
        return np.exp(sd * rng.standard_normal(pods))[rng.integers(pods, size=requests)]

    return lambda arms, t: replace(
        arms,
        lat_stable=arms.lat_stable * factor(stable_pods, len(t)),
        lat_candidate=arms.lat_candidate * factor(candidate_pods, len(t)),
    )


def stream(rng: np.random.Generator, rps: float, horizon_s: float, scenario: Scenario = healthy) -> Stream:
    """Poisson arrivals at `rps` from -history to `horizon_s`; history is an hour, but at most 10,000 requests."""
    history_s = min(3600.0, 10_000 / rps)
    size = rng.poisson(rps * (history_s + horizon_s))
    t = np.sort(rng.uniform(-history_s, horizon_s, size))
    latency = 80 * np.exp(0.5 * rng.standard_normal(size))
    tail = rng.random(size) < 0.02
    latency[tail] *= (1 - rng.random(int(tail.sum()))) ** (-1 / 2.5)
    logit = rng.standard_normal(size) - 1
    rate = np.full(size, ERROR_RATE)
    arms = scenario(Arms(rate, rate, latency, latency, logit, logit), t)
    luck = rng.random(size)
    return Stream(
        t=t,
        u=rng.random(size),
        err_stable=luck < arms.rate_stable,
        err_candidate=luck < arms.rate_candidate,
        lat_stable=arms.lat_stable,
        lat_candidate=arms.lat_candidate,
        score_stable=1 / (1 + np.exp(-arms.logit_stable)),
        score_candidate=1 / (1 + np.exp(-arms.logit_candidate)),
    )


class Counted(StrEnum):
    """What a sticky client's burst of requests counts as."""

    CLIENT = "client"
    CLIENT_AND_SECOND = "client and second"
    REQUEST = "request"


def sticky(rng: np.random.Generator, rps: float, horizon_s: float, burst: float, counted: Counted) -> Stream:
    """Clients that send `burst` requests on average, a tenth of a second apart, all to one arm and all with one
    fate. Clients and what they meet do not depend on how they are counted."""
    clients = stream(rng, rps / burst, horizon_s)
    if counted is Counted.CLIENT:
        return clients
    sizes = rng.geometric(1 / burst, len(clients.t))
    client = np.repeat(np.arange(len(sizes)), sizes)
    t = clients.t[client] + 0.1 * (np.arange(len(client)) - np.repeat(sizes.cumsum() - sizes, sizes))
    if counted is Counted.CLIENT_AND_SECOND:
        first = np.append(True, (np.diff(client) > 0) | (np.diff(np.floor(t)) > 0))
        client, t = client[first], t[first]
    order = np.argsort(t, kind="stable")
    same = {field.name: getattr(clients, field.name)[client[order]] for field in fields(Stream) if field.name != "t"}
    return Stream(t=t[order], **same)


SPLIT_OF_LABELS: Final = (0.05, 0.25, 0.50)
"""The candidate's share of requests whose labels come late, in each third of the time."""


@dataclass(frozen=True, slots=True, eq=False)
class LateLabels:
    """One entry per request in every array, in order of time.

    `t`: seconds; `to_candidate`: which arm decided; `bad`: whether it decided wrongly; `known_t`: when that is known.
    """

    t: Floats
    to_candidate: Bools
    bad: Bools
    known_t: Floats


def late_labels(rng: np.random.Generator, rps: float, horizon_s: float, ratio: float = 1.0) -> LateLabels:
    """Both arms' rate of wrong decisions swings between 5 % and 20 % once in 20 minutes, the candidate's is `ratio`
    times stable's. Labels take ten minutes on stable and two on the candidate, exponentially distributed."""
    t = np.sort(rng.uniform(0, horizon_s, rng.poisson(rps * horizon_s)))
    share = np.array(SPLIT_OF_LABELS)[(len(SPLIT_OF_LABELS) * t / horizon_s).astype(int)]
    to_candidate = rng.random(len(t)) < share
    rate = 0.1 * 2 ** np.sin(2 * np.pi * t / 1200) * np.where(to_candidate, ratio, 1.0)
    delay_s = np.where(to_candidate, 120, 600) * rng.standard_exponential(len(t))
    return LateLabels(t, to_candidate, rng.random(len(t)) < rate, t + delay_s)
