"""The fitted model as one ONNX graph that computes what scikit-learn computes.

Converters turn a classifier into operators with a label output and post-transforms that depend on the signs of
the leaves; here every learner ends in its log-odds, computed in double wherever there is arithmetic, followed by
the calibration and one sigmoid. Trees become a TreeEnsembleRegressor that sums leaves.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from components.train.calibration import Sigmoid
from components.train.rule import Ranges, SingleColumnRule
from components.train.trees import Ensemble, of_hist_gradient_boosting, of_xgboost
from serin.model import Feature

OPSETS: Final = (helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3))
IR_VERSION: Final = 8
PARITY: Final = 1e-5
"""Largest allowed difference of a probability between Python and ONNX."""
GAPS: Final = 500
UNSEEN: Final = "\N{REPLACEMENT CHARACTER} never seen in training"


class ParityError(Exception):
    """The exported graph does not compute what the Python model computes: a defect of the export."""


def check_parity(python: np.ndarray, exported: np.ndarray, rows: list[str]) -> None:
    """Raise `ParityError` naming the row (by its entry in `rows`) that differs most, if by more than `PARITY`."""
    difference = np.abs(python - exported)
    worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    if not difference[worst] <= PARITY:
        raise ParityError(
            f"{rows[worst]}: Python gives {python[worst]:.9f}, ONNX {exported[worst]:.9f}, a difference of "
            f"{difference[worst]:.3g} (limit {PARITY:g}); rows that differ: "
            f"{np.count_nonzero(~(difference <= PARITY))} of {len(rows)}."
        )


def hostile(inputs: pd.DataFrame, limit: int = 50) -> pd.DataFrame:
    """Up to `limit` of the rows, with every number missing, every string missing, every string unseen; then the first
    row with one column missing at a time, or where there are more than `GAPS` columns, one in every `GAPS`."""
    some = inputs.head(limit)
    numbers = [name for name in inputs.columns if inputs[name].dtype == np.float32]
    strings = [name for name in inputs.columns if name not in numbers]
    gaps = [some.assign(**dict.fromkeys(numbers, np.float32("nan")))]
    gaps += [some.assign(**dict.fromkeys(strings, value)) for value in ("", UNSEEN)]
    gaps.append(_single_gaps(some.head(1)))
    return pd.concat(gaps, ignore_index=True)


def _single_gaps(row: pd.DataFrame) -> pd.DataFrame:
    count = min(len(row.columns), GAPS)
    columns = {name: np.repeat(row[name].to_numpy(), count) for name in row.columns}
    for i, values in enumerate(columns.values()):
        values[i % count] = np.float32("nan") if values.dtype == np.float32 else ""
    return pd.DataFrame(columns)


class _Graph:
    """Nodes in the making. Every method returns the name of the tensor it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def ml(self, operator: str, *inputs: str, **attributes: object) -> str:
        return self.node(operator, *inputs, domain="ai.onnx.ml", **attributes)

    def cast(self, tensor: str, dtype: int) -> str:
        return self.node("Cast", tensor, to=dtype)


def to_onnx(estimator: BaseEstimator, sigmoid: Sigmoid, features: tuple[Feature, ...]) -> bytes:
    """The serialized graph: inputs [N, 1] named as in `features`, output "probability" float32 [N, 1]."""
    graph = _Graph()
    learner = estimator["learner"] if isinstance(estimator, Pipeline) else estimator
    margin = _MARGINS[type(learner).__name__](graph, estimator)
    scaled = graph.node("Mul", margin, graph.constant(sigmoid.slope, np.float64))
    shifted = graph.node("Add", scaled, graph.constant(sigmoid.intercept, np.float64))
    probability = graph.node("Sigmoid", shifted)
    graph.nodes.append(helper.make_node("Cast", [probability], ["probability"], to=TensorProto.FLOAT))
    types = {"number": TensorProto.FLOAT, "string": TensorProto.STRING}
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "model",
            [helper.make_tensor_value_info(f.input, types[f.dtype], ["N", 1]) for f in features],
            [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", 1])],
            graph.constants,
        ),
        producer_name="serin",
        opset_imports=OPSETS,
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _rule(graph: _Graph, rule: SingleColumnRule) -> str:
    """Look the column's code up in the margins; codes are those of `rule.Ranges` and `rule.Values`."""
    bins = rule.bins_
    if isinstance(bins, Ranges):
        above = graph.node("Greater", rule.column_, graph.constant(bins.edges[None, :], np.float32))
        counted = graph.node("Cast", above, to=TensorProto.INT64)
        code = graph.node("ReduceSum", counted, graph.constant([1], np.int64), keepdims=1)
        missing = graph.constant(bins.size - 1, np.int64)
        code = graph.node("Where", graph.node("IsNaN", rule.column_), missing, code)
    else:
        code = graph.ml(
            "LabelEncoder",
            rule.column_,
            keys_strings=list(bins.values),
            values_int64s=list(range(len(bins.values))),
            default_int64=len(bins.values),
        )
    return graph.node("Gather", graph.constant(rule.margins_, np.float64), code, axis=0)


