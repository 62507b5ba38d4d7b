"""From a client's values to the model's input columns, or to one sentence about what is wrong with them."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from predictor.errors import InvalidInput
from serin.model import Feature, normalised

BLANKS: Final = " \t\r\n\u00a0"
"""A string of nothing else is missing, as in training."""

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
class Layout:
    """Where each feature has its place in a `Batch`."""

    numbers: tuple[Feature, ...]
    strings: tuple[Feature, ...]
    names: frozenset[str]

    @classmethod
    def of(cls, features: Sequence[Feature]) -> Self:
        numbers = tuple(feature for feature in features if feature.dtype == "number")
        strings = tuple(feature for feature in features if feature.dtype == "string")
        return cls(numbers, strings, frozenset(feature.name for feature in features))


@dataclass(frozen=True, slots=True)
class Batch:
    """`numbers` is float32 [number features, rows], NaN for missing; `strings` is object (str) [string features,
    rows], "" for missing; features in the order of the layout."""

    rows: int
    numbers: NDArray[Any]
    strings: NDArray[Any]


def json_name(value: object) -> str:
    """What JSON calls the type of `value`."""
    return _JSON_NAMES[type(value)]


def unknown_fields(names: AbstractSet[str]) -> InvalidInput:
    listed = ", ".join(repr(name) for name in sorted(names)[:5])
    return InvalidInput(f"Unknown field {listed}: the model has no such feature.")


def from_records(layout: Layout, records: Sequence[Mapping[str, Any]]) -> Batch:
    """Columns of records of JSON values; a feature that a record does not name is missing in that row.

    Raises `InvalidInput` naming unknown fields, or field, row, expected and got type.
    """
    for record in records:
        if not record.keys() <= layout.names:
            raise unknown_fields(record.keys() - layout.names)
    rows = len(records)
    numbers = [_numbers(feature, [record.get(feature.name) for record in records]) for feature in layout.numbers]
    strings = [_strings(feature, [record.get(feature.name) for record in records]) for feature in layout.strings]
    return Batch(
        rows,
        to_float32(layout.numbers, np.array(numbers, np.float64).reshape(-1, rows)),  # None becomes NaN
        np.array(strings, object).reshape(-1, rows),
    )


def number_column(feature: Feature, values: Sequence[Any]) -> NDArray[Any]:
    """float32 [rows] of JSON values. Raises `InvalidInput` naming field, row, expected and got."""
    column: NDArray[Any] = to_float32([feature], np.array([_numbers(feature, values)], np.float64))[0]
    return column


def string_column(feature: Feature, values: Sequence[Any]) -> NDArray[Any]:
    """object [rows] of JSON values. Raises `InvalidInput` naming field, row, expected and got."""
    return np.array(_strings(feature, values), object)


def to_float32(features: Sequence[Feature], values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, [features, rows]. Raises `InvalidInput` for what float32 cannot hold."""
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    infinite = np.isinf(numbers)
    if infinite.any():
        column, row = (int(i) for i in np.argwhere(infinite)[0])
        raise InvalidInput(
            f"Field {features[column].name!r}, row {row}: expected a number within ±3.4e38 or null, "
            f"got {values[column, row]}."
        )
    return numbers


def _numbers(feature: Feature, values: Sequence[Any]) -> Sequence[Any]:
    if not _NUMBER_TYPES.issuperset(map(type, values)):
        raise _wrong_type(feature, values, _NUMBER_TYPES)
    return values


def _strings(feature: Feature, values: Sequence[Any]) -> list[str]:
    if not _STRING_TYPES.issuperset(map(type, values)):
        raise _wrong_type(feature, values, _STRING_TYPES)
    texts = [value if value and value.strip(BLANKS) else "" for value in values]
    return [normalised(text) for text in texts] if feature.normalise else texts


def _wrong_type(feature: Feature, values: Sequence[Any], allowed: frozenset[type]) -> InvalidInput:
    row, value = next((i, value) for i, value in enumerate(values) if type(value) not in allowed)
    return InvalidInput(
        f"Field {feature.name!r}, row {row}: expected {feature.dtype} or null, got {json_name(value)}."
    )
