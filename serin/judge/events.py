"""Events: errors, rejected requests, whatever the user counts per request.

Harm must be real both relatively and absolutely: the evidence is the smaller of two e-processes, one against
p_c <= margin * p_b (event share) and one against p_c <= floor (the candidate alone). The smaller of the two is
valid for the union of both nulls.
"""

from collections.abc import Iterator
from typing import Final

from serin.judge.policy import EventMetric
from serin.judge.primitive import Bet

_RISKS: Final = {1.4: 0.08, 1.9: 0.54, 4.5: 0.30, 15.0: 0.04, 100.0: 0.04}
_FLOOR_FACTORS: Final = (2, 5, 20, 100, 500)


def ratio_bets(metric: EventMetric, category: int) -> Iterator[tuple[float, Bet]]:
    for risk, weight in _RISKS.items():
        yield weight, Bet({category: risk}, metric.margin)


def floor_bets(metric: EventMetric, category: int) -> Iterator[tuple[float, tuple[int, float, float]]]:
    for factor in _FLOOR_FACTORS:
        yield 1 / len(_FLOOR_FACTORS), (category, min(factor * metric.floor, 0.9), metric.floor)
