"""A CSV or Parquet file as a table of numbers and strings.

CSV means comma-separated with a header line, in UTF-8 (with or without byte-order mark) or Windows-1252. DuckDB
parses it strictly: a row with too few or too many fields is an error, not a row of missing values.
"""

import codecs
import csv
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from types import MappingProxyType
from typing import Final

import duckdb
import pandas as pd

from components.preprocess.spelling import CONFIGURED, Choice, Reading, Wish, choose, plain_numbers
from serin.errors import UserError

INTEGERS: Final = ("tinyint", "smallint", "integer", "bigint", "hugeint")
PARQUET_MAGIC: Final = b"PAR1"
QUOTE: Final = '"'
OTHER_DELIMITERS: Final = {";": "semicolon", "\t": "tab", "|": "bar"}
DECLARED: Final = {
    **dict.fromkeys(("varchar", "enum"), Wish.DECLARED),
    **dict.fromkeys((sign + size for sign in ("", "u") for size in INTEGERS), Wish.NUMBER),
    **dict.fromkeys(("float", "double", "decimal"), Wish.NUMBER),
}
"""By the name of a Parquet column's type."""
WINDOWS: Final = "cp1252"
AT_ONCE: Final = 15
"""Columns in one statement: DuckDB plans it in a time that grows with the square of its expressions."""


@dataclass(frozen=True)
class Table:
    """`rows`: number columns are float64 with NaN for missing, all others str with "" for missing. `times`: the
    string columns that hold nothing but dates or times. `remarks`: by column, what was guessed from its spelling, as
    the end of a sentence that starts with the column's name."""

    rows: pd.DataFrame
    times: frozenset[str]
    notes: tuple[str, ...]
    remarks: Mapping[str, str]


def read(path: Path, *, wishes: Mapping[str, Wish] = MappingProxyType({}), encoding: str | None = None) -> Table:
    """Read a file. `wishes`: what is known of columns beforehand; `encoding` of a CSV file, by default UTF-8 or,
    where it is not that, Windows-1252.

    Raises `UserError` when the file is not there, empty, cut off, not comma-separated, its header is ambiguous, or a
    column is not what was wished for.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"Data file {path} cannot be read: {error.strerror}; check data.source.") from error
    if not start.strip():
        raise UserError(f"Data file {path} is empty; provide a file with a header line and rows.")
    with duckdb.connect() as connection:
        if start.startswith(PARQUET_MAGIC) or path.suffix.lower() == ".parquet":
            names, declared = _load_parquet(connection, path)
            numbers = {name for name, wish in declared.items() if wish is Wish.NUMBER}
            known = {n: w for n, w in wishes.items() if not (w is Wish.AGREED and n in numbers)}
            return _typed(connection, names, {**declared, **known}, notes=())
        if encoding is None and b"\0" in start:
            raise UserError(f"Data file {path} is not text; save it as CSV in UTF-8 or as Parquet.")
        with _as_utf8(path, encoding) as (utf8, notes):
            return _typed(connection, _load_csv(connection, utf8, path), wishes, notes)


def _load_parquet(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[tuple[str, ...], dict[str, Wish]]:
    """The names of the columns, and what the file declares of them."""
    try:
        relation = connection.read_parquet(escape(str(path)), hive_partitioning=False)
        names = tuple(relation.columns)
        _check_names(names, path)
        as_text = (f'CAST("{name.replace(QUOTE, QUOTE * 2)}" AS VARCHAR) AS c{i}' for i, name in enumerate(names))
        relation.project(", ".join(as_text)).create("source")
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Data file {path} is not a complete Parquet file ({reason}); copy it again.") from error
    types = zip(names, (dtype.id for dtype in relation.types), strict=True)
    return names, {name: DECLARED[dtype] for name, dtype in types if dtype in DECLARED}


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
        raise UserError(f"Data file {path} has only one column ({only!r}); provide a comma-separated file.")
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
            f"{where}: the header has {fields[1]} fields, this line {fields[2]}; the file is truncated, or a comma "
            "inside a value is not quoted."
        )
    if "unterminated quote" in message:
        return f"{where}: a quoted value has no end; the file is truncated or a quote is missing."
    return f"{where}: cannot be read as CSV ({message.splitlines()[0]})."


def _check_names(names: tuple[str, ...], path: Path) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if first := seen.get(name.casefold()):
            what = "twice" if first == name else f"and also {first!r}"
            raise UserError(f"Data file {path}: the header has the column {name!r} {what}; rename one of them.")
        seen[name.casefold()] = name


@contextmanager
def _as_utf8(path: Path, encoding: str | None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The file itself if it is UTF-8, else a copy of it decoded, with a note if the encoding was guessed."""
    if encoding is None and _is_utf8(path):
        yield path, ()
        return
    guessed = encoding or WINDOWS
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "data.csv"
        try:
            with path.open(encoding=guessed, newline="") as file, copy.open("w", encoding="utf-8", newline="") as out:
                while block := file.read(1 << 20):
                    out.write(block)
        except UnicodeDecodeError as error:
            tried = encoding or f"UTF-8 or {WINDOWS}"
            raise UserError(
                f"Data file {path} is not {tried} text (byte 0x{error.object[error.start]:02x}); save it as UTF-8, "
                "or name its encoding in data.encoding."
            ) from error
        notes = (
            ()
            if encoding
            else (f"The file is not UTF-8 and was read as {WINDOWS}; set data.encoding to change this.",)
        )
        yield copy, notes


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
    connection: duckdb.DuckDBPyConnection,
    names: tuple[str, ...],
    wishes: Mapping[str, Wish],
    notes: tuple[str, ...],
) -> Table:
    """Decide how to read each column of the table `source` (c0, c1, …: DuckDB ignores case in names, we do not)
    from all of its values, then fetch it so."""
    columns = [f"c{i}" for i in range(len(names))]
    parts = [columns[at : at + AT_ONCE] for at in range(0, len(columns), AT_ONCE)]
    plain = frozenset[str]().union(*(plain_numbers(connection, part) for part in parts))
    readings, times, remarks = {}, [], {}
    for column, name in zip(columns, names, strict=True):
        wish = wishes.get(name)
        if column in plain and wish in (None, Wish.AGREED, Wish.NUMBER, Wish.POINT):
            choice = Choice(Reading.NUMBER)
        else:
            choice = choose(connection, column, name, wish)
        readings[column] = f"{choice.sql(column)} AS {column}"
        if choice.times:
            times.append(name)
        if choice.remark:
            remarks[name] = choice.remark + ("" if wish in CONFIGURED else _revision(name, choice.reading))
    rows = pd.concat([_fetch(connection, [readings[column] for column in part]) for part in parts], axis=1)
    rows.columns = pd.Index(names)
    return Table(rows, frozenset(times), notes, remarks)


def _fetch(connection: duckdb.DuckDBPyConnection, columns: list[str]) -> pd.DataFrame:
    """In the order of the file: without being asked for it, DuckDB gives each statement's rows in another one."""
    statement = f"SELECT {', '.join(columns)} FROM source ORDER BY rowid"  # noqa: S608 (c0, c1, …)
    rows: pd.DataFrame = connection.execute(statement).df()
    return rows


def _revision(name: str, reading: Reading) -> str:
    """How to overrule a guess."""
    if reading is Reading.TEXT:
        return f"; to change this, set data.types: {{{name}: number}}"
    return f"; to change this, set data.types: {{{name}: string}}"
