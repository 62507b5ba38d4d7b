from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.preprocess.reading import AT_ONCE, read
from components.preprocess.spelling import Wish
from serin.errors import UserError

AS_WINDOWS = "The file is not UTF-8 and was read as cp1252; set data.encoding to change this."


def write(directory: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(rows: pd.DataFrame, path: Path) -> Path:
    with duckdb.connect() as connection:
        connection.register("rows_to_write", rows)
        connection.table("rows_to_write").write_parquet(str(path))
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", " ", "2.5"], [1.0, np.nan, 2.5]),
        (["1", "", "-3e2"], [1.0, np.nan, -300.0]),
        (["NA", "7", "NaN"], [np.nan, 7.0, np.nan]),
        (["1_000", "2", "3"], ["1_000", "2", "3"]),
        (["true", "FALSE", ""], [1.0, 0.0, np.nan]),
        (["a", "1", " "], ["a", "1", ""]),
        (["a", "NA", "2"], ["a", "NA", "2"]),
        ([" a ", "ä€", "1_000"], [" a ", "ä€", "1_000"]),
        (["", " ", ""], [np.nan, np.nan, np.nan]),
    ],
)
def test_types_follow_from_all_values(tmp_path: Path, values: list[str], expected: list[object]) -> None:
    path = write(tmp_path, "key,größe €\n" + "".join(f"k{i},{value}\n" for i, value in enumerate(values)))
    column = read(path).rows["größe €"]
    assert column.dtype == (np.float64 if isinstance(expected[0], float) else "str")
    pd.testing.assert_series_equal(column, pd.Series(expected, name="größe €"))


def test_what_windows_wrote_is_what_clients_send(tmp_path: Path) -> None:
    table = read(write(tmp_path, "name,x\n€50 – Café,1\n".encode("cp1252")))
    assert table.rows["name"].tolist() == ["€50 – Café"]
    assert table.notes == (AS_WINDOWS,)


def test_the_configured_encoding_is_used(tmp_path: Path) -> None:
    for encoding in ("cp1250", "utf-16", "shift_jis"):
        table = read(write(tmp_path, "name,x\nAb,1\n".encode(encoding)), encoding=encoding)
        assert (table.rows["name"].tolist(), table.notes) == (["Ab"], ())
    path = write(tmp_path, "name,x\nłódź,1\n".encode("cp1250"))
    assert read(path, encoding="cp1250").rows["name"].tolist() == ["łódź"]


@pytest.mark.parametrize(("encoding", "tried"), [(None, "UTF-8 or cp1252"), ("ascii", "ascii")])
def test_an_encoding_that_cannot_be_is_refused(tmp_path: Path, encoding: str | None, tried: str) -> None:
    path = write(tmp_path, b"name,x\n\x81\xff,1\n")
    with pytest.raises(
        UserError, match=rf"is not {tried} text \(byte 0x81\); save it as UTF-8, or name its encoding"
    ):
        read(path, encoding=encoding)


def test_named_columns_stay_text(tmp_path: Path) -> None:
    table = read(write(tmp_path, "id,x\n007,1\n8,2\n"), wishes={"id": Wish.TEXT})
    assert table.rows["id"].tolist() == ["007", "8"]


def test_times_are_found(tmp_path: Path) -> None:
    table = read(
        write(
            tmp_path, "a,b,c,d,e\n2024-01-31,31/12/2023,x,2024,31-12-2023\n,1/2/2024,2024-01-01,2025,1-2-2024 10:30\n"
        )
    )
    assert table.times == {"a", "b", "e"}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("name,x\nMüller,1\n".encode(), ()),
        ("\ufeffname,x\nMüller,1\n".encode(), ()),
        ("name,x\r\nMüller,1\r\n".encode(), ()),
        ('"name","x"\n"Müller","1"'.encode(), ()),
        ("name,x\nMüller,1\n".encode("latin-1"), (AS_WINDOWS,)),
    ],
)
def test_encodings_and_line_ends(tmp_path: Path, content: bytes, note: tuple[str, ...]) -> None:
    write(tmp_path, "other,file\n1,2\n", "with space 1 more.csv")
    table = read(write(tmp_path, content, "with space [1]*.csv"))
    assert table.rows.to_dict("list") == {"name": ["Müller"], "x": [1.0]}
    assert table.notes == note


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("a,b\n1,2\n3", "line 3: the header has 2 fields, this line 1"),
        ("a,b\n1,2\n3,4,5\n", "line 3: the header has 2 fields, this line 3"),
        ('a,b\n1,2\n3,"x', "line 3: a quoted value has no end"),
        ("a;b\n1;2\n", r"delimited by semicolon \(';'\)"),
        ("a\tb\n1\t2\n", "delimited by tab"),
        ("a|b\n1|2\n", "delimited by bar"),
        ("a\n1\n", r"only one column \('a'\)"),
        ("a,b,a\n1,2,3\n", "column 'a' twice"),
        ("a,b,A\n1,2,3\n", "column 'A' and also 'a'"),
        (b"a,b\n1,\0\n", "is not text"),
        ("a,b\n1,2\n".encode("utf-16"), "is not text"),
    ],
)
def test_bad_csv_ends_in_one_sentence(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path, content))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)


