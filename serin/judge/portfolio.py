"""Wealth spread over bets: mixtures of e-processes, with restarts for harm that begins late.

An e-process is a mixture over bets, each with its prior share of the wealth. Part of the wealth may wait as cash and
be put into fresh bets as time passes, S <- (S + invested * prior) * e: a mixture over starting times, so still an
e-process (Shin, Ramdas and Rinaldo, "E-detectors", NEJSDS 2023, with a finite budget of false alarms).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from serin.judge.primitive import Bet, Bets, Floats, Ints, OneSampleBets

_LARGEST: Final = 1e250
_LARGEST_LOG: Final = 130.0  # their product is still a number

OneSample = tuple[int, float, float]
Weighted = tuple[float, "Bet | OneSample"]


@dataclass(frozen=True, slots=True)
class Portfolio:
    """`prior`: of each bet, its share of its process's wealth; `process`: the process it belongs to."""

    bets: Bets
    one_sample: OneSampleBets
    prior: Floats
    process: Ints
    processes: int

    @classmethod
    def of(cls, processes: Iterable[Iterable[Weighted]]) -> Self:
        listed = [(k, weight, bet) for k, process in enumerate(processes) for weight, bet in process]
        pairs = [(k, weight, bet) for k, weight, bet in listed if isinstance(bet, Bet)]
        singles = [(k, weight, bet) for k, weight, bet in listed if not isinstance(bet, Bet)]
        ordered = [(k, weight) for k, weight, _ in (*pairs, *singles)]
        return cls(
            Bets.of([bet for *_, bet in pairs]),
            OneSampleBets.of([bet for *_, bet in singles]),
            np.array([weight for _, weight in ordered]),
            np.array([k for k, _ in ordered], dtype=np.intp),
            listed[-1][0] + 1,
        )

    def log_e(self, candidate: Floats, both: Floats, requests: float, share: float) -> Floats:
        """Log e-value of every bet: see `Bets.log_e`; `requests` are the candidate's."""
        return np.concatenate((self.bets.log_e(candidate, both, share), self.one_sample.log_e(candidate, requests)))

    def requests_needed(self, wealth: Floats, goal: float, per_request: Floats, share: float) -> Floats:
        """Candidate requests after which each process is expected to hold `goal`, when both arms have the same rate
        `per_request` of every category: ln(missing) / (log e-value per request), of its quickest bet."""
        needs = np.full(self.processes, np.inf)
        growth = self.log_e(per_request, per_request / share, 1.0, share)
        grows = (growth > 0) & (wealth > 0)
        np.minimum.at(needs, self.process[grows], (np.log(goal) - np.log(wealth[grows])) / growth[grows])
        return needs

    def grow(self, wealth: Floats, log_e: Floats) -> Floats:
        """The wealth of every bet after a window. It is capped, which can only lower it."""
        grown: Floats = np.minimum(wealth * np.exp(np.minimum(log_e, _LARGEST_LOG)), _LARGEST)
        return grown

    def evidence(self, wealth: Floats) -> Floats:
        """The wealth of every process."""
        held: Floats = np.bincount(self.process, wealth, self.processes).astype(np.float64, copy=False)
        return held
