"""The verdict and everything it rests on, as data. All numbers are finite; what is not known is None."""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.config import Learner


class Verdict(StrEnum):
    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Value):
    """A trained learner; its figures are out-of-fold."""

    learner: Learner
    digest: str
    log_loss: float
    auc: float
    cost: float


class Metrics(_Value):
    """On the test rows; `cost` is per decision with the model's own threshold, rates are shares of rows and of
    positive rows decided for the positive class."""

    log_loss: float
    brier: float
    auc: float | None
    calibration_error: float
    cost: float
    selection_rate: float
    true_positive_rate: float | None


class Curves(_Value):
    """`roc`: (false positive rate, true positive rate, threshold), at most 200. `calibration`: (rows, mean
    probability, event rate) per tenth of the rows by score. `scores`: rows per bucket of SCORE_EDGES."""

    roc: tuple[tuple[float, float, float], ...]
    calibration: tuple[tuple[int, float, float], ...]
    scores: tuple[int, ...]


class Side(_Value):
    """One of the two models. `learner` is "base rate", and `digest` None, where no model serves yet."""

    learner: str
    digest: str | None
    threshold: float
    metrics: Metrics
    curves: Curves


class Difference(_Value):
    """Challenger minus champion on the same rows, with the bootstrap interval of the gate's level."""

    metric: str
    value: float
    low: float
    high: float


class Check(_Value):
    """`value` is the end of a difference's interval that must be below, or not above, `bound`. Neither `passed` nor
    `broken`: the rows are too few to tell."""

    name: str
    value: float
    bound: float
    direction: Literal["<", "<="]
    passed: bool
    broken: bool


class Slice(_Value):
    """Rows with one value of a column; `protected`: of a protected attribute."""

    column: str
    value: str
    rows: int
    events: int
    protected: bool
    challenger: Metrics
    champion: Metrics


class Evaluation(_Value):
    """`reason` is one sentence for people. `challenger` and `champion` are None where a model did not give every row
    a score; nothing is compared then."""

    verdict: Verdict
    reason: str
    rows: int
    events: int
    level: float
    resamples: int
    candidates: tuple[Candidate, ...]
    challenger: Side | None
    champion: Side | None
    differences: tuple[Difference, ...]
    checks: tuple[Check, ...]
    slices: tuple[Slice, ...]
    notes: tuple[str, ...]

    def figures(self) -> dict[str, float]:
        """The known figures of both sides, by names like champion_log_loss."""
        sides = {"challenger": self.challenger, "champion": self.champion}
        return {
            f"{name}_{figure}": value
            for name, side in sides.items()
            if side is not None
            for figure, value in side.metrics
            if value is not None
        }
