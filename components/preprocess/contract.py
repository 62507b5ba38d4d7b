"""The data contract: what the champion's training data looked like, which later data has to keep.

Inferred from the data, stored as JSON beside the model, and checked with pandera when new data arrives.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import pandera.pandas as pa

MAX_VALUES: Final = 100
"""A string column with more distinct values than this has no list of known values."""
FIRST_ROWS: Final = 3


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnRule(_Value):
    """`low`, `high`: the range seen, widened on both sides by its own width; a column that was never negative stays
    so. `values`: what a string column held."""

    dtype: Literal["number", "string"]
    nullable: bool
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] | None = None


class Contract(_Value):
    """Every column named here is required."""

    version: Literal[1] = 1
    columns: dict[str, ColumnRule]


class Violation(_Value):
    """`count` rows break the rule; `rows` are the numbers of the first of them, the row after the header being 1.
    A missing column has neither."""

    column: str
    rule: str
    count: int = 0
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            return f"column {self.column!r} {self.rule}"
        return f"column {self.column!r} {self.rule} ({show_rows(self.count, self.rows)})"


def show_rows(count: int, first: Sequence[int]) -> str:
    """ "3 rows: 17, 18, 40", or with "…" when there are more than the first ones given."""
    more = ", …" if count > len(first) else ""
    return f"{counted(count)}: {', '.join(map(str, first))}{more}"


def counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


class Findings(_Value):
    violations: tuple[Violation, ...]
    notes: tuple[str, ...]


def infer(rows: pd.DataFrame) -> Contract:
    """`rows`: float64 columns with NaN, or str columns with "", for missing."""
    return Contract(columns={str(name): _rule(rows[name]) for name in rows.columns})


def _rule(values: pd.Series) -> ColumnRule:
    if values.dtype == np.float64:
        given = values.dropna()
        if given.empty:
            return ColumnRule(dtype="number", nullable=True)
        low, high = float(given.min()), float(given.max())
        width = high - low
        return ColumnRule(
            dtype="number",
            nullable=len(given) < len(values),
            low=low - width if low < 0 else max(0.0, low - width),
            high=high + width if high > 0 else min(0.0, high + width),
        )
    known = sorted(set(values) - {""})
    return ColumnRule(
        dtype="string", nullable=bool((values == "").any()), values=tuple(known) if len(known) <= MAX_VALUES else None
    )


def check(contract: Contract, rows: pd.DataFrame) -> Findings:
    """Compare new data with the contract; the index of `rows` counts from 0 in the order of the file. New values of a
    string column are a note as long as known ones are left."""
    import pandera.pandas as pa  # half a second, needed only when there is a champion
    from pandera.errors import SchemaErrors

    schema = pa.DataFrameSchema({name: _pandera(rule) for name, rule in contract.columns.items()})
    checked = rows[[name for name in rows.columns if name in contract.columns]]
    violations = [Violation(column=name, rule="is missing") for name in contract.columns if name not in checked]
    try:
        schema.validate(checked.replace("", None), lazy=True)
    except SchemaErrors as errors:
        violations += _violations(contract, errors.failure_cases)
    broken = {violation.column for violation in violations}
    notes = []
    for name, rule in contract.columns.items():
        if rule.dtype == "number" and name in checked and name not in broken and checked[name].dtype != np.float64:
            violations.append(_violation(name, "is text but was a number", checked.index))
        if rule.values and name in checked and checked[name].dtype != np.float64:
            given = checked[name][checked[name] != ""]
            unknown = sorted(set(given) - set(rule.values))
            shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            if unknown and not given.isin(rule.values).any():
                violations.append(_violation(name, f"has none of its known values, but {shown}", given.index))
            elif unknown:
                notes.append(f"Column {name!r} has values the champion has not seen: {shown}.")
    return Findings(violations=tuple(violations), notes=tuple(notes))


def _pandera(rule: ColumnRule) -> "pa.Column":
    import pandera.pandas as pa

    if rule.dtype == "string":
        return pa.Column(str, nullable=rule.nullable, required=False)
    bounds = [pa.Check.in_range(rule.low, rule.high)] if rule.low is not None else []
    return pa.Column(float, bounds, nullable=rule.nullable, coerce=True, required=False)


def _violations(contract: Contract, failures: pd.DataFrame) -> list[Violation]:
    """Pandera's failure cases, one row each, as one violation per column and rule."""
    violations = []
    for key, cases in failures.groupby(["column", "check"], sort=False):
        name, check_name = map(str, key)
        rule = contract.columns[name]
        if check_name.startswith("coerce_dtype"):
            words = "is not a number"
        elif check_name == "not_nullable":
            number = rule.dtype == "number"
            words = f"is blank{' or not a number' if number else ''}, which never occurred before"
        elif check_name.startswith("in_range") and cases["index"].notna().all():
            words = f"is outside {rule.low:g} to {rule.high:g}"
        elif check_name.startswith("dtype('str"):
            words = "is no longer text"
        else:
            continue  # follows from a value that is not a number, which is listed
        violations.append(_violation(name, words, cases["index"].dropna().unique()))
    return violations


def _violation(column: str, rule: str, index: Iterable[int]) -> Violation:
    numbers = sorted(int(row) + 1 for row in index)
    return Violation(column=column, rule=rule, count=len(numbers), rows=tuple(numbers[:FIRST_ROWS]))
