"""Which rows are held out: decided by each row alone, so it stays on its side in every later run."""

import re
from decimal import Decimal
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.config import Config
from components.preprocess.contract import FIRST_ROWS, show_rows
from components.preprocess.spelling import TIMES
from serin.errors import UserError

SEPARATOR: Final = "\x1f"
_WHOLE: Final = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?(e\+?\d{1,2})?", re.ASCII | re.IGNORECASE)


def held_out(rows: pd.DataFrame, config: Config) -> npt.NDArray[np.bool_]:
    """True for each row that is for testing only.

    By the group column, else by the id columns, else by everything but the target; or the latest rows by time.
    """
    if config.split.time:
        return _latest(rows[config.split.time], config.split.test)
    keys = [config.split.group] if config.split.group else list(config.ids)
    if keys:
        columns = [rows[key].map({value: canonical(value) for value in rows[key].unique()}) for key in keys]
    else:
        columns = [rows[name] for name in rows.columns if name != config.target]
    lines = zip(*(column.tolist() for column in columns), strict=True)
    return np.array([position(SEPARATOR.join(map(str, line))) < config.split.test for line in lines], dtype=np.bool_)


def canonical(name: str) -> str:
    """One spelling for ids that differ only in how a tool wrote them: "7", "7.0", " 7" and "7e0" are "7". Leading
    zeros are part of a name, so "007" stays what it is."""
    name = name.strip()
    if _WHOLE.fullmatch(name):
        number = Decimal(name)
        if number == number.to_integral_value():
            return str(int(number))
    return name


def position(key: str) -> float:
    """Where a key lies in [0, 1), uniformly over keys and the same on every machine."""
    digest = blake2b(key.encode(), digest_size=8, person=b"serin split").digest()
    return int.from_bytes(digest, "big") / 2**64


def _latest(values: pd.Series, share: float) -> npt.NDArray[np.bool_]:
    times = pd.to_numeric(values, errors="coerce").astype("float64")
    if times.isna().any():
        times = _instants(values, "ISO8601")
    if times.isna().any() and (orders := _days_and_months(values)):
        if len(orders) > 1:
            raise UserError(
                f"Config split.time: in column {values.name!r} either day or month could come first; write dates "
                "like 2026-01-31."
            )
        (times,) = orders
    if times.isna().any():
        where = show_rows(int(times.isna().sum()), [int(i) + 1 for i in np.flatnonzero(times.isna())[:FIRST_ROWS]])
        raise UserError(
            f"Config split.time: column {values.name!r} has values that are neither numbers nor times "
            f"({where}); write them like 2026-01-31."
        )
    latest = (times >= times.quantile(1 - share, interpolation="higher")).to_numpy()
    if latest.all():
        raise UserError(
            f"Config split.time: too many rows share one value of {values.name!r} to hold the latest {share:g} out; "
            "choose a finer one."
        )
    return latest


def _instants(values: pd.Series, form: str) -> pd.Series:
    """Seconds since 1970, NaN where a value is not of the form."""
    instants = pd.to_datetime(values, format=form, utc=True, errors="coerce")
    return (instants - pd.Timestamp(0, tz="UTC")).dt.total_seconds()


def _days_and_months(values: pd.Series) -> list[pd.Series]:
    """The instants in every order of day and month in which all values are some."""
    orders = (_instants(values.str.strip(), form) for form in TIMES)
    return [instants for instants in orders if instants.notna().all()]
