"""From a client's values to the model's input columns, or to one sentence about what is wrong with them."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from predictor.errors import InvalidInput
from serin.model import Feature

Column = NDArray[Any]

_NUMBER_TYPES: Final[frozenset[type]] = frozenset({int, float, bool, type(None)})
_STRING_TYPES: Final[frozenset[type]] = frozenset({str, type(None)})
_JSON_NAMES: Final[dict[type, str]] = {
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "list",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """`columns`: feature name to tensor [rows, 1], float32 or object (str), every feature of the model."""

    rows: int
    columns: dict[str, Column]


def json_name(value: object) -> str:
    """What JSON calls the type of `value`."""
    return _JSON_NAMES[type(value)]


def from_records(features: Sequence[Feature], records: Sequence[Mapping[str, Any]]) -> Batch:
    """Columns of records of JSON values; a feature that a record does not name is missing in that row.

    Raises `InvalidInput` naming unknown fields, or field, row, expected and got type.
    """
    names = {feature.name for feature in features}
    for record in records:
        if not record.keys() <= names:
            raise unknown_fields(record.keys() - names)
    return Batch(len(records), {f.name: json_column(f, [record.get(f.name) for record in records]) for f in features})


def unknown_fields(names: AbstractSet[str]) -> InvalidInput:
    listed = ", ".join(repr(name) for name in sorted(names)[:5])
    return InvalidInput(f"Unknown field {listed}: the model has no such feature.")


def json_column(feature: Feature, values: Sequence[Any]) -> Column:
    """Raises `InvalidInput` naming field, row, expected and got type."""
    if feature.dtype == "string":
        if not _STRING_TYPES.issuperset(map(type, values)):
            raise _wrong_type(feature, values, _STRING_TYPES)
        column = np.empty((len(values), 1), dtype=object)
        column[:, 0] = [value or "" for value in values]
        return column
    if not _NUMBER_TYPES.issuperset(map(type, values)):
        raise _wrong_type(feature, values, _NUMBER_TYPES)
    return number_column(feature, np.array(values, dtype=np.float64))  # None becomes NaN


def number_column(feature: Feature, values: NDArray[Any]) -> Column:
    """float32 [rows, 1]. Raises `InvalidInput` for what float32 cannot hold."""
    with np.errstate(over="ignore"):
        column = values.astype(np.float32).reshape(-1, 1)
    infinite = np.isinf(column[:, 0])
    if infinite.any():
        row = int(infinite.argmax())
        raise InvalidInput(
            f"Field {feature.name!r}, row {row}: expected a number within ±3.4e38 or null, got {values.flat[row]}."
        )
    return column


def _wrong_type(feature: Feature, values: Sequence[Any], allowed: frozenset[type]) -> InvalidInput:
    row, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
    return InvalidInput(
        f"Field {feature.name!r}, row {row}: expected {feature.dtype} or null, got {json_name(value)}."
    )
