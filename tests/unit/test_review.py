"""The band of probabilities that a person should look at."""

import numpy as np
import pytest

from components.config import Costs
from components.train.review import review_band

COSTS = Costs(false_positive=1, false_negative=4)
BREAK_EVEN = 0.2
ERROR = 1.96 * (BREAK_EVEN * (1 - BREAK_EVEN) / 200) ** 0.5


def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated."""
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(0, 1, count)
    return probabilities, (rng.uniform(0, 1, count) < probabilities).astype(int)


def test_the_band_lies_around_break_even() -> None:
    assert review_band(*rows(20_000), COSTS) == pytest.approx((BREAK_EVEN - ERROR, BREAK_EVEN + ERROR), abs=0.03)


def test_the_band_is_of_rates_not_of_probabilities() -> None:
    probabilities, y = rows(20_000)
    low, high = review_band(probabilities**2, y, COSTS)
    assert (low**0.5, high**0.5) == pytest.approx((BREAK_EVEN - ERROR, BREAK_EVEN + ERROR), abs=0.03)


def test_no_band_where_every_row_is_clear() -> None:
    probabilities = np.concatenate([np.linspace(0, 0.1, 1000), np.linspace(0.9, 1, 1000)])
    assert review_band(probabilities, (probabilities > 0.5).astype(int), COSTS) is None


def test_everything_where_no_row_is_clear() -> None:
    probabilities = np.linspace(0, 1, 1000)
    assert review_band(probabilities, np.tile([1, 0, 0, 0, 0], 200), COSTS) == (0, 1)
