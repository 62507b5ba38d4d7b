import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from components.config import Config
from components.dataset import read_rows, read_schema
from components.preprocess.core import Summary, preprocess
from components.preprocess.generator import snapshot
from components.preprocess.sources import SourceKind, sha256_of
from components.preprocess.splitting import canonical, held_out, position
from serin.errors import UserError

CUSTOMERS = 600


@pytest.fixture(scope="module")
def customers() -> pd.DataFrame:
    return snapshot(3, CUSTOMERS)


def config(**changes: Any) -> Config:
    churn = {"service": "churn", "data": {"source": "x.csv"}, "target": "Churn", "positive": "Yes"}
    return Config.model_validate(
        {**churn, "ids": ["customerID"], "protected": ["gender", "SeniorCitizen"], **changes}
    )


def run(directory: Path, rows: pd.DataFrame, settings: Config, champion: Path | None = None) -> Summary:
    directory.mkdir(exist_ok=True)
    data = directory / "data.csv"
    rows.to_csv(data, index=False)
    return preprocess(
        settings,
        data,
        source_kind=SourceKind.FILE,
        champion=champion,
        train=directory / "train",
        test=directory / "test",
    )


def as_champion(directory: Path) -> Path:
    """The model directory as training leaves it, as far as preprocess reads it."""
    meta = directory / "model" / "meta"
    meta.mkdir(parents=True)
    for name in ("contract.json", "profile.json"):
        (meta / name).write_text((directory / "train" / name).read_text())
    return directory / "model"