def test_parquet_cut_off_or_something_else(tmp_path: Path) -> None:
    whole = write_parquet(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), tmp_path / "whole.parquet")
    for content in (whole.read_bytes()[:-20], b"a,b\n1,2\n"):
        with pytest.raises(UserError, match="not a complete Parquet file"):
            read(write(tmp_path, content, "cut.parquet"))


def test_parquet_types(tmp_path: Path) -> None:
    path = tmp_path / "year=2024" / "typed.parquet"
    path.parent.mkdir()
    rows = pd.DataFrame(
        {
            "flag": pd.array([True, None, False], dtype="boolean"),
            "whole": [1, 2, 3],
            "day": pd.to_datetime(["2024-01-01", "2024-01-02", None]),
            'quo"ted': ["x", None, " "],
        }
    )
    table = read(write_parquet(rows, path))
    expected = {"flag": [1.0, np.nan, 0.0], "whole": [1.0, 2.0, 3.0], 'quo"ted': ["x", "", ""]}
    pd.testing.assert_frame_equal(table.rows[list(expected)], pd.DataFrame(expected))
    assert table.times == {"day"}
    assert list(table.rows.columns) == list(rows.columns)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_csv_and_parquet_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float | None, str | None]]
) -> None:
    directory = tmp_path_factory.mktemp("same")
    frame = pd.DataFrame(rows, columns=["number", "text"]).astype({"number": "float64", "text": object})
    frame["kind"] = "x"  # a row is never all blank: a blank line is no row
    frame.to_csv(directory / "data.csv", index=False, lineterminator="\n")
    write_parquet(frame, directory / "data.parquet")
    from_csv = read(directory / "data.csv", wishes={"text": Wish.TEXT}).rows
    pd.testing.assert_frame_equal(from_csv, read(directory / "data.parquet", wishes={"text": Wish.TEXT}).rows)
    pd.testing.assert_series_equal(from_csv["number"], frame["number"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_wide_table_is_read(tmp_path: Path, kind: str) -> None:
    """One statement over all columns would take minutes and most of the memory."""
    numbers = {f"number {i}": [f"{i}.5", "", "-1"] for i in range(800)}
    texts = {f"text {i}": ["a", "b", " "] for i in range(200)}
    wide = {**numbers, **texts, "odd": ["1", "two", "3"], "code": ["007", "8", "9"]}
    table = pd.DataFrame(wide)
    if kind == "csv":
        rows = read(write(tmp_path, table.to_csv(index=False))).rows
    else:
        file = write_parquet(table.astype("str"), tmp_path / "wide.parquet")
        rows = read(file, wishes=dict.fromkeys(numbers, Wish.NUMBER)).rows
    assert list(rows.columns) == list(wide)
    assert rows["number 799"].tolist()[::2] == [799.5, -1.0]
    assert np.isnan(rows["number 0"][1])
    assert rows["text 199"].tolist() == ["a", "b", ""]
    assert rows["odd"].tolist() == ["1", "two", "3"]
    assert rows["code"].tolist() == ["007", "8", "9"]


def test_a_long_table_keeps_its_rows_together_and_in_order(tmp_path: Path) -> None:
    """Columns are fetched by several statements; each may come in an order of its own unless it is asked for one."""
    count = 300_000
    columns = ", ".join(f"i AS n{number}" for number in range(AT_ONCE + 1))
    with duckdb.connect() as connection:
        made = connection.sql(f"SELECT {columns}, 'r' || i AS t FROM range({count}) r(i)")  # noqa: S608
        made.write_csv(str(tmp_path / "long.csv"))
    rows = read(tmp_path / "long.csv").rows
    for name in rows.columns[:-1]:
        assert np.array_equal(rows[name], np.arange(count))
    assert rows["t"].tolist() == [f"r{i}" for i in range(count)]
