"""What the spellings of a column mean: numbers, truth values, times or text.

DuckDB counts how the values are spelled, plain functions decide from the counts, and the SQL of the decision reads
the column. What anybody takes for granted (plain numbers, blanks, NA) is silent; every other guess leaves a remark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import duckdb

from components.preprocess.contract import counted
from serin.errors import UserError

MISSING_NUMBERS: Final = ("na", "n/a", "#n/a", "nan", "null", "none", "<na>")
"""What other tools write for a missing number. In a string column these are values like any other."""
PLACEHOLDERS: Final = (
    *("?", "??", "-", "--", "\N{EN DASH}", "\N{EM DASH}", ".", "..", "...", "*", "n.a.", "nil", "missing", "unknown"),
    *("blank", "(blank)", "(null)", "#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"),
)
"""What people and spreadsheets put in the place of a number."""
MOSTLY: Final = 0.8
"""Share of numbers from which other words among them count as missing."""
FEW: Final = 40
"""Among no more different numbers than this, other words make the column text, which loses nothing."""
WORTH_A_REMARK: Final = 0.5
EXAMPLES: Final = 3
EXAMPLE_LENGTH: Final = 20

_BLANKS: Final = " \t\r\n\u00a0"
_UNIT: Final = r"(?:[€$£¥]|EUR|USD|GBP|CHF)"
_SPACE: Final = "[ '\u2019\u00a0\u202f]"
"""Between thousands."""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _grouped(separator: str, decimal: str) -> str:
    """Pattern of a number with a separator between thousands and a decimal mark."""
    whole = rf"(?:[1-9]\d{{0,2}}(?:[{separator}]\d{{3}})+|[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+|\d+)"
    return _quoted(rf"[+-]?{whole}(?:[{decimal}]\d*)?")


_DAYS: Final = [f"%{a}{mark}%{b}{mark}%Y" for a, b, marks in (("d", "m", "/.-"), ("m", "d", "/-")) for mark in marks]
TIMES: Final = tuple(day + time for time in ("", " %H:%M", " %H:%M:%S") for day in _DAYS)
"""Formats of days and times other than ISO 8601."""

# SQL over a column {0}
_TRIMMED = f"trim({{0}}, {_quoted(_BLANKS)})"
_WORD = f"lower({_TRIMMED})"
_GIVEN = f"coalesce({_WORD} NOT IN ('', {', '.join(map(_quoted, MISSING_NUMBERS))}), false)"
_PLACEHOLDER = f"coalesce({_WORD} IN ({', '.join(map(_quoted, PLACEHOLDERS))}), false)"
_TRUTH = f"{_WORD} IN ('true', 'false')"
_DIGITS = rf"regexp_full_match({_TRIMMED}, '[\d ]+')"
# 00123, 170 123 456, and more digits than a float can hold
_CODE = (
    f"((starts_with({_TRIMMED}, '0') OR contains({_TRIMMED}, ' ') OR length({_TRIMMED}) > 15) "
    rf"AND regexp_full_match({_TRIMMED}, '0\d+|\d+(?: \d+)+|\d{{16,}}'))"
)
_DIGIT = r"coalesce(regexp_matches({0}, '\d'), false)"
_PERCENT = f"coalesce(ends_with({_TRIMMED}, '%'), false)"
_PLAIN = f"CASE WHEN {_GIVEN} AND NOT contains({{0}}, '_') THEN try_cast({_TRIMMED} AS DOUBLE) END"
_TIME = (
    rf"CASE WHEN regexp_matches({_TRIMMED}, '^\d+[-/.]\d+[-/.]\d') THEN coalesce("
    f"try_cast({{0}} AS TIMESTAMP), try_strptime({_TRIMMED}, [{', '.join(map(_quoted, TIMES))}])) END"
)
_AMOUNT = rf"regexp_replace(regexp_replace({_TRIMMED}, '^([+-]?)\s*{_UNIT}\s*', '\1'), '\s*{_UNIT}$', '')"
_POINTED = f"regexp_full_match({_AMOUNT}, {_grouped(',', '.')})"
_AS_POINT = f"(({_PLAIN}) IS NOT NULL OR {_POINTED})"
_AS_COMMA = f"regexp_full_match({_AMOUNT}, {_grouped('.', ',')})"
_PRICE = f"({_AMOUNT} <> {_TRIMMED} AND contains({_AMOUNT}, '.'))"
_NO_SPACE = f"regexp_replace({_AMOUNT}, {_quoted(_SPACE)}, '', 'g')"
_POINT_NUMBER = f"try_cast(replace({_NO_SPACE}, ',', '') AS DOUBLE)"


def over(column: str, sql: str) -> str:
    return sql.replace("{0}", column)


class Reading(StrEnum):
    """How a column is read: SQL over it, {0}. Text is "" where it is blank, a number NULL where there is none."""

    TRUTH = f"CASE {_WORD} WHEN 'true' THEN 1.0::DOUBLE WHEN 'false' THEN 0.0::DOUBLE END"
    NUMBER = _PLAIN
    POINT = f"coalesce({_PLAIN}, CASE WHEN {_POINTED} THEN {_POINT_NUMBER} END)"
    CLEAR_POINT = (
        f"coalesce({_PLAIN}, CASE WHEN {_POINTED} AND NOT ({_PRICE} AND {_AS_COMMA}) THEN {_POINT_NUMBER} END)"
    )
    """Without "€ 1.200", which is hardly 1.2, nor surely 1200 among numbers with a decimal point."""
    COMMA = f"CASE WHEN {_AS_COMMA} THEN try_cast(replace(replace({_NO_SPACE}, '.', ''), ',', '.') AS DOUBLE) END"
    TEXT = f"CASE WHEN {_TRIMMED} = '' THEN '' ELSE coalesce({{0}}, '') END"


class Wish(StrEnum):
    """What is known of a column before its values are looked at: the config's `data.types`, or that the champion
    takes it for a number (`AGREED`), or that the file says it is text (`DECLARED`)."""

    TEXT = "string"
    NUMBER = "number"
    POINT = "decimal_point"
    COMMA = "decimal_comma"
    AGREED = "agreed"
    DECLARED = "declared"


CONFIGURED: Final = (Wish.TEXT, Wish.NUMBER, Wish.POINT, Wish.COMMA)


@dataclass(frozen=True)
class Choice:
    """`times`: the column is text, of nothing but dates or times. `remark` completes the sentence "`column` …" where
    there is something to say. `percent`: the reading is of the values without their percent signs."""

    reading: Reading
    times: bool = False
    remark: str = ""
    percent: bool = False

    def sql(self, column: str) -> str:
        return over(without_percent(column) if self.percent else column, self.reading)


def without_percent(column: str) -> str:
    return f"rtrim({column}, {_quoted(_BLANKS + '%')})"


@dataclass(frozen=True)
class Marks:
    """Rows whose numbers certainly have a decimal point, or comma; those that could have either are `maybe_`."""

    point: int
    maybe_point: int
    comma: int
    maybe_comma: int

    @property
    def reading(self) -> Reading:
        if (self.comma, self.maybe_comma) > (self.point, self.maybe_point):
            return Reading.COMMA
        return Reading.CLEAR_POINT if self.point else Reading.POINT


_MARKS: Final = (
    f"{_AS_POINT} AND NOT {_AS_COMMA}",
    f"{_AS_POINT} AND {_AS_COMMA} AND NOT {_PRICE} AND NOT {_DIGITS}",
    f"{_AS_COMMA} AND NOT {_AS_POINT}",
    f"{_AS_POINT} AND {_AS_COMMA} AND {_PRICE}",
)


@dataclass(frozen=True)
class Numbers:
    """Rows of a column read as numbers: `given` at all, `read` as a number, of these nothing but `digits`, and
    `codes`, like 007; of what could not be read, `placeholders`, and words that are `mixed` with digits. `different`
    counts the numbers, each once."""

    given: int
    read: int
    digits: int
    codes: int
    placeholders: int
    mixed: int
    different: int

    @property
    def share(self) -> float:
        """Of the rows that are neither blank nor hold a placeholder."""
        return self.read / max(self.given - self.placeholders, 1)


def is_number(found: Numbers) -> bool:
    """Whether a column of numbers and other words is a number, missing where the words are."""
    if not found.read or _names_things(found):
        return False
    return found.share == 1 or (found.share >= MOSTLY and found.different > FEW)


def _names_things(found: Numbers) -> bool:
    """Like 007, or 12345-6789 among numbers without sign or decimals."""
    return found.digits == found.read and bool(found.codes or found.mixed)


def plain_numbers(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> frozenset[str]:
    """Those columns of the table `source` that hold plain numbers and blanks only: most of a wide table, found by one
    look at several columns and without gathering their different values."""
    conditions = (_GIVEN, f"({_PLAIN}) IS NOT NULL", _CODE)
    counts = [over(column, f"count(*) FILTER ({condition})") for column in columns for condition in conditions]
    found = connection.execute(f"SELECT {', '.join(counts)} FROM source").fetchall()[0]  # noqa: S608 (c0, c1, …)
    by_column = zip(columns, found[::3], found[1::3], found[2::3], strict=True)
    return frozenset(column for column, given, plain, codes in by_column if given and given == plain and not codes)


def choose(connection: duckdb.DuckDBPyConnection, column: str, name: str, wish: Wish | None) -> Choice:
    """How to read `column` of the table `source`, which messages call `name`. Raises `UserError` where numbers are
    wished for and there are none."""
    values = _Values(connection, column)
    given, truths, plain, codes, times, placeholders, percents, with_digits = values.different(
        _GIVEN, _TRUTH, f"({_PLAIN}) IS NOT NULL", _CODE, f"({_TIME}) IS NOT NULL", _PLACEHOLDER, _PERCENT, _DIGIT
    )
    if wish is Wish.TEXT:
        return Choice(Reading.TEXT, times=times == given)
    if given == truths and (given == 0 or wish is not Wish.DECLARED):
        return Choice(Reading.TRUTH)
    if given == plain and (wish in (Wish.NUMBER, Wish.POINT) or (wish in (None, Wish.AGREED) and not codes)):
        return Choice(Reading.NUMBER)
    if given == times and wish in (None, Wish.AGREED, Wish.DECLARED):
        return Choice(Reading.TEXT, times=True)
    if wish is None and given == placeholders + truths and truths:
        return Choice(Reading.TRUTH, remark=values.remark(Reading.TRUTH, values.numbers(Reading.TRUTH)))
    if percents and percents + placeholders == given and wish is not Wish.DECLARED:
        plainly = choose(connection, without_percent(column), name, wish)
        if plainly.reading is not Reading.TEXT:
            said = ", and ".join(filter(None, ("is in percent", plainly.remark)))
            return replace(plainly, remark=said, percent=True)
    if wish not in CONFIGURED and not plain and not with_digits:
        return Choice(Reading.TEXT)
    return _of_spellings(values, name, wish)


def _of_spellings(values: "_Values", name: str, wish: Wish | None) -> Choice:
    match wish:
        case Wish.POINT:
            reading = Reading.POINT
        case Wish.COMMA:
            reading = Reading.COMMA
        case _:
            reading = Marks(*values.rows(*_MARKS)).reading
    found = values.numbers(reading)
    if wish in CONFIGURED:
        if not found.read:
            raise UserError(f"Config data.types: column {name!r} has no numbers; correct its type.")
        return Choice(reading, remark=values.remark(reading, found))
    if wish is Wish.AGREED and found.read and found.share >= MOSTLY:
        told = values.remark(reading, found)
        if found.codes:
            told = "is a number although it holds codes, because the champion treats it as one"
        return Choice(reading, remark=told)
    if wish is None and is_number(found):
        return Choice(reading, remark=values.remark(reading, found))
    if found.share < WORTH_A_REMARK:
        return Choice(Reading.TEXT)
    return Choice(Reading.TEXT, remark=values.text_remark(reading, found, declared=wish is Wish.DECLARED))


class _Values:
    """The values of a column: questions to DuckDB."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, column: str) -> None:
        self._connection = connection
        self._column = column

    def different(self, *conditions: str) -> list[int]:
        """How many different values meet each."""
        counts = ", ".join(f"count(*) FILTER ({condition})" for condition in conditions)
        return list(self._ask(counts, f"(SELECT DISTINCT {self._column} AS value FROM source)")[0])  # noqa: S608

    def rows(self, *conditions: str) -> list[int]:
        """How many rows meet each."""
        sums = (f"coalesce(sum(times) FILTER ({condition}), 0)::BIGINT" for condition in conditions)
        return list(self._ask(", ".join(sums), self._counted)[0])

    def numbers(self, reading: Reading) -> Numbers:
        read, unread = f"({reading.value}) IS NOT NULL", f"({reading.value}) IS NULL"
        given, read_, digits, codes, placeholders, mixed = self.rows(
            _GIVEN,
            f"{_GIVEN} AND {read}",
            f"{read} AND {_DIGITS}",
            f"{read} AND {_CODE}",
            f"{unread} AND {_PLACEHOLDER}",
            rf"{unread} AND {_GIVEN} AND NOT {_PLACEHOLDER} AND regexp_matches({{0}}, '\d')",
        )
        ((different,),) = self._ask(f"count(DISTINCT {reading.value})", self._counted)
        return Numbers(given, read_, digits, codes, placeholders, mixed, different)

    def remark(self, reading: Reading, found: Numbers) -> str:
        """Of a column that is read as numbers."""
        parts = []
        if unread := found.given - found.read:
            words = self._examples(f"{_GIVEN} AND ({reading.value}) IS NULL")
            parts.append(f"is a number except in {counted(unread)} ({words}), which count as missing")
        other = (
            f"({reading.value}) IS DISTINCT FROM ({_PLAIN})" if reading is Reading.COMMA else f"({_PLAIN}) IS NULL"
        )
        unusual = f"{other} AND ({reading.value}) IS NOT NULL"
        if reading is not Reading.TRUTH and (
            first := self._ask(f"value, {reading.value}", self._commonest(unusual, 1))
        ):
            ((spelled, number),) = first
            parts.append(f"has numbers written like {shown(spelled)}, read as {number:.15g}")
        return ", and ".join(parts)

    def text_remark(self, reading: Reading, found: Numbers, *, declared: bool) -> str:
        if declared:
            return f"is text because the file says so, though {_share(found)} are numbers"
        if found.codes and found.digits == found.read:
            return f"is text because of codes like {self._examples(_CODE)}"
        words = self._examples(f"{_GIVEN} AND ({reading.value}) IS NULL")
        return f"is text because of {words}, though {_share(found)} are numbers"

    def _examples(self, condition: str) -> str:
        """The commonest values that meet it."""
        found = self._ask("value", self._commonest(condition, EXAMPLES + 1))
        return ", ".join(shown(value) for (value,) in found[:EXAMPLES]) + (", …" if len(found) > EXAMPLES else "")

    @property
    def _counted(self) -> str:
        return f"(SELECT {self._column} AS value, count(*) AS times FROM source GROUP BY ALL)"  # noqa: S608

    def _commonest(self, condition: str, limit: int) -> str:
        return f"{self._counted} WHERE {condition} ORDER BY times DESC, value LIMIT {limit}"

    def _ask(self, what: str, source: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._connection.execute(
            over("value", f"SELECT {what} FROM {source}")  # noqa: S608
        ).fetchall()
        return found


def _share(found: Numbers) -> str:
    return "all its values" if found.share == 1 else f"{found.share:.0%} of its values"


def shown(value: str, *, strip: bool = True) -> str:
    """In backticks, on one line, not too long."""
    printable = "".join(letter if letter.isprintable() else " " for letter in value)
    if strip:
        printable = printable.strip()
    return f"`{printable[:EXAMPLE_LENGTH]}{'…' if len(printable) > EXAMPLE_LENGTH else ''}`"