def _columns(graph: _Graph, pipeline: Pipeline, dtype: int) -> str:
    """What the pipeline's columns hand to the learner, [N, width]: numbers, then encoded strings, then rates."""
    parts = []
    for name, step, inputs in pipeline["columns"].transformers_:
        if name == "numbers":
            raw = graph.node("Concat", *inputs, axis=1)
            medians = step["impute"].statistics_.astype(np.float32).tolist()
            part = graph.ml("Imputer", raw, imputed_value_floats=medians, replaced_value_float=float("nan"))
            parts.append(_scaled(graph, part, step, dtype))
        elif name == "strings":
            encode = _one_hot if isinstance(step, OneHotEncoder) else _ordinal
            for column, categories in zip(inputs, step.categories_, strict=True):
                parts.append(graph.cast(encode(graph, column, list(categories)), dtype))
        elif name == "rates":
            encoder = step["rate"]
            known = zip(inputs, encoder.values_, encoder.margins_, strict=True)
            part = graph.node("Concat", *(_rate(graph, *each) for each in known), axis=1)
            parts.append(_scaled(graph, part, step, dtype))
    return graph.node("Concat", *parts, axis=1)


def _scaled(graph: _Graph, part: str, step: Pipeline, dtype: int) -> str:
    if "scale" in step.named_steps:
        scaler = step["scale"]
        part = graph.node("Sub", graph.cast(part, dtype), graph.constant(scaler.mean_, np.float64))
        part = graph.node("Div", part, graph.constant(scaler.scale_, np.float64))
    return graph.cast(part, dtype)


def _rate(graph: _Graph, column: str, values: list[str], margins: np.ndarray) -> str:
    *known, other = margins.tolist()
    return graph.ml("LabelEncoder", column, keys_strings=values, values_floats=known, default_float=other)


def _one_hot(graph: _Graph, column: str, categories: list[str]) -> str:
    return graph.node("Flatten", graph.ml("OneHotEncoder", column, cats_strings=categories, zeros=1), axis=1)


def _ordinal(graph: _Graph, column: str, categories: list[str]) -> str:
    codes = [float(code) for code in range(len(categories))]
    return graph.ml("LabelEncoder", column, keys_strings=categories, values_floats=codes, default_float=-1.0)


def _logistic(graph: _Graph, pipeline: Pipeline) -> str:
    learner = pipeline["learner"]
    weighted = graph.node(
        "MatMul", _columns(graph, pipeline, TensorProto.DOUBLE), graph.constant(learner.coef_.T, np.float64)
    )
    return graph.node("Add", weighted, graph.constant(learner.intercept_, np.float64))


def _ensemble(graph: _Graph, pipeline: Pipeline, ensemble: Ensemble) -> str:
    trees = ensemble.trees
    sizes = [len(tree.left) for tree in trees]
    tree_ids, node_ids = np.repeat(np.arange(len(trees)), sizes), np.concatenate([np.arange(n) for n in sizes])
    left, right, column, value = (
        np.concatenate([getattr(tree, name) for tree in trees]) for name in ("left", "right", "column", "value")
    )
    leaf = left == -1
    total = graph.ml(
        "TreeEnsembleRegressor",
        _columns(graph, pipeline, TensorProto.FLOAT),
        n_targets=1,
        nodes_treeids=tree_ids.tolist(),
        nodes_nodeids=node_ids.tolist(),
        nodes_featureids=np.where(leaf, 0, column).tolist(),
        nodes_modes=np.where(leaf, "LEAF", "BRANCH_LT").tolist(),
        nodes_values=np.where(leaf, 0, value).tolist(),
        nodes_truenodeids=np.where(leaf, 0, left).tolist(),
        nodes_falsenodeids=np.where(leaf, 0, right).tolist(),
        target_treeids=tree_ids[leaf].tolist(),
        target_nodeids=node_ids[leaf].tolist(),
        target_ids=np.zeros(int(leaf.sum()), int).tolist(),
        target_weights=value[leaf].tolist(),
    )
    return graph.node("Add", graph.cast(total, TensorProto.DOUBLE), graph.constant(ensemble.bias, np.float64))


def _hist_gradient_boosting(graph: _Graph, pipeline: Pipeline) -> str:
    return _ensemble(graph, pipeline, of_hist_gradient_boosting(pipeline["learner"]))


def _xgboost(graph: _Graph, pipeline: Pipeline) -> str:
    return _ensemble(graph, pipeline, of_xgboost(pipeline["learner"]))


_MARGINS: Final[dict[str, Callable[[_Graph, Any], str]]] = {
    "SingleColumnRule": _rule,
    "LogisticRegression": _logistic,
    "HistGradientBoostingClassifier": _hist_gradient_boosting,
    "XGBClassifier": _xgboost,
}
