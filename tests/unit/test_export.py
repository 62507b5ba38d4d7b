"""The ONNX graph computes what the Python model computes, on rows that look for the difference."""

from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.train import scoring
from components.train.calibration import Sigmoid
from components.train.export import (
    GAPS,
    IR_VERSION,
    OPSETS,
    PARITY,
    UNSEEN,
    ParityError,
    check_parity,
    hostile,
    to_onnx,
)
from components.train.learners import RECIPES, margin
from components.train.trees import just_above
from serin.errors import UserError
from serin.model import Feature

SMALL = {
    "rule": {},
    "logistic": {"C": 1.0},
    "hist_gradient_boosting": {"max_iter": 10, "min_samples_leaf": 2},
    "xgboost": {"n_estimators": 10, "max_depth": 4, "min_child_weight": 0},
}
SIGMOID = Sigmoid(1.3, -0.2)


def features(inputs: pd.DataFrame) -> tuple[Feature, ...]:
    return tuple(
        Feature(name=f"column {name}", input=name, dtype="number" if inputs[name].dtype == np.float32 else "string")
        for name in inputs.columns
    )


def differences(learner: str, inputs: pd.DataFrame, y: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    estimator = RECIPES[learner].build(SMALL[learner], inputs, 0).fit(inputs, y)
    exported = scoring.run(to_onnx(estimator, SIGMOID, features(inputs)), rows)
    return np.abs(SIGMOID(margin(estimator, rows)) - exported)


def labels(score: np.ndarray) -> np.ndarray:
    """Two classes, each with at least five rows."""
    y = (score > np.median(score)).astype(np.int64)
    y[:5], y[5:10] = 0, 1
    return y


@pytest.mark.parametrize("learner", SMALL)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e9, 1e30]),
    offset=st.sampled_from([0, 1]),
)
def test_same_probability_on_thresholds_gaps_and_unseen_values(
    learner: str, seed: int, scale: float, offset: int
) -> None:
    """Neighbouring float32 values, on which a threshold rounded the wrong way sends rows to the other side."""
    rng = np.random.default_rng(seed)
    near = np.float32(scale) * (offset + rng.integers(0, 8, 120) * np.finfo(np.float32).eps)
    few = rng.integers(-3, 3, 120).astype(np.float32)
    few[rng.random(120) < 0.2] = np.nan
    word = rng.choice(["", "a", "b", "ä", "日本", " a"], 120).astype(object)
    inputs = pd.DataFrame({"f0": near.astype(np.float32), "f1": few, "f2": word})
    y = labels(rng.permutation(120) + 60.0 * (near > np.median(near)) + 40 * np.nan_to_num(few) + 50 * (word == "a"))
    assert differences(learner, inputs, y, pd.concat([inputs, hostile(inputs)])).max() <= PARITY


@pytest.mark.parametrize("learner", SMALL)
@pytest.mark.parametrize(
    "inputs",
    [
        pd.DataFrame({"f0": np.arange(60, dtype=np.float32)}),
        pd.DataFrame({"f0": np.array(["x", "y", ""] * 20, dtype=object)}),
        pd.DataFrame({"f0": np.full(60, np.nan, np.float32), "f1": np.arange(60, dtype=np.float32)}),
        pd.DataFrame({"f0": np.full(60, 3, np.float32), "f1": np.array([""] * 60, dtype=object)}),
        pd.DataFrame({"f0": np.array([f"id{i}" for i in range(60)], dtype=object)}),
        pd.DataFrame({"f0": (1.7e9 + 1000 * np.arange(60)).astype(np.float32)}),
    ],
    ids=["numbers only", "strings only", "all missing", "constant", "all different", "far from zero"],
)
def test_odd_columns(learner: str, inputs: pd.DataFrame) -> None:
    y = labels(np.random.default_rng(0).random(60) + np.arange(60) / 60)
    assert differences(learner, inputs, y, pd.concat([inputs, hostile(inputs)])).max() <= PARITY


@pytest.mark.parametrize("learner", SMALL)
def test_columns_of_many_values(learner: str) -> None:
    rng = np.random.default_rng(1)
    level, other = rng.integers(0, 150, 1500), rng.integers(0, 60, 1500)
    inputs = pd.DataFrame(
        {
            "f0": np.array([f"lével {i}" if i else "" for i in level], dtype=object),
            "f1": rng.normal(size=1500).astype(np.float32),
            "f2": np.array([f"{i:03d}" for i in other], dtype=object),
            "f3": rng.choice(["a", "b"], 1500).astype(object),
        }
    )
    y = labels(rng.normal(size=150)[level] + inputs["f1"].to_numpy())
    assert differences(learner, inputs, y, pd.concat([inputs, hostile(inputs)])).max() <= PARITY


