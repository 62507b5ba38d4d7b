"""Sample-ratio mismatch: does the candidate get the share of requests it should?

Every request is an event; the bets are on the odds of its arm. Lindon and Malek (NeurIPS 2022), with a mixture over
ten odds ratios in place of a Dirichlet prior. Its budget is its own, and what it calls for is a person.
"""

from collections.abc import Iterator
from typing import Final

from serin.judge.primitive import Bet

_ODDS: Final = (0.25, 0.5, 0.67, 0.8, 0.9, 1.11, 1.25, 1.5, 2.0, 4.0)


def bets(category: int) -> Iterator[tuple[float, Bet]]:
    for odds in _ODDS:
        yield 1 / len(_ODDS), Bet({category: odds})
