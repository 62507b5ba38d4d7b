"""The learners that can be trained: what is tuned of each, and how its scikit-learn pipeline is built.

All feature handling lives inside the pipeline. Trees get numbers as they came, imputed at most: a split
threshold is a data value, and arithmetic before it rounds differently in ONNX than in scikit-learn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from components.config import Learner
from components.train.features import top_categories

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """`first` is the setting tried first, `space` what tuning may choose from (empty: nothing to tune)."""

    build: Callable[[Params, pd.DataFrame, int], BaseEstimator]
    first: Params
    space: Mapping[str, BaseDistribution]


def _columns(inputs: pd.DataFrame, *, scale: bool) -> ColumnTransformer:
    """Numbers: median for missing, scaled on request. Strings: one column per frequent value, none for unseen ones.

    The categories come from all of `inputs`, so that every fold has the same columns; no label is involved.
    """
    numbers = [name for name in inputs.columns if inputs[name].dtype == np.float32]
    strings = [name for name in inputs.columns if name not in numbers]
    imputer = SimpleImputer(strategy="median", keep_empty_features=True)
    parts: list[tuple[str, BaseEstimator, list[str]]] = []
    if numbers:
        steps = [("impute", imputer)] + ([("scale", StandardScaler())] if scale else [])
        parts.append(("numbers", Pipeline(steps), numbers))
    if strings:
        # XGBoost would read the zeros of a sparse matrix as missing
        categories = [top_categories(inputs[name]) for name in strings]
        encoder = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False)
        parts.append(("strings", encoder, strings))
    return ColumnTransformer(parts)


def _rule(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from components.train.rule import SingleColumnRule

    return SingleColumnRule(seed)


def _logistic(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from sklearn.linear_model import LogisticRegression

    learner = LogisticRegression(**params, max_iter=1000)
    return Pipeline([("columns", _columns(inputs, scale=True)), ("learner", learner)])


def _hist_gradient_boosting(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from sklearn.ensemble import HistGradientBoostingClassifier

    learner = HistGradientBoostingClassifier(**params, early_stopping=False, random_state=seed)
    return Pipeline([("columns", _columns(inputs, scale=False)), ("learner", learner)])


def _xgboost(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from xgboost import XGBClassifier

    learner = XGBClassifier(**params, objective="binary:logistic", tree_method="hist", n_jobs=1, random_state=seed)
    return Pipeline([("columns", _columns(inputs, scale=False)), ("learner", learner)])


RECIPES: Final[Mapping[Learner, Recipe]] = {
    "rule": Recipe(_rule, first={}, space={}),
    "logistic": Recipe(_logistic, first={"C": 1.0}, space={"C": FloatDistribution(1e-3, 1e2, log=True)}),
    "hist_gradient_boosting": Recipe(
        _hist_gradient_boosting,
        first={
            "max_iter": 60,
            "learning_rate": 0.1,
            "max_leaf_nodes": 6,
            "min_samples_leaf": 20,
            "l2_regularization": 1.0,
        },
        space={
            "max_iter": IntDistribution(30, 100),
            "learning_rate": FloatDistribution(0.03, 0.3, log=True),
            "max_leaf_nodes": IntDistribution(3, 16, log=True),
            "min_samples_leaf": IntDistribution(5, 100, log=True),
            "l2_regularization": FloatDistribution(1e-3, 100, log=True),
        },
    ),
    "xgboost": Recipe(
        _xgboost,
        first={
            "n_estimators": 150,
            "learning_rate": 0.06,
            "max_depth": 3,
            "min_child_weight": 1.0,
            "subsample": 0.9,
            "colsample_bytree": 0.9,
            "reg_lambda": 1.0,
        },
        space={
            "n_estimators": IntDistribution(50, 300),
            "learning_rate": FloatDistribution(0.02, 0.3, log=True),
            "max_depth": IntDistribution(2, 6),
            "min_child_weight": FloatDistribution(0.5, 30, log=True),
            "subsample": FloatDistribution(0.6, 1.0),
            "colsample_bytree": FloatDistribution(0.5, 1.0),
            "reg_lambda": FloatDistribution(1e-2, 100, log=True),
        },
    ),
}


def margin(estimator: BaseEstimator, inputs: pd.DataFrame) -> np.ndarray:
    """Log-odds [N], float64, before calibration."""
    if hasattr(estimator, "decision_function"):
        scores = estimator.decision_function(inputs)
    else:  # XGBoost has its own word for it
        scores = estimator.predict(inputs, output_margin=True)
    return np.asarray(scores, np.float64)
