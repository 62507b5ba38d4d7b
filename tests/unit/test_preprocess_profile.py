import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.preprocess import contract
from components.preprocess.checks import single_column_auc
from components.preprocess.profile import Profile, drift, profile
from components.preprocess.splitting import position

numbers = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=60)
strings = st.lists(st.sampled_from(["", "a", "b", "größer"]), min_size=1, max_size=60)


def frame(values: list[float] | list[str]) -> tuple[pd.DataFrame, pd.Series]:
    column = pd.Series(values, dtype="float64" if isinstance(values[0], float) else object)
    return pd.DataFrame({"x": column}), pd.Series(np.arange(len(values)) % 2, name="y")


@settings(max_examples=80, deadline=None)
@given(numbers | strings)
def test_no_drift_from_itself_and_json_without_nan(values: list[float] | list[str]) -> None:
    rows, target = frame(values)
    learned = profile(rows, target)
    assert [each.psi for each in drift(learned, rows, target)] == pytest.approx([0, 0], abs=1e-12)
    text = learned.model_dump_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert Profile.model_validate_json(text) == learned
    column = learned.columns["x"]
    assert sum(column.shares if column.dtype == "number" else column.shares.values()) == pytest.approx(
        0 if column.missing == 1 else 1
    )


def test_psi_of_known_shares() -> None:
    """One half and one half against nine tenths and one tenth."""
    before, target = frame(["a", "b"] * 50)
    now, now_target = frame(["a"] * 90 + ["b"] * 10)
    expected = 0.4 * np.log(0.9 / 0.5) + (0.1 - 0.5) * np.log(0.1 / 0.5)
    found = {each.column: each for each in drift(profile(before, target), now, now_target)}
    assert found["x"].psi == pytest.approx(expected)
    assert found["y"].psi == 0


def test_missing_values_and_unknown_ones_are_drift() -> None:
    before, target = frame([1.0, 2.0, 3.0, 4.0])
    found = drift(profile(before, target), *frame([1.0, 2.0, float("nan"), float("nan")]))[0]
    assert (found.column, found.missing_before, found.missing_now) == ("x", 0, 0.5)
    assert found.psi > 0.25
    known, target = frame(["a", "b"])
    assert drift(profile(known, target), *frame(["c", "c"]))[0].psi > 0.25


def test_a_value_on_an_edge_lies_below_it() -> None:
    column = profile(*frame([5.0] * 4)).columns["x"]
    assert column.dtype == "number"
    assert (column.edges, column.shares, column.mean) == ((5.0,), (1.0, 0.0), 5.0)


def test_rare_values_are_summed_up() -> None:
    rows, target = frame([f"v{i:03d}" for i in range(80)])
    column = profile(rows, target).columns["x"]
    assert column.dtype == "string"
    assert len(column.shares) == 50
    assert column.other == pytest.approx(30 / 80)


@settings(max_examples=60, deadline=None)
@given(numbers | strings)
def test_data_keeps_the_contract_inferred_from_it(values: list[float] | list[str]) -> None:
    rows, _ = frame(values)
    inferred = contract.infer(rows)
    assert contract.Contract.model_validate_json(inferred.model_dump_json()) == inferred
    assert contract.check(inferred, rows) == contract.Findings(violations=(), notes=())


def test_a_range_has_slack_but_keeps_its_sign() -> None:
    rule = contract.infer(pd.DataFrame({"x": [1.0, 5.0]})).columns["x"]
    assert (rule.low, rule.high) == (0, 9)


@pytest.mark.parametrize(
    ("values", "at_least", "at_most"),
    [
        ([0.0, 1.0] * 100, 1.0, 1.0),
        (["no", "yes"] * 100, 1.0, 1.0),
        ([float("nan"), 3.0] * 100, 1.0, 1.0),
        ([5.0, 3.0, 7.0, 3.0] * 50, 1.0, 1.0),
        (["a", "a", "b", "b"] * 50, 0.4, 0.6),
        ([float(i) for i in range(200)], 0.4, 0.6),
        ([f"row {i}" for i in range(200)], 0.5, 0.5),
        ([float("nan")] * 200, 0.4, 0.6),
    ],
)
def test_how_much_one_column_tells(values: list[float] | list[str], at_least: float, at_most: float) -> None:
    rows, target = frame(values)
    assert at_least <= single_column_auc(rows["x"], target.to_numpy()) <= at_most


def test_positions_are_uniform_and_fixed_for_ever() -> None:
    positions = [position(str(i)) for i in range(10_000)]
    assert np.abs(np.histogram(positions, bins=10, range=(0, 1))[0] - 1000).max() < 130
    assert position("7590-VHVEG") == pytest.approx(0.7483618354721926)
