"""Fitted tree ensembles in one form, whoever fitted them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tree:
    """Arrays over nodes, node 0 is the root. A leaf has left == -1 and its log-odds in `value`; any other node
    sends a row to `left` if its `column` is below `value`, as float32. `cover`: weight of the training rows."""

    left: Array
    right: Array
    column: Array
    value: Array
    cover: Array


@dataclass(frozen=True)
class Ensemble:
    """The log-odds are `bias` plus one leaf of each tree."""

    bias: float
    trees: tuple[Tree, ...]


def of_xgboost(learner: Any) -> Ensemble:  # noqa: ANN401 (an XGBClassifier)
    document = json.loads(learner.get_booster().save_raw("json"))["learner"]
    trees = tuple(
        Tree(
            np.asarray(tree["left_children"]),
            np.asarray(tree["right_children"]),
            np.asarray(tree["split_indices"]),
            np.asarray(tree["split_conditions"]),
            np.asarray(tree["sum_hessian"]),
        )
        for tree in document["gradient_booster"]["model"]["trees"]
    )
    (base_score,) = json.loads(document["learner_model_param"]["base_score"])
    return Ensemble(float(logit(base_score)), trees)


def of_hist_gradient_boosting(learner: Any) -> Ensemble:  # noqa: ANN401 (a HistGradientBoostingClassifier)
    trees = []
    for (predictor,) in learner._predictors:
        nodes = predictor.nodes
        leaf = nodes["is_leaf"].astype(bool)
        value = np.where(leaf, nodes["value"], just_above(nodes["num_threshold"]))
        left = np.where(leaf, -1, nodes["left"].astype(np.int64))
        trees.append(Tree(left, nodes["right"].astype(np.int64), nodes["feature_idx"], value, nodes["count"]))
    return Ensemble(float(learner._baseline_prediction.item()), tuple(trees))


def just_above(thresholds: Array) -> Array:
    """The smallest float32 above each: x <= threshold is x < that, for every float32 x."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, nearest, np.nextafter(nearest, np.float32(np.inf)))
