"""The one bet behind every metric: given that an event happened, which arm did it hit?

With candidate share w, events of one category hit the candidate with probability at most
s = rho w / (rho w + 1 - w) if its rate is at most rho times stable's. A bet with relative risk r pays, per window,

    log e = X_c ln r - X ln(1 + s (r - 1))        X_c events on the candidate, X on both arms

whose expectation under the null is at most 1, whatever the base rate does and whatever w depended on: r > 1 bets
against p_c <= rho p_b, r < 1 against p_c >= rho p_b. A bet may span several categories (bins of a histogram) with
one risk each. Conditional binomial test of Lindon and Malek, "Anytime-valid inference for multinomial count data"
(NeurIPS 2022), as a product of likelihood ratios (Wald 1945); with the observed share it is the block e-value of
Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests" (JSPI 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Bet:
    """Relative risks by category; categories left out are bet on with 1, that is, not at all."""

    risks: Mapping[int, float]
    rho: float = 1.0


@dataclass(frozen=True, slots=True)
class Bets:
    """Many bets at once, as a flat list of (bet, category) pairs."""

    first: Ints
    category: Ints
    log_risk: Floats
    excess: Floats
    rho: Floats

    @classmethod
    def of(cls, bets: Sequence[Bet]) -> Self:
        risks = np.array([risk for bet in bets for risk in bet.risks.values()])
        return cls(
            first=np.cumsum([0] + [len(bet.risks) for bet in bets[:-1]]),
            category=np.array([category for bet in bets for category in bet.risks], dtype=np.intp),
            log_risk=np.log(risks),
            excess=risks - 1,
            rho=np.array([bet.rho for bet in bets for _ in bet.risks]),
        )

    def log_e(self, candidate: Floats, both: Floats, share: float) -> Floats:
        """One window's log e-value of every bet.

        `candidate`, `both`: events per category on the candidate and on both arms; `share`: the candidate's
        share of traffic, configured or observed.
        """
        odds = self.rho * share
        candidate_share = odds / (odds + (1 - share))
        pairs = candidate[self.category] * self.log_risk
        pairs -= both[self.category] * np.log1p(candidate_share * self.excess)
        return np.add.reduceat(pairs, self.first)


@dataclass(frozen=True, slots=True)
class OneSampleBets:
    """Bets about the candidate's rate alone, against a fixed rate: the Bernoulli likelihood ratio of Wald (1945).

    A bet with rate q > limit bets against p_c <= limit, with q < limit against p_c >= limit.
    """

    category: Ints
    log_event: Floats
    log_none: Floats

    @classmethod
    def of(cls, bets: Sequence[tuple[int, float, float]]) -> Self:
        """Each bet is (category, rate, limit)."""
        rate = np.array([rate for _, rate, _ in bets])
        limit = np.array([limit for _, _, limit in bets])
        return cls(
            category=np.array([category for category, _, _ in bets], dtype=np.intp),
            log_event=np.log(rate / limit),
            log_none=np.log((1 - rate) / (1 - limit)),
        )

    def log_e(self, candidate: Floats, requests: float) -> Floats:
        events = candidate[self.category]
        return events * self.log_event + (requests - events) * self.log_none
