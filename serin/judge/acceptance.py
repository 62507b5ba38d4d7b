"""Early acceptance: has harm of the stage's margin been ruled out?

A claim is an e-process for "the candidate's rate is at least margin * max(stable's rate, acceptable rate)",
started afresh in every stage; a stage is passed when each claim reaches 1/beta. No correction over claims is
needed: accepting wrongly means rejecting the one that is true (intersection-union test, Berger 1982).
"""

from collections.abc import Iterator
from typing import Final

from serin.judge.primitive import Bet

RATIO, RATE = 0.75, 0.25
"""Shares of a claim's wealth in bets about the ratio and in bets about the candidate's rate alone."""
_RATIO: Final = {1.0: 0.85, 0.5: 0.15}
"""Bets on a relative risk of this times 1 / margin; a risk of 1 / margin is a candidate as good as stable."""
_RATES: Final = {0.5: 0.2, 0.1: 0.8}
"""Bets on a candidate's rate of this times the limit."""


def ratio_bets(category: int, margin: float) -> Iterator[tuple[float, Bet]]:
    for factor, weight in _RATIO.items():
        yield weight, Bet({category: factor / margin}, margin)


def rate_bets(category: int, limit: float) -> Iterator[tuple[float, tuple[int, float, float]]]:
    """Bets against a rate of at least `limit`, whatever stable does: they let a service without events pass."""
    for factor, weight in _RATES.items():
        yield weight, (category, factor * limit, limit)