def finite(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_two_datasets_share_out_the_rows(tmp_path: Path, customers: pd.DataFrame) -> None:
    summary = run(tmp_path, customers, config())
    train, test = read_rows(tmp_path / "train"), read_rows(tmp_path / "test")
    assert set(train["customerID"]) | set(test["customerID"]) == set(customers["customerID"])
    assert set(train["customerID"]).isdisjoint(test["customerID"])
    assert (summary.rows, summary.train_rows, summary.test_rows) == (CUSTOMERS, len(train), len(test))
    assert abs(len(test) / CUSTOMERS - 0.2) < 0.06
    assert summary.features == tuple(customers.columns[1:-1])
    assert summary.dropped == {}
    assert summary.sha256 == sha256_of(tmp_path / "data.csv")
    assert summary.positive_rate == pytest.approx((customers["Churn"] == "Yes").mean())
    labels = pd.concat([train, test]).set_index("customerID")["Churn"]
    assert labels.sort_index().tolist() == (
        (customers.set_index("customerID")["Churn"] == "Yes").astype(int).sort_index().tolist()
    )
    schema = read_schema(tmp_path / "train")
    assert schema == read_schema(tmp_path / "test")
    assert (schema.positive, schema.negative, schema.ids) == ("Yes", "No", ("customerID",))
    dtypes = {column.name: column.dtype for column in schema.features}
    assert dtypes["TotalCharges"] == dtypes["SeniorCitizen"] == "number"
    assert dtypes["Contract"] == "string"
    assert test["TotalCharges"].dtype == np.float64
    for name in ("contract.json", "profile.json"):
        content = (tmp_path / "train" / name).read_text()
        assert content == (tmp_path / "test" / name).read_text()
        finite(content)


def test_a_row_keeps_its_side_whatever_else_changes(tmp_path: Path) -> None:
    for number, month in enumerate((0, 3)):
        rows = snapshot(3, CUSTOMERS, month=month).sample(frac=1, random_state=number)
        run(tmp_path / str(number), rows, config())
    first, later = (set(read_rows(tmp_path / run_ / "test")["customerID"]) for run_ in "01")
    learned = set(read_rows(tmp_path / "0" / "train")["customerID"])
    assert later & first
    assert not later & learned


def test_nothing_learned_comes_from_held_out_rows(tmp_path: Path, customers: pd.DataFrame) -> None:
    run(tmp_path, customers, config())
    held_out = customers["customerID"].isin(read_rows(tmp_path / "test")["customerID"])
    changed = customers.copy()
    changed.loc[held_out, "MonthlyCharges"] *= 1.5
    run(tmp_path / "changed", changed, config())
    profiles = [(place / "train" / "profile.json").read_text() for place in (tmp_path, tmp_path / "changed")]
    assert profiles[0] == profiles[1]


@pytest.mark.parametrize(
    ("no", "yes", "positive"),
    [
        ("No", "Yes", "yes "),
        ("0", "1", 1),
        ("0.0", "1.0", "1"),
        ("False", "True", True),
        ("stays", "leaves", "leaves"),
        ("bleibt", "kündigt", "kündigt"),
        ("2", "1", 2),
    ],
)
def test_targets_of_any_spelling(
    tmp_path: Path, customers: pd.DataFrame, no: str, yes: str, positive: object
) -> None:
    rows = customers.assign(Churn=np.where(customers["Churn"] == "Yes", yes, no))
    summary = run(tmp_path, rows, config(positive=positive))
    expected = no if positive == 2 else yes
    assert (summary.positive, summary.negative) == (expected, no if expected == yes else yes)
    assert summary.positive_rate == pytest.approx((rows["Churn"] == expected).mean())


def test_columns_that_describe_nothing_are_left_out_and_kept_in_the_rows(
    tmp_path: Path, customers: pd.DataFrame
) -> None:
    count = len(customers)
    rows = customers.assign(
        same="x",
        empty="",
        comment=[f"call {i}" for i in range(count)],
        since=[f"2024-01-{i % 28 + 1:02d}" for i in range(count)],
        sparse=["" if i % 3 else "seen" for i in range(count)],
    )
    rows.insert(0, "", range(count))
    summary = run(tmp_path, rows, config(drop=["tenure", "gender"]))
    assert summary.dropped == {
        "unnamed 1": "is a row number; keep: [unnamed 1] makes it a feature",
        "gender": "is named in drop",
        "tenure": "is named in drop",
        "same": "has only one value",
        "empty": "has only one value",
        "comment": f"has {count} distinct values in {count} rows; keep: [comment] makes it a feature",
        "since": "is a date or time, from which a number could be derived, such as an age in days; keep: [since] "
        "makes it a feature",
    }
    kept = run(tmp_path / "kept", rows, config(drop=["tenure", "gender"], keep=["unnamed 1", "comment", "since"]))
    assert set(kept.features) == {*summary.features, "unnamed 1", "comment", "since"}
    assert "sparse" in summary.features
    assert {"gender", "tenure", "comment"} <= set(read_rows(tmp_path / "test").columns)
    assert read_schema(tmp_path / "test").protected == ("gender", "SeniorCitizen")


def nan_target(rows: pd.DataFrame) -> pd.DataFrame:
    churn = rows["Churn"].copy()
    churn[[4, 9]] = ["", "NaN"]
    return rows.assign(Churn=churn)


@pytest.mark.parametrize(
    ("spoil", "changes", "message"),
    [
        (
            lambda rows: rows,
            {"target": "churned"},
            "Config target: the data has no column 'churned'; did you mean 'Churn'",
        ),
        (lambda rows: rows, {"target": "q"}, "its columns are 'customerID', 'gender'"),
        (lambda rows: rows, {"ids": ["customer_id"]}, "Config ids: .* did you mean 'customerID'"),
        (lambda rows: rows, {"protected": ["Gender"]}, "Config protected: .* did you mean 'gender'"),
        (lambda rows: rows, {"drop": ["tenur"]}, "Config drop: .* did you mean 'tenure'"),
        (lambda rows: rows, {"split": {"group": "house"}}, "Config split.group: the data has no column 'house'"),
        (lambda rows: rows, {"drop": ["Churn"]}, "Config drop: 'Churn' is the target"),
        (
            lambda rows: rows,
            {"positive": "Maybe"},
            "'Maybe' is not a value of target 'Churn'; set it to one of 'No', 'Yes'",
        ),
        (lambda rows: rows.head(0), {}, "has 0 rows; at least 100"),
        (lambda rows: rows.head(10), {}, "has 10 rows; at least 100"),
        (lambda rows: rows[rows["Churn"] == "No"], {}, r"only one class \('No'\)"),
        (lambda rows: rows.assign(Churn=rows["Contract"]), {}, "has 3 classes"),
        (nan_target, {}, r"'Churn' is blank \(2 rows: 5, 10\)"),
        (
            lambda rows: rows.assign(reason=np.where(rows["Churn"] == "Yes", "price", "")),
            {},
            "'reason' leaks the target",
        ),
        (lambda rows: rows.assign(score=rows["Churn"].map({"Yes": 0.9, "No": 0.2})), {}, "'score' leaks the target"),
        (lambda rows: rows.assign(level=[math.inf, *range(len(rows) - 1)]), {}, "'level' is infinite in 1 row;"),
        (lambda rows: rows[["customerID", "Churn"]], {"protected": []}, "No column is left to train on"),
        (
            lambda rows: rows.iloc[
                [*np.flatnonzero(rows["Churn"] == "No")[:95], *np.flatnonzero(rows["Churn"] == "Yes")[:6]]
            ],
            {},
            "Class 'Yes' has . training rows; at least 10",
        ),
        (
            lambda rows: rows.assign(when="2024-01-01"),
            {"split": {"time": "when"}},
            "too many rows share one value of 'when'",
        ),
        (
            lambda rows: rows,
            {"split": {"time": "Contract"}},
            "neither numbers nor times .600 rows: 1, 2, 3, …",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    customers: pd.DataFrame,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, spoil(customers), config(**changes))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_group_and_time_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="group and time exclude each other"):
        config(split={"group": "house", "time": "when"})


def test_strong_but_honest_columns_pass(tmp_path: Path, customers: pd.DataFrame) -> None:
    rng = np.random.default_rng(0)
    churn = (customers["Churn"] == "Yes").astype(float)
    many = [f"shop {i}" for i in rng.integers(0, 250, len(customers))]
    summary = run(tmp_path, customers.assign(usage=churn + rng.normal(0, 0.5, len(churn)), shop=many), config())
    assert {"usage", "shop"} <= set(summary.features)


def test_groups_stay_together(tmp_path: Path, customers: pd.DataFrame) -> None:
    rows = customers.assign(household=[f"h{i // 3}" for i in range(len(customers))])
    summary = run(tmp_path, rows, config(split={"group": "household"}))
    sides = [set(read_rows(tmp_path / side)["household"]) for side in ("train", "test")]
    assert sides[0].isdisjoint(sides[1])
    assert summary.dropped == {"household": "defines the split"}


@pytest.mark.parametrize("spelling", ["2024-{month:02d}-01", "2024-{month:02d}-01T10:00:00Z", "{month}"])
def test_the_latest_rows_are_held_out(tmp_path: Path, customers: pd.DataFrame, spelling: str) -> None:
    months = [spelling.format(month=i % 12 + 1) for i in range(len(customers))]
    summary = run(tmp_path, customers.assign(month=months), config(split={"time": "month", "test": 0.25}))
    assert set(read_rows(tmp_path / "test")["month"]) == {spelling.format(month=month) for month in (10, 11, 12)}
    assert summary.test_rows == len(customers) // 4


@pytest.mark.parametrize("key", ["ids", "group"])
def test_ids_spelled_anew_keep_their_rows_on_the_same_side(tmp_path: Path, customers: pd.DataFrame, key: str) -> None:
    numbers = pd.Series(range(7, 7 + len(customers)), index=customers.index)
    settings = config(ids=["customerID"], **({"split": {"group": "customerID"}} if key == "group" else {}))
    sides = []
    for i, spell in enumerate((str, "{}.0".format, " {} ".format, "+{}.".format, "{}e0".format, "{}.00E+00".format)):
        run(tmp_path / str(i), customers.assign(customerID=numbers.map(spell)), settings)
        tested = read_rows(tmp_path / str(i) / "test")["MonthlyCharges"].tolist()
        sides.append(tested)
    assert all(side == sides[0] for side in sides[1:])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("7", "7"),
        ("7.0", "7"),
        (" 7", "7"),
        ("1e+05", "100000"),
        ("1.5E3", "1500"),
        ("-3.0", "-3"),
        ("007", "007"),
        ("0", "0"),
        ("7.5", "7.5"),
        ("7.50", "7.50"),
        ("7e", "7e"),
        ("7_0", "7_0"),
        ("٧", "٧"),
        ("1e-3", "1e-3"),
        ("12345678901234567890", "12345678901234567890"),
        ("AB 7", "AB 7"),
        ("", ""),
    ],
)
def test_canonical_ids(name: str, expected: str) -> None:
    assert canonical(name) == expected


