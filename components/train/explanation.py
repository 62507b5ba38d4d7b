"""The parameters a server needs to explain a score, taken from the fitted model."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

from components.train import trees
from components.train.calibration import Sigmoid
from components.train.rule import SingleColumnRule
from serin.model import Feature
from serin.model.explanation import Category, Code, Column, Explanation, Linear, Number, Rate, Single, Tree, Trees


def of(
    estimator: BaseEstimator, sigmoid: Sigmoid, features: tuple[Feature, ...], inputs: pd.DataFrame
) -> Explanation:
    """`inputs`: the training rows, whose average score is the base that contributions start from."""
    names = {feature.input: feature.name for feature in features}
    if isinstance(estimator, SingleColumnRule):
        base = float(estimator.decision_function(inputs).mean())
        columns: tuple[Column, ...] = ()
        learner: Single | Linear | Trees = Single(base=base, feature=names[estimator.column_])
    else:
        columns = tuple(_columns(estimator, names))
        learner = _learner(estimator, inputs)
    return Explanation(slope=sigmoid.slope, intercept=sigmoid.intercept, columns=columns, learner=learner)


def _columns(pipeline: Pipeline, names: dict[str, str]) -> list[Column]:
    columns: list[Column] = []
    for name, step, inputs in pipeline["columns"].transformers_:
        if name == "numbers":
            fills = step["impute"].statistics_.tolist()
            columns += [Number(feature=names[i], fill=fill) for i, fill in zip(inputs, fills, strict=True)]
        elif name == "strings":
            for i, categories in zip(inputs, step.categories_, strict=True):
                values = tuple(map(str, categories))
                if isinstance(step, OneHotEncoder):
                    columns += [Category(feature=names[i], value=value) for value in values]
                else:
                    columns.append(Code(feature=names[i], values=values))
        elif name == "rates":
            encoder = step["rate"]
            for i, values, margins in zip(inputs, encoder.values_, encoder.margins_, strict=True):
                *known, other = margins.tolist()
                rates = dict(zip(values, known, strict=True))
                columns.append(Rate(feature=names[i], rates=rates, other=other))
    return columns


def _learner(pipeline: Pipeline, inputs: pd.DataFrame) -> Linear | Trees:
    learner = pipeline["learner"]
    match type(learner).__name__:
        case "LogisticRegression":
            return _linear(pipeline, inputs)
        case "HistGradientBoostingClassifier":
            return _trees(trees.of_hist_gradient_boosting(learner))
        case "XGBClassifier":
            return _trees(trees.of_xgboost(learner))
        case other:
            raise NotImplementedError(other)


def _linear(pipeline: Pipeline, inputs: pd.DataFrame) -> Linear:
    """In the units of the raw numbers: the scaling is undone."""
    transformed = pipeline["columns"].transform(inputs)
    weights, centers = pipeline["learner"].coef_[0].astype(np.float64), transformed.mean(axis=0)
    base = float(pipeline["learner"].intercept_[0] + weights @ centers)
    for name, place in pipeline["columns"].output_indices_.items():
        if name in ("numbers", "rates"):
            scaler = pipeline["columns"].named_transformers_[name]["scale"]
            weights[place] /= scaler.scale_
            centers[place] = centers[place] * scaler.scale_ + scaler.mean_
    return Linear(base=base, weights=tuple(weights.tolist()), centers=tuple(centers.tolist()))


def _trees(ensemble: trees.Ensemble) -> Trees:
    def tree(arrays: trees.Tree) -> Tree:
        fields: dict[str, Any] = {name: tuple(values.tolist()) for name, values in vars(arrays).items()}
        return Tree(**fields)

    return Trees(bias=ensemble.bias, trees=tuple(map(tree, ensemble.trees)))
