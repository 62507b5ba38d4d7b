"""A CSV or Parquet file as a table of numbers and strings.

CSV means comma-separated with a header line, in UTF-8 (with or without byte-order mark) or Latin-1. DuckDB parses
it strictly: a row with too few or too many fields is an error, not a row of missing values.
"""

import codecs
import csv
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Final

import duckdb
import pandas as pd

from serin.errors import UserError

PARQUET_MAGIC: Final = b"PAR1"
QUOTE: Final = '"'
OTHER_DELIMITERS: Final = {";": "semicolon", "\t": "tab", "|": "bar"}
MISSING_NUMBERS: Final = ("na", "n/a", "#n/a", "nan", "null", "none", "<na>")
"""What other tools write for a missing number. In a string column these are values like any other."""

# SQL over a column {0}
_TRIMMED = "trim({0}, ' \t\r\n\u00a0')"
_WORD = f"lower({_TRIMMED})"
_GIVEN = f"coalesce({_WORD} NOT IN ('', {', '.join(repr(word) for word in MISSING_NUMBERS)}), false)"
_BOOL = f"{_WORD} IN ('true', 'false')"
_NUMBER = f"CASE WHEN {_GIVEN} AND NOT contains({{0}}, '_') THEN try_cast({_TRIMMED} AS DOUBLE) END"
_TIME = (
    rf"CASE WHEN regexp_matches({_TRIMMED}, '^\d+[-/.]\d+[-/.]\d') THEN coalesce("
    f"try_cast({{0}} AS TIMESTAMP), try_strptime({_TRIMMED}, ['%d/%m/%Y', '%m/%d/%Y', '%d.%m.%Y'])) END"
)
_STRING = f"CASE WHEN {_TRIMMED} = '' THEN '' ELSE coalesce({{0}}, '') END"

_COUNTS = f"SELECT count(*) FILTER ({_GIVEN}), count(*) FILTER ({_BOOL}), count({_NUMBER}), count({_TIME})".format(
    "value"
)


@dataclass(frozen=True)
class Table:
    """`rows`: number columns are float64 with NaN for missing, all others str with "" for missing. `times`: the
    string columns that hold nothing but dates or times."""

    rows: pd.DataFrame
    times: frozenset[str]
    notes: tuple[str, ...]


def read(path: Path, *, text: Collection[str] = ()) -> Table:
    """Read a file. The columns named in `text` stay strings even if every value is a number.

    Raises `UserError` when the file is not there, empty, cut off, not comma-separated, or its header is ambiguous.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"Data file {path} cannot be read: {error.strerror}; check data.source.") from error
    if not start.strip():
        raise UserError(f"Data file {path} is empty; give a file with a header line and rows.")
    with duckdb.connect() as connection:
        if start.startswith(PARQUET_MAGIC) or path.suffix.lower() == ".parquet":
            return _typed(connection, _load_parquet(connection, path), text, notes=())
        if b"\0" in start:
            raise UserError(f"Data file {path} is not text; save it as CSV in UTF-8 or as Parquet.")
        with _as_utf8(path) as (utf8, notes):
            return _typed(connection, _load_csv(connection, utf8, path), text, notes)


def _load_parquet(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[str, ...]:
    try:
        relation = connection.read_parquet(escape(str(path)), hive_partitioning=False)
        names = tuple(relation.columns)
        _check_names(names, path)
        as_text = (f'CAST("{name.replace(QUOTE, QUOTE * 2)}" AS VARCHAR) AS c{i}' for i, name in enumerate(names))
        relation.project(", ".join(as_text)).create("source")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Data file {path} is not a whole Parquet file ({reason}); copy it again.") from error
    return names


def _load_csv(connection: duckdb.DuckDBPyConnection, utf8: Path, path: Path) -> tuple[str, ...]:
    with utf8.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next(csv.reader(file), [])
        except csv.Error as error:
            raise UserError(f"Data file {path}: the header line cannot be read ({error}).") from error
    if len(header) < 2:
        only = "".join(header)
        for delimiter, name in OTHER_DELIMITERS.items():
            if delimiter in only:
                raise UserError(f"Data file {path} is delimited by {name} ({delimiter!r}); save it with commas.")
        raise UserError(f"Data file {path} has one column only ({only!r}); give a comma-separated file.")
    names = tuple(name or f"unnamed {i + 1}" for i, name in enumerate(header))
    _check_names(names, path)
    try:
        connection.read_csv(
            escape(str(utf8)),
            auto_detect=False,
            header=True,
            sep=",",
            quotechar=QUOTE,
            escapechar=QUOTE,
            columns={f"c{i}": "VARCHAR" for i in range(len(names))},
            hive_partitioning=False,
        ).create("source")
    except duckdb.Error as error:
        raise UserError(_malformed(path, str(error))) from error
    return names


def _malformed(path: Path, message: str) -> str:
    """DuckDB's report of a broken row as one sentence."""
    line = re.search(r"on Line: (\d+)", message)
    where = f"Data file {path}, line {line[1]}" if line else f"Data file {path}"
    fields = re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message)
    if fields:
        return (
            f"{where}: the header has {fields[1]} fields, this line {fields[2]}; the file is cut off, or a comma "
            "inside a value is not quoted."
        )
    if "unterminated quote" in message:
        return f"{where}: a quoted value has no end; the file is cut off or a quote is missing."
    return f"{where}: cannot be read as CSV ({message.splitlines()[0]})."


def _check_names(names: tuple[str, ...], path: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if first := seen.get(name.casefold()):
            what = "twice" if first == name else f"as {first!r} as well"
            raise UserError(f"Data file {path}: the header has the column {name!r} {what}; rename one of them.")
        seen[name.casefold()] = name


@contextmanager
def _as_utf8(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file itself if it is UTF-8, else a copy of it decoded as Latin-1."""
    if _is_utf8(path):
        yield path, ()
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "data.csv"
        with path.open(encoding="latin-1", newline="") as file, copy.open("w", encoding="utf-8", newline="") as out:
            while block := file.read(1 << 20):
                out.write(block)
        yield copy, ("The file is not UTF-8 and was read as Latin-1.",)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _typed(
    connection: duckdb.DuckDBPyConnection, names: tuple[str, ...], text: Collection[str], notes: tuple[str, ...]
) -> Table:
    """Decide the type of each column of the table `source` (c0, c1, …: DuckDB ignores case in names, we do not)
    from all of its values, then fetch it as that type."""
    columns, times = [], []
    for i, name in enumerate(names):
        distinct = f"SELECT DISTINCT c{i} AS value FROM source"  # noqa: S608 (c0, c1, …)
        given, bools, numbers, instants = connection.execute(f"{_COUNTS} FROM ({distinct})").fetchone()
        if name not in text and given == bools:
            expression = f"CASE {_WORD} WHEN 'true' THEN 1.0::DOUBLE WHEN 'false' THEN 0.0::DOUBLE END"
        elif name not in text and given == numbers:
            expression = _NUMBER
        else:
            expression = _STRING
            if given == instants:
                times.append(name)
        columns.append(expression.format(f"c{i}") + f" AS c{i}")
    rows: pd.DataFrame = connection.execute(f"SELECT {', '.join(columns)} FROM source").df()  # noqa: S608 (c0, c1, …)
    rows.columns = pd.Index(names)
    return Table(rows, frozenset(times), notes)
