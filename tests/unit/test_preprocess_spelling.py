"""What columns of odd spellings are taken for, and what is said about it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.preprocess.reading import Table, read
from components.preprocess.spelling import Numbers, Wish, is_number
from serin.errors import UserError
from tests.unit.test_preprocess_reading import write_parquet

ROWS = 400
AMOUNTS = [f"{i * 7 % 389 + 0.25:.2f}" for i in range(ROWS)]
WHOLE = [str(i * 7 % 389 + 1000) for i in range(ROWS)]


def table(directory: Path, values: list[str], wish: Wish | None = None, *, parquet: bool = False) -> Table:
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(len(values))], "a": values})
    path = directory / ("data.parquet" if parquet else "data.csv")
    if parquet:
        write_parquet(frame, path)
    else:
        frame.to_csv(path, index=False)
    return read(path, wishes={"a": wish} if wish else {})


def with_tenth(values: list[str], odd: str) -> list[str]:
    return [odd if i % 10 == 3 else value for i, value in enumerate(values)]


PLACEHOLDERS = ["?", "-", ".", "missing", "#DIV/0!", "Unknown", "N/A", "", "  ", "n.a.", "\N{EM DASH}"]
SILENT = ("N/A", "", "  ")


@pytest.mark.parametrize("odd", PLACEHOLDERS)
@pytest.mark.parametrize("values", [AMOUNTS, WHOLE, ["1", "2"] * 200], ids=["decimals", "whole", "few"])
def test_a_placeholder_in_a_tenth_of_the_rows_is_missing_and_said(
    tmp_path: Path, values: list[str], odd: str
) -> None:
    found = table(tmp_path, with_tenth(values, odd))
    expected = [np.nan if i % 10 == 3 else float(value) for i, value in enumerate(values)]
    assert found.rows["a"].tolist() == pytest.approx(expected, nan_ok=True)
    remark = found.remarks.get("a")
    if odd in SILENT:
        assert remark is None
    else:
        said = f"is a number except in 40 rows (`{odd}`), which count as missing"
        assert remark == f"{said}; to change this, set data.types: {{a: string}}"


@pytest.mark.parametrize(
    ("values", "odd", "number"),
    [
        (AMOUNTS, "12,345", 12345.0),
        (WHOLE, "12,345", 12345.0),
        (WHOLE, "1,5", 1.5),
        (WHOLE, "€ 1.200", 1200.0),
        (WHOLE, "1.200,50 €", 1200.5),
        (WHOLE, "-1.200,50", -1200.5),
        (WHOLE, "1'200.50", 1200.5),
        (WHOLE, "1 200,50", 1200.5),
        (WHOLE, "$1,200.50", 1200.5),
        (WHOLE, "1,200,300", 1200300.0),
        (WHOLE, "0,125", 0.125),
        (WHOLE, "1.2e3", 1200.0),
        (AMOUNTS, "EUR 7", 7.0),
    ],
)
def test_a_spelling_of_another_place_is_recognised(
    tmp_path: Path, values: list[str], odd: str, number: float
) -> None:
    found = table(tmp_path, with_tenth(values, odd))
    assert found.rows["a"][3] == number
    assert found.rows["a"][0] == float(values[0])
    assert found.rows["a"].notna().all()
    if odd != "1.2e3":
        assert f"has numbers written like `{odd}`, read as {number:.15g};" in found.remarks["a"]


@pytest.mark.parametrize("odd", ["1,5", "€ 1.200", "1.200,50", "refused", "<0.5", "12 kg"])
def test_what_cannot_be_read_among_decimal_points_is_missing_and_said(tmp_path: Path, odd: str) -> None:
    found = table(tmp_path, with_tenth(AMOUNTS, odd))
    assert found.rows["a"].isna().sum() == 40
    assert found.remarks["a"].startswith(f"is a number except in 40 rows (`{odd}`), which count as missing;")


def test_a_whole_column_with_decimal_commas(tmp_path: Path) -> None:
    found = table(tmp_path, [amount.replace(".", ",") for amount in AMOUNTS])
    assert found.rows["a"].tolist() == [float(amount) for amount in AMOUNTS]
    assert "written like `" in found.remarks["a"]


@pytest.mark.parametrize("sign", ["%", " %"])
def test_a_column_in_percent(tmp_path: Path, sign: str) -> None:
    found = table(tmp_path, with_tenth([value + sign for value in AMOUNTS], "?"))
    assert found.rows["a"][0] == float(AMOUNTS[0])
    assert found.rows["a"].isna().sum() == 40
    assert found.remarks["a"].startswith("is in percent, and is a number except in 40 rows (`?`),")
    mixed = table(tmp_path, with_tenth(AMOUNTS, "12" + sign))
    assert mixed.rows["a"].isna().sum() == 40
    assert table(tmp_path, ["low%", "high%"] * 200).rows["a"][0] == "low%"


def test_plain_numbers_are_read_without_a_word(tmp_path: Path) -> None:
    for values in (AMOUNTS, WHOLE, ["1.200", "1.300"] * 200, ["0", "0.5"] * 200, ["-1", "+2e3"] * 200):
        found = table(tmp_path, values)
        assert found.rows["a"].tolist() == [float(value) for value in values]
        assert found.remarks == {}


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (["01", "1"] * 200, "is text because of codes like `01`;"),
        ([f"{i:03d}" for i in range(ROWS)], "is text because of codes like `000`, `001`, `002`, …;"),
        (with_tenth([f"{i:05d}" for i in range(ROWS)], "?"), "is text because of codes like `"),
        (with_tenth(WHOLE, "1234-5678"), "is text because of `1234-5678`, though 90% of its values are numbers;"),
        (with_tenth(WHOLE, "A12"), "is text because of `A12`, though 90% of its values are numbers;"),
        (["1", "2", "3+"] * 100, "is text because of `3+`, though 67% of its values are numbers;"),
        (["170 123 456", "30 123 456"] * 200, "is text because of codes like `170 123 456`, `30 123 456`;"),
        ([f"40{i:015d}" for i in range(ROWS)], "is text because of codes like `40000000000000000`, `"),
        (["one", "two", "3"] * 100, None),
        (["a", "b", "?"] * 100, None),
        (["12-34", "56-78"] * 100, None),
        (["10.0.0.1", "192.168.1.10"] * 100, None),
        (["1,2,3", "4,5"] * 100, "is text because of `1,2,3`, though 50% of its values are numbers;"),
    ],
)
def test_codes_and_words_stay_text(tmp_path: Path, values: list[str], remark: str | None) -> None:
    found = table(tmp_path, values)
    assert found.rows["a"].tolist() == values
    if remark is None:
        assert found.remarks == {}
    else:
        assert found.remarks["a"].startswith(remark)
        assert found.remarks["a"].endswith("; to change this, set data.types: {a: number}")


def test_text_of_a_parquet_file_stays_text(tmp_path: Path) -> None:
    for values in (WHOLE, ["01", "1"] * 200, ["true", "false"] * 200):
        found = table(tmp_path, values, parquet=True)
        assert found.rows["a"].tolist() == values
    found = table(tmp_path, WHOLE, parquet=True)
    assert found.remarks["a"].startswith("is text because the file says so, though all its values are numbers;")
    assert table(tmp_path, ["x", "y"] * 200, parquet=True).remarks == {}


@pytest.mark.parametrize("wish", [None, Wish.AGREED])
def test_a_number_of_a_parquet_file_stays_one(tmp_path: Path, wish: Wish | None) -> None:
    nanoseconds = pd.DataFrame({"a": [1_700_000_000_000_000_000 + i for i in range(ROWS)], "b": 0.5})
    found = read(write_parquet(nanoseconds, tmp_path / "data.parquet"), wishes={"a": wish} if wish else {})
    assert found.rows["a"].dtype == np.float64
    assert found.remarks == {}


@pytest.mark.parametrize("parquet", [False, True])
def test_the_config_decides_otherwise(tmp_path: Path, *, parquet: bool) -> None:
    codes = ["01", "1"] * 200
    assert table(tmp_path, codes, Wish.NUMBER, parquet=parquet).rows["a"].tolist() == [1.0] * 400
    assert table(tmp_path, WHOLE, Wish.TEXT, parquet=parquet).rows["a"].tolist() == WHOLE
    few = table(tmp_path, ["1", "x", "y"] * 100, Wish.NUMBER, parquet=parquet)
    assert few.rows["a"].notna().sum() == 100
    assert few.remarks["a"] == "is a number except in 200 rows (`x`, `y`), which count as missing"
    for wish, number in ((Wish.COMMA, 1234.0), (Wish.POINT, 1.234)):
        assert table(tmp_path, ["1.234"] * 200, wish, parquet=parquet).rows["a"][0] == number
    with pytest.raises(UserError, match=r"data.types: column 'a' has no numbers"):
        table(tmp_path, ["x", "y"] * 100, Wish.NUMBER, parquet=parquet)


def test_a_number_of_the_champion_stays_one_where_most_still_are(tmp_path: Path) -> None:
    kept = table(tmp_path, ["01", "1"] * 200, Wish.AGREED)
    assert kept.rows["a"].tolist() == [1.0] * 400
    assert "is a number although it holds codes, because the champion" in kept.remarks["a"]
    assert table(tmp_path, with_tenth(["1", "2"] * 200, "x"), Wish.AGREED).rows["a"].isna().sum() == 40
    assert table(tmp_path, ["one", "2"] * 200, Wish.AGREED).rows["a"].dtype != np.float64
    assert table(tmp_path, WHOLE, Wish.AGREED, parquet=True).rows["a"].dtype == np.float64


def test_examples_are_printable_and_short(tmp_path: Path) -> None:
    found = table(tmp_path, with_tenth(AMOUNTS, "not\x1b[31m known " + "x" * 80))
    assert "(`not [31m known xxxxx…`)" in found.remarks["a"]


counts = st.integers(0, 1000)


@settings(deadline=None)
@given(counts, counts, counts, counts, counts, counts)
def test_names_are_never_numbers(
    read_: int, digits: int, codes: int, placeholders: int, mixed: int, different: int
) -> None:
    digits, codes = min(digits, read_), min(codes, digits, read_)
    found = Numbers(read_ + placeholders + mixed, read_, digits, codes, placeholders, mixed, different)
    if is_number(found):
        assert read_ > 0
        assert digits < read_ or not codes
        assert mixed == 0 or (digits < read_ and read_ >= 4 * mixed)
