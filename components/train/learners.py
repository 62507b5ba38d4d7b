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
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from components.config import Learner
from components.train.features import CATEGORIES, top_categories
from components.train.rates import EventRates

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """`first` is the setting tried first, `space` what tuning may choose from (empty: nothing to tune)."""

    build: Callable[[Params, pd.DataFrame, int], BaseEstimator]
    first: Params
    space: Mapping[str, BaseDistribution]


def _linear_columns(inputs: pd.DataFrame, seed: int) -> ColumnTransformer:
    """Numbers: median for missing, scaled in double. Strings: a column per value, or the rate of each value's events
    where there are many."""
    strings = OneHotEncoder(categories=_categories(inputs), handle_unknown="ignore", sparse_output=False)
    scaled = [("double", FunctionTransformer(np.float64)), ("scale", StandardScaler())]
    rates = Pipeline([("rate", EventRates(seed)), *scaled])
    return _columns(inputs, Pipeline([("impute", _imputer()), *scaled]), strings, rates)


def _tree_columns(inputs: pd.DataFrame, seed: int) -> ColumnTransformer:
    """Numbers: median for missing. Strings: values numbered by frequency, -1 for unseen ones, with which trees do as
    well as with a column per value, in a fraction of the time; or the rate of each value's events where there are
    many."""
    strings = OrdinalEncoder(
        categories=_categories(inputs), handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32
    )
    return _columns(inputs, Pipeline([("impute", _imputer())]), strings, Pipeline([("rate", EventRates(seed))]))


def _columns(inputs: pd.DataFrame, numbers: Pipeline, strings: BaseEstimator, rates: Pipeline) -> ColumnTransformer:
    parts = (
        ("numbers", numbers, _numbers(inputs)),
        ("strings", strings, _strings(inputs)),
        ("rates", rates, _strings(inputs, many=True)),
    )
    return ColumnTransformer([part for part in parts if part[2]])


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median", keep_empty_features=True)


def _numbers(inputs: pd.DataFrame) -> list[str]:
    return [str(name) for name in inputs.columns if inputs[name].dtype == np.float32]


def _strings(inputs: pd.DataFrame, *, many: bool = False) -> list[str]:
    """Of no more than `CATEGORIES` values, or of more."""
    strings = [str(name) for name in inputs.columns if inputs[name].dtype != np.float32]
    return [name for name in strings if (inputs[name].nunique() > CATEGORIES) == many]


def _categories(inputs: pd.DataFrame) -> list[list[str]]:
    """Of all `inputs`, so that every fold has the same ones; no label is involved."""
    return [top_categories(inputs[name]) for name in _strings(inputs)]


def _rule(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from components.train.rule import SingleColumnRule

    return SingleColumnRule(seed)


def _logistic(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from sklearn.linear_model import LogisticRegression

    learner = LogisticRegression(**params, max_iter=1000)
    return Pipeline([("columns", _linear_columns(inputs, seed)), ("learner", learner)])


def _hist_gradient_boosting(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from sklearn.ensemble import HistGradientBoostingClassifier

    learner = HistGradientBoostingClassifier(**params, early_stopping=False, random_state=seed)
    return Pipeline([("columns", _tree_columns(inputs, seed)), ("learner", learner)])


def _xgboost(params: Params, inputs: pd.DataFrame, seed: int) -> BaseEstimator:
    from xgboost import XGBClassifier

    learner = XGBClassifier(**params, objective="binary:logistic", tree_method="hist", n_jobs=1, random_state=seed)
    return Pipeline([("columns", _tree_columns(inputs, seed)), ("learner", learner)])


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