def test_whole_numbers_lie_where_they_always_lay() -> None:
    ids = [str(number) for number in range(2000)]
    rows = pd.DataFrame({"id": ids, "y": 0})
    assert held_out(rows, config(ids=["id"], target="y")).tolist() == [position(name) < 0.2 for name in ids]


@pytest.mark.parametrize("groups", [2, 4])
def test_few_groups_are_refused_before_anything_is_trained(
    tmp_path: Path, customers: pd.DataFrame, groups: int
) -> None:
    rows = customers.assign(region=[f"r{i % groups}" for i in range(len(customers))])
    with pytest.raises(UserError, match=r"split.group: the training rows have \d groups of 'region'; at least 5"):
        run(tmp_path, rows, config(split={"group": "region"}))


def test_a_class_in_one_group_is_refused(tmp_path: Path, customers: pd.DataFrame) -> None:
    region = np.where(customers["Churn"] == "Yes", "r0", [f"r{1 + i % 30}" for i in range(len(customers))])
    with pytest.raises(UserError, match=r"all training rows of class 'Yes' are in one|no held-out"):
        run(tmp_path, customers.assign(region=region), config(split={"group": "region"}))


def test_a_split_that_repeated_rows_distort_is_noted(tmp_path: Path, customers: pd.DataFrame) -> None:
    rows = customers.drop(columns="customerID")
    often = pd.concat([rows, *[rows[rows["Churn"] == "Yes"].head(2)] * 400])
    notes = run(tmp_path, often, config(ids=[])).notes
    assert any("% of the rows are held out, not the 20.0% of split.test: equal rows stay" in n for n in notes)
    assert any(note.startswith("The event rate is ") for note in notes)
    honest = run(tmp_path / "honest", customers, config()).notes
    assert not any("split.test asks" in note or "event rate" in note for note in honest)


