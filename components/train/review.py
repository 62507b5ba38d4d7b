"""Where the model is too unsure to decide alone."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from components.config import Costs

NEIGHBOURS: Final = 200
_Z: Final = 1.96


def review_band(probabilities: npt.NDArray[Any], y: npt.NDArray[Any], costs: Costs) -> tuple[float, float] | None:
    """Lowest and highest probability at which even `NEIGHBOURS` similar rows would not tell which decision is
    cheaper: their event rate (isotonic in the probability) lies within its own 95 % sampling error of the rate at
    which both decisions cost the same. None if no row is such a case.

    `probabilities` are out-of-fold, `y` is 0 or 1.
    """
    break_even = costs.false_positive / (costs.false_positive + costs.false_negative)
    error = _Z * np.sqrt(break_even * (1 - break_even) / NEIGHBOURS)
    rates = IsotonicRegression().fit_transform(probabilities, y)
    unsure = probabilities[np.abs(rates - break_even) <= error]
    return (float(unsure.min()), float(unsure.max())) if len(unsure) else None
