"""The door of every model: columns of a dataset become the inputs f0, f1, … of a learner and of its ONNX graph."""

from typing import Final

import numpy as np
import pandas as pd

from components.dataset import Schema
from serin.errors import UserError
from serin.model import Feature, normalised

MOSTLY: Final = 0.8
CATEGORIES: Final = 40
"""A string column of no more values is known by them; one of more by the event rate of each (see `rates`)."""
KNOWN_VALUES: Final = 5000
"""The most frequent ones; the rest, and new ones when serving, are one and the same."""


def of_schema(schema: Schema) -> tuple[Feature, ...]:
    return tuple(
        Feature(name=column.name, input=f"f{i}", dtype=column.dtype, normalise=column.normalise)
        for i, column in enumerate(schema.features)
    )


def frame(rows: pd.DataFrame, features: tuple[Feature, ...]) -> pd.DataFrame:
    """The model's inputs by input name: numbers as float32 (NaN is missing), strings as str ("" is missing).

    Raises `UserError` naming a column that is not there, is not of its type, or does not fit float32.
    """
    columns: dict[str, np.ndarray] = {}
    for feature in features:
        if feature.name not in rows.columns:
            raise UserError(f"Column {feature.name!r} is missing from the rows; the model needs it.")
        values = rows[feature.name]
        if pd.api.types.is_numeric_dtype(values) != (feature.dtype == "number"):
            raise UserError(f"Column {feature.name!r} is {values.dtype}; the model needs a {feature.dtype}.")
        if feature.dtype == "string":
            spellings = {value: normalised(value) for value in values.unique()} if feature.normalise else None
            columns[feature.input] = (values.map(spellings) if spellings else values).to_numpy(dtype=object)
            continue
        numbers = values.to_numpy(dtype=np.float64)
        if (np.abs(numbers) > np.finfo(np.float32).max).any():
            raise UserError(f"Column {feature.name!r} holds numbers beyond 3.4e38; rescale or drop it.")
        columns[feature.input] = numbers.astype(np.float32)
    return pd.DataFrame(columns, index=rows.index)


def retyped(rows: pd.DataFrame, features: tuple[Feature, ...]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows with each column in the type its feature has, and the columns that had another one.

    For a model made before a column changed its type: its clients send it the old one. Text that is mostly no number
    stays text.
    """
    changed: dict[str, pd.Series] = {}
    for feature in features:
        values = rows.get(feature.name)
        if values is None or pd.api.types.is_numeric_dtype(values) == (feature.dtype == "number"):
            continue
        if feature.dtype == "string":
            changed[feature.name] = values.map("{:.15g}".format, na_action="ignore").astype(object).fillna("")
            continue
        numbers = pd.to_numeric(values.where(values != ""), errors="coerce").astype("float64")
        if numbers.notna().sum() >= MOSTLY * (values != "").sum():
            changed[feature.name] = numbers
    return rows.assign(**changed), tuple(changed)


def top_categories(column: pd.Series) -> list[str]:
    """The most frequent values, ordered by frequency and then by value."""
    counts = column.value_counts()
    return [str(value) for value in sorted(counts.index, key=lambda v: (-counts[v], v))[:CATEGORIES]]