@pytest.mark.parametrize("learner", SMALL)
def test_graph_has_the_contracts_inputs_and_one_output(learner: str) -> None:
    inputs = pd.DataFrame({"f0": np.arange(60, dtype=np.float32), "f1": np.array(["x", "y", ""] * 20, dtype=object)})
    y = labels(np.arange(60.0))
    estimator = RECIPES[learner].build(SMALL[learner], inputs, 0).fit(inputs, y)
    graph = onnx.load_from_string(to_onnx(estimator, SIGMOID, features(inputs)))
    assert graph.ir_version == IR_VERSION
    assert {(o.domain, o.version) for o in graph.opset_import} == {(o.domain, o.version) for o in OPSETS}
    assert [i.name for i in graph.graph.input] == ["f0", "f1"]
    (output,) = graph.graph.output
    assert output.name == "probability"
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert len(output.type.tensor_type.shape.dim) == 2


@pytest.mark.parametrize("learner", SMALL)
def test_an_unseen_value_counts_as_no_known_one(learner: str) -> None:
    """One value decides the label; a value never seen must score between the known ones, the same in both."""
    inputs = pd.DataFrame({"f0": np.array(["x", "y"] * 40, dtype=object), "f1": np.zeros(80, np.float32)})
    y = np.array([0, 1] * 40)
    estimator = RECIPES[learner].build(SMALL[learner], inputs, 0).fit(inputs, y)
    rows = pd.DataFrame({"f0": np.array(["x", UNSEEN, "y"], dtype=object), "f1": np.zeros(3, np.float32)})
    p = scoring.run(to_onnx(estimator, Sigmoid(), features(inputs)), rows)
    assert p[0] < 0.5 < p[2]
    assert p[0] <= p[1] <= p[2]
    np.testing.assert_allclose(p, Sigmoid()(margin(estimator, rows)), atol=PARITY)


def test_rounding_down_keeps_every_comparison() -> None:
    a = np.float32(1)
    b = np.nextafter(a, np.float32(2))
    middle = (np.float64(a) + np.float64(b)) / 2
    for threshold in (middle, np.nextafter(middle, 2), np.float64(a), np.float64(b), -middle):
        (above,) = just_above(np.array([threshold]))
        assert above.dtype == np.float32
        assert [x < above for x in (-b, -a, a, b)] == [np.float64(x) <= threshold for x in (-b, -a, a, b)]


def test_parity_names_the_row_and_the_difference() -> None:
    python = np.array([0.1, 0.2, 0.3])
    check_parity(python, python + PARITY / 2, ["row 0", "row 1", "row 2"])
    with pytest.raises(ParityError, match=r"row 1: .* a difference of 0\.0001 .* 1 of 3"):
        check_parity(python, np.array([0.1, 0.2001, 0.3]), ["row 0", "row 1", "row 2"])
    with pytest.raises(ParityError, match="row 2"):
        check_parity(python, np.array([0.1, 0.2, np.nan]), ["row 0", "row 1", "row 2"])


def test_hostile_rows_hold_every_gap() -> None:
    inputs = pd.DataFrame({"f0": np.arange(3, dtype=np.float32), "f1": np.array(["x", "y", "z"], dtype=object)})
    rows = hostile(inputs)
    assert list(rows.dtypes) == [np.float32, "str"]
    assert rows["f0"].isna().any()
    assert {"", UNSEEN} <= set(rows["f1"])
    assert ((rows["f0"].isna()) & (rows["f1"] == "x")).any()


def test_a_file_that_is_no_graph_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "meta").mkdir()
    (tmp_path / "model/model.onnx").write_bytes(b"not a graph")
    (tmp_path / "meta/signature.json").write_text(
        '{"learner": "rule", "target": "y", "positive": "1", "negative": "0", "threshold": 0.5, "features": []}'
    )
    with pytest.raises(UserError, match="does not run in ONNX Runtime"):
        scoring.score(tmp_path, pd.DataFrame())


def test_a_wide_table_has_a_gap_in_each_column_and_few_rows() -> None:
    columns = 2 * GAPS + 1
    row = pd.DataFrame({f"f{i}": np.ones(1, np.float32) for i in range(columns)})
    rows = hostile(row)
    assert len(rows) <= GAPS + 3
    single = rows[rows.isna().any(axis=1) & ~rows.isna().all(axis=1)]
    assert single.isna().any().all()
    assert single.isna().sum(axis=1).max() <= 3