@pytest.mark.parametrize("spoil", ["repeated", "removed"])
def test_a_row_number_is_found_though_some_rows_were_repeated_or_removed(
    tmp_path: Path, customers: pd.DataFrame, spoil: str
) -> None:
    rows = customers.assign(row=range(len(customers)))
    rows = pd.concat([rows.head(50), rows.iloc[49:]]) if spoil == "repeated" else rows.drop(index=[3, 70, 71])
    assert run(tmp_path, rows, config()).dropped == {"row": "is a row number; keep: [row] makes it a feature"}
    shuffled = rows.sample(frac=1, random_state=0)
    found = run(tmp_path / "shuffled", shuffled, config())
    assert found.dropped == {}
    assert "`row` numbers the rows, but not in their order; if it is an id, add it to ids." in found.notes
    month = customers.assign(month=np.arange(len(customers)) // 20)
    assert run(tmp_path / "month", month, config()).dropped == {}


@pytest.mark.parametrize("spelling", ["{day:02d}-{month:02d}-2024", "{day}.{month}.2024 10:30", "{month}/{day}/2024"])
def test_days_in_other_orders_are_times_as_well(tmp_path: Path, customers: pd.DataFrame, spelling: str) -> None:
    days = [spelling.format(month=i % 12 + 1, day=15 + i % 3) for i in range(len(customers))]
    summary = run(tmp_path, customers.assign(day=days), config(split={"time": "day", "test": 0.25}))
    assert summary.test_rows == len(customers) // 4
    expected = {spelling.format(month=month, day=15 + (month - 1) % 3) for month in (10, 11, 12)}
    assert set(read_rows(tmp_path / "test")["day"]) == expected


def test_days_that_could_be_months_are_refused(tmp_path: Path, customers: pd.DataFrame) -> None:
    days = [f"{i % 9 + 1:02d}-{i % 12 + 1:02d}-2024" for i in range(len(customers))]
    with pytest.raises(UserError, match="in column 'day' either day or month could come first; write dates like"):
        run(tmp_path, customers.assign(day=days), config(split={"time": "day"}))


def test_without_ids_equal_rows_share_a_side(tmp_path: Path, customers: pd.DataFrame) -> None:
    other_label = customers["Churn"].map({"Yes": "No", "No": "Yes"})
    rows = pd.concat([customers, customers, customers.assign(Churn=other_label)]).drop(columns="customerID")
    summary = run(tmp_path, rows, config(ids=[]))
    assert not any("equal a training row" in note for note in summary.notes)
    assert any("No ids are configured" in note for note in summary.notes)


def test_repeated_rows_and_ids_are_noted(tmp_path: Path, customers: pd.DataFrame) -> None:
    copies = customers.assign(customerID=[f"copy {i}" for i in range(len(customers))])
    copies.loc[0, "customerID"] = copies.loc[1, "customerID"] = "same"
    copies.loc[2, "customerID"] = ""
    notes = " ".join(run(tmp_path, pd.concat([customers, copies]), config()).notes)
    assert "customerID repeats in 1 row;" in notes
    assert "customerID is blank in 1 row," in notes
    assert "equal a training row in every feature" in notes


def test_unchanged_data_keeps_the_champions_contract(tmp_path: Path, customers: pd.DataFrame) -> None:
    run(tmp_path, customers, config())
    summary = run(tmp_path / "again", customers, config(), champion=as_champion(tmp_path))
    assert max(each.psi for each in summary.drift) < 0.05
    assert {each.column for each in summary.drift} == {*summary.features, "Churn"}
    assert not any("contract" in note for note in summary.notes)


def test_broken_contract_names_column_rule_and_rows(tmp_path: Path, customers: pd.DataFrame) -> None:
    run(tmp_path, customers, config())
    champion = as_champion(tmp_path)
    tenure = customers["tenure"].astype(object)
    tenure[[1, 5]] = ["new", "old"]
    cents = customers["MonthlyCharges"] * 100
    broken = customers.drop(columns="Partner").assign(tenure=tenure, MonthlyCharges=cents)
    broken.loc[7, "Dependents"] = ""
    with pytest.raises(UserError) as caught:
        run(tmp_path / "broken", broken, config(), champion=champion)
    for part in (
        "column 'Partner' is missing",
        "column 'tenure' is blank or not a number, which never occurred before (2 rows: 2, 6)",
        "column 'MonthlyCharges' is outside 0 to",
        f"({CUSTOMERS} rows: 1, 2, 3, …)",
        "column 'Dependents' is blank, which never occurred before (1 row: 8)",
    ):
        assert part in str(caught.value)
    accepted = config(data={"source": "x.csv", "contract": "accept"})
    summary = run(tmp_path / "accepted", broken, accepted, champion=champion)
    assert any("column 'Partner' is missing" in note for note in summary.notes)


def test_a_number_that_the_config_makes_text_has_to_be_agreed_to(tmp_path: Path, customers: pd.DataFrame) -> None:
    rows = customers.assign(zip=[f"{i * 37 % 500:03d}" for i in range(len(customers))])
    before = config(data={"source": "x.csv", "types": {"zip": "number"}})
    run(tmp_path, rows, before)
    champion = as_champion(tmp_path)
    same = run(tmp_path / "same", rows, config(), champion=champion)
    assert any(note.startswith("`zip` is a number although it holds codes") for note in same.notes)
    text = {"source": "x.csv", "types": {"zip": "string"}}
    with pytest.raises(UserError, match=r"column 'zip' is text but was a number \(600 rows: 1, 2, 3, …\)"):
        run(tmp_path / "text", rows, config(data=text), champion=champion)
    run(tmp_path / "agreed", rows, config(data={**text, "contract": "accept"}), champion=champion)
    assert read_rows(tmp_path / "agreed" / "test")["zip"].str.len().eq(3).all()


@pytest.mark.parametrize("name", ["klingon", "hex"])
def test_unknown_encodings_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is not a text encoding known to Python"):
        config(data={"source": "x.csv", "encoding": name})


def test_types_of_unknown_columns_are_refused(tmp_path: Path, customers: pd.DataFrame) -> None:
    with pytest.raises(UserError, match=r"data.types: the data has no column 'tenur'; did you mean 'tenure'"):
        run(tmp_path, customers, config(data={"source": "x.csv", "types": {"tenur": "number"}}))


def test_values_beyond_those_a_model_knows_are_noted(tmp_path: Path, customers: pd.DataFrame) -> None:
    many = customers.sample(12000, replace=True, random_state=0).assign(
        customerID=range(12000),
        shop=[f"s{i % 5500}" for i in range(12000)],
        town=[f"t{i % 200}" for i in range(12000)],
    )
    notes = [note for note in run(tmp_path, many, config()).notes if "distinct values" in note]
    assert notes == [
        "`shop` has 5500 distinct values; the model distinguishes the 5000 commonest and treats the others (8.3% of "
        "the rows) alike."
    ]


def test_new_categories_are_a_note_unless_nothing_known_is_left(tmp_path: Path, customers: pd.DataFrame) -> None:
    run(tmp_path, customers, config())
    champion = as_champion(tmp_path)
    some = customers.copy()
    some.loc[3, "Contract"] = "Lifetime"
    summary = run(tmp_path / "some", some, config(), champion=champion)
    assert "Column 'Contract' has values the champion has not seen: 'Lifetime'." in summary.notes
    codes = customers.assign(Contract=customers["Contract"].str.len())
    with pytest.raises(UserError, match="'Contract' has none of its known values, but '14', '8'"):
        run(tmp_path / "codes", codes, config(), champion=champion)


def test_text_that_now_looks_like_numbers_stays_text(tmp_path: Path, customers: pd.DataFrame) -> None:
    levels = customers["tenure"].clip(upper=3).astype(int).astype(str).replace("3", "3+")
    run(tmp_path, customers.assign(level=levels), config())
    later = customers.assign(level=levels.replace("3+", "2"))
    summary = run(tmp_path / "later", later, config(), champion=as_champion(tmp_path))
    assert "level" in summary.features
    schema = read_schema(tmp_path / "later" / "train")
    assert {column.name: column.dtype for column in schema.features}["level"] == "string"


def test_a_champion_from_elsewhere_is_noted(tmp_path: Path, customers: pd.DataFrame) -> None:
    summary = run(tmp_path, customers, config(), champion=tmp_path / "elsewhere")
    assert "The champion has no data contract, so none was checked." in summary.notes
    assert summary.drift == ()


def test_drift_is_seen(tmp_path: Path) -> None:
    run(tmp_path, snapshot(3, 2000), config())
    dearer = snapshot(3, 2000).assign(MonthlyCharges=lambda rows: rows["MonthlyCharges"] * 1.3)
    summary = run(tmp_path / "later", dearer, config(), champion=as_champion(tmp_path))
    assert summary.drift[0].column == "MonthlyCharges"
    assert summary.drift[0].psi > 0.25
    assert summary.drift[1].psi < 0.1
