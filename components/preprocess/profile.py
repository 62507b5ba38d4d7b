"""The distribution of a data set, column by column, and how far another one has drifted from it."""

import math
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

LEVELS: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
BINS: Final = 10
TOP_VALUES: Final = 50
SHARE_FLOOR: Final = 1e-4
"""Keeps the index finite when a bin is empty on one side."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumberProfile(_Value):
    """`quantiles` at `LEVELS`. `shares[i]` of the given values lie in (edges[i-1], edges[i]]; the first bin starts
    at minus infinity and the last, one more than there are edges, ends at infinity."""

    dtype: Literal["number"] = "number"
    missing: float
    mean: float | None
    quantiles: tuple[float, ...]
    edges: tuple[float, ...]
    shares: tuple[float, ...]


class StringProfile(_Value):
    """`shares` of the given values, the 50 most frequent ones; the rest is `other`."""

    dtype: Literal["string"] = "string"
    missing: float
    shares: dict[str, float]
    other: float


ColumnProfile = Annotated[NumberProfile | StringProfile, Field(discriminator="dtype")]


class Profile(BaseModel):
    """Of the rows a model learned from. Training may add its own keys to the file."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    rows: int
    positive_rate: float
    columns: dict[str, ColumnProfile]


class Drift(_Value):
    """`psi`: population stability index over the values and "missing"; customary reading: below 0.1 nothing to see,
    above 0.25 a different population."""

    column: str
    psi: float
    missing_before: float
    missing_now: float


def profile(rows: pd.DataFrame, target: pd.Series) -> Profile:
    """`target` is 0/1; every column of `rows` is float64 or str."""
    return Profile(
        rows=len(rows),
        positive_rate=float(target.mean()),
        columns={str(name): _column(rows[name]) for name in rows.columns},
    )


def _column(values: pd.Series) -> NumberProfile | StringProfile:
    if values.dtype == np.float64:
        given = values.dropna().to_numpy()
        quantiles = np.quantile(given, LEVELS) if given.size else np.array([])
        edges = np.unique(np.quantile(given, np.arange(1, BINS) / BINS)) if given.size else np.array([])
        return NumberProfile(
            missing=1 - given.size / len(values),
            mean=float(given.mean()) if given.size else None,
            quantiles=tuple(quantiles.tolist()),
            edges=tuple(edges.tolist()),
            shares=_number_shares(given, edges),
        )
    given_text = values[values != ""]
    shares = given_text.value_counts(normalize=True)
    # ties are broken by name, so the same rows always give the same file
    top = sorted(shares.items(), key=lambda item: (-item[1], item[0]))[:TOP_VALUES]
    return StringProfile(
        missing=1 - len(given_text) / len(values),
        shares={str(value): float(share) for value, share in top},
        other=max(0.0, 1 - sum(share for _, share in top)) if len(shares) > TOP_VALUES else 0.0,
    )


def _number_shares(given: np.ndarray, edges: np.ndarray) -> tuple[float, ...]:
    counts = np.bincount(np.searchsorted(edges, given, side="left"), minlength=len(edges) + 1)
    return tuple((counts / max(given.size, 1)).tolist())


def drift(before: Profile, rows: pd.DataFrame, target: pd.Series) -> tuple[Drift, ...]:
    """How far `rows` are from the profiled ones, for each column both have with the same type, most drifted first.
    The target's own drift is listed under its name."""
    found = [_rate_drift(str(target.name), before.positive_rate, float(target.mean()))]
    for name, column in before.columns.items():
        if name in rows.columns and (rows[name].dtype == np.float64) == (column.dtype == "number"):
            found.append(_column_drift(name, column, rows[name]))
    return tuple(sorted(found, key=lambda each: -each.psi))


def _rate_drift(name: str, before: float, now: float) -> Drift:
    return Drift(column=name, psi=_psi((before, 1 - before), (now, 1 - now)), missing_before=0, missing_now=0)


def _column_drift(name: str, before: NumberProfile | StringProfile, values: pd.Series) -> Drift:
    if isinstance(before, NumberProfile):
        given = values.dropna().to_numpy()
        old, new = before.shares, _number_shares(given, np.array(before.edges))
    else:
        given = values[values != ""].to_numpy()
        counts = pd.Series(given, dtype=object).value_counts(normalize=True)
        known = tuple(float(counts.get(value, 0.0)) for value in before.shares)
        old, new = (*before.shares.values(), before.other), (*known, max(0.0, 1 - sum(known)))
    missing = 1 - len(given) / len(values)
    return Drift(
        column=name,
        psi=_psi(_with_missing(old, before.missing), _with_missing(new, missing)),
        missing_before=before.missing,
        missing_now=missing,
    )


def _with_missing(shares: tuple[float, ...], missing: float) -> tuple[float, ...]:
    return (*(share * (1 - missing) for share in shares), missing)


def _psi(before: tuple[float, ...], now: tuple[float, ...]) -> float:
    """Population stability index: sum of (now - before) * ln(now / before) over the bins."""
    pairs = ((max(b, SHARE_FLOOR), max(n, SHARE_FLOOR)) for b, n in zip(before, now, strict=True))
    return sum((n - b) * math.log(n / b) for b, n in pairs)


def read(path: Path) -> Profile:
    return Profile.model_validate_json(path.read_text(encoding="utf-8"))
