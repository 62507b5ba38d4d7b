"""Columns of many values: nothing of what they know is lost, and nothing is learned that is not there."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from components.config import Learner, Training
from components.evaluate.metrics import auc
from components.train import explanation
from components.train.calibration import Sigmoid
from components.train.features import KNOWN_VALUES
from components.train.fitting import Trained, fit
from components.train.learners import RECIPES, margin
from components.train.rates import EventRates
from predictor.columns import Layout, from_records
from predictor.explain import Explainer
from serin.model import Feature

LEVELS = 200
FULL = ("logistic", "hist_gradient_boosting", "xgboost")


def shops(rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """As many rows of each of 200 shops, and one column that says nothing."""
    effects = np.random.default_rng(0).normal(0, 1.5, LEVELS)
    rng = np.random.default_rng(seed)
    shop = rng.permutation(np.arange(rows) % LEVELS)
    inputs = pd.DataFrame({"f0": [f"shop {i}" for i in shop], "f1": rng.normal(size=rows).astype(np.float32)})
    return inputs.astype({"f0": object}), (rng.random(rows) < expit(effects[shop])).astype(np.int64)


def trained_on(learner: Learner, inputs: pd.DataFrame, y: np.ndarray) -> Trained:
    with threadpool_limits(1):
        return fit(RECIPES[learner], inputs, y, None, Training(trials=1), time.monotonic)


@pytest.mark.parametrize("learner", FULL)
def test_two_hundred_even_levels_count_as_with_a_column_each(learner: Learner) -> None:
    inputs, y = shops(8000, 1)
    later, events = shops(8000, 2)
    one_hot = LogisticRegression(max_iter=1000).fit(pd.get_dummies(inputs["f0"]), y)
    ceiling = auc(events, one_hot.decision_function(pd.get_dummies(later["f0"])))
    trained = trained_on(learner, inputs, y)
    assert auc(events, trained.predict(later)) > ceiling - 0.01
    assert ceiling > 0.78


@pytest.mark.parametrize("learner", FULL)
def test_values_that_say_nothing_mislead_nobody(learner: Learner) -> None:
    rng = np.random.default_rng(3)
    inputs = pd.DataFrame({"f0": np.array([f"v{i}" for i in rng.integers(0, 700, 2000)], dtype=object)})
    inputs["f1"] = rng.normal(size=2000).astype(np.float32)
    y = (rng.random(2000) < expit(2 * inputs["f1"])).astype(np.int64)
    without = trained_on(learner, inputs[["f1"]], y)
    trained = trained_on(learner, inputs, y)
    assert auc(y, trained.probabilities) > auc(y, without.probabilities) - 0.02


def test_a_rows_own_label_is_not_in_its_rate() -> None:
    values = pd.DataFrame({"f0": np.array([f"v{i}" for i in range(400)], dtype=object)})
    y = np.arange(400) % 2
    crossed = EventRates(0).fit_transform(values, y)
    assert np.abs(crossed - logit(y.mean())).max() < 0.1
    fitted = EventRates(0).fit(values, y).transform(values)
    assert (fitted[y == 1] > fitted[y == 0].max()).all()


def test_rare_values_beyond_the_limit_and_new_ones_share_a_rate() -> None:
    names = [f"v{i:05d}" for i in range(KNOWN_VALUES + 50)]
    values = pd.DataFrame({"f0": np.array(names, dtype=object)})
    y = (np.arange(len(names)) >= KNOWN_VALUES).astype(int)
    encoder = EventRates(0).fit(values, y)
    found = encoder.transform(pd.DataFrame({"f0": np.array([names[-1], names[-2], "new", names[0]], dtype=object)}))
    assert found[0] == found[1] == found[2] > found[3]


@pytest.mark.parametrize("learner", FULL)
def test_contributions_add_up_to_the_score(learner: Learner) -> None:
    inputs, y = shops(2000, 4)
    with threadpool_limits(1):
        estimator = RECIPES[learner].build(RECIPES[learner].first, inputs, 0).fit(inputs, y)
    features = (Feature(name="shop", input="f0", dtype="string"), Feature(name="x", input="f1", dtype="number"))
    sigmoid = Sigmoid(0.9, 0.1)
    layout = Layout.of(features)
    explainer = Explainer(explanation.of(estimator, sigmoid, features, inputs), layout)
    rows = inputs.head(20).copy()
    rows.loc[3, "f0"], rows.loc[4, "f1"] = "new", np.nan
    records = [
        {"shop": shop, "x": None if np.isnan(x) else float(x)} for shop, x in zip(rows["f0"], rows["f1"], strict=True)
    ]
    scores = sigmoid(margin(estimator, rows))
    found = explainer.explain(from_records(layout, records), scores)
    assert expit(found.base + found.values.sum(axis=1)) == pytest.approx(scores, abs=1e-5)
    assert np.abs(found.values[:, found.features.index("shop")]).max() > 0.5
