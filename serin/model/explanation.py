"""What training writes beside a model so that a server can say which feature moved a score, and by how much.

    meta/explanation.json  `Explanation`

A model is a sum of log-odds over columns made from the raw features: numbers with missing values filled, strings
as a code, as one column of 0 and 1 per known value, or as the rate of each value's events. Contributions are Shapley
values of that sum, added up per feature and stretched by the calibration, so that log-odds of the score = base + sum
of contributions.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

EXPLANATION_FILE: Final = Path("meta/explanation.json")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Number(_Part):
    """The feature's value, `fill` where it is missing."""

    kind: Literal["number"] = "number"
    feature: str
    fill: float


class Category(_Part):
    """1 where the feature is `value`, else 0."""

    kind: Literal["category"] = "category"
    feature: str
    value: str


class Code(_Part):
    """The place of the feature's value in `values`, -1 where it is none of them."""

    kind: Literal["code"] = "code"
    feature: str
    values: tuple[str, ...]


class Rate(_Part):
    """The log-odds of the event among the training rows with the feature's value, `other` for a value not there."""

    kind: Literal["rate"] = "rate"
    feature: str
    rates: dict[str, float]
    other: float


Column = Annotated[Number | Category | Code | Rate, Field(discriminator="kind")]


class Linear(_Part):
    """`base` plus, per column, weight * (value - center); the centers are the columns' means in training."""

    kind: Literal["linear"] = "linear"
    base: float
    weights: tuple[float, ...]
    centers: tuple[float, ...]


class Tree(_Part):
    """Arrays over nodes, node 0 is the root. A leaf has left -1 and its log-odds in `value`; any other node sends
    a row to `left` if the row's `column` is below `value` (compared as float32). `cover` is the weight of the
    training rows that came by."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    column: tuple[int, ...]
    value: tuple[float, ...]
    cover: tuple[float, ...]


class Trees(_Part):
    """`bias` plus one leaf of each tree."""

    kind: Literal["trees"] = "trees"
    bias: float
    trees: tuple[Tree, ...]


class Single(_Part):
    """All that the score differs from `base` is the doing of one feature."""

    kind: Literal["single"] = "single"
    base: float
    feature: str


class Explanation(_Part):
    """The score's log-odds are slope * (the learner's log-odds) + intercept. `columns` is empty for `Single`."""

    version: Literal[1] = 1
    slope: float
    intercept: float
    columns: tuple[Column, ...]
    learner: Annotated[Linear | Trees | Single, Field(discriminator="kind")]
