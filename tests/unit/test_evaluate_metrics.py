"""The metrics agree with scikit-learn, and stay finite where it does not."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from components.config import Costs
from components.evaluate import metrics
from serin.model.histograms import SCORE_EDGES, bucket

scored_rows = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def arrays(rows: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    y, p = zip(*rows, strict=True)
    return np.array(y, np.int64), np.array(p, np.float32) / np.float32(20)


@given(scored_rows)
def test_auc_with_ties(rows: list[tuple[bool, int]]) -> None:
    y, p = arrays(rows)
    if len(set(y)) == 2:
        assert metrics.auc(y, p) == pytest.approx(roc_auc_score(y, p))
    else:
        assert math.isnan(metrics.auc(y, p))


@given(scored_rows)
def test_log_loss_is_finite_at_0_and_1(rows: list[tuple[bool, int]]) -> None:
    y, p = arrays(rows)
    kept = np.clip(p.astype(np.float64), metrics.EPSILON, 1 - metrics.EPSILON)
    assert metrics.log_losses(y, p).mean() == pytest.approx(log_loss(y, kept, labels=[0, 1]))


@given(scored_rows, st.integers(3, 30))
def test_roc_is_short_finite_and_runs_from_corner_to_corner(rows: list[tuple[bool, int]], limit: int) -> None:
    y, p = arrays(rows)
    points = metrics.roc(y, p, limit)
    if len(set(y)) < 2:
        assert points == []
        return
    assert len(points) <= limit
    assert np.isfinite(points).all()
    assert points[0][:2] == (0, 0)
    assert points[-1][:2] == (1, 1)
    false, true, threshold = np.array(points).T
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert (np.diff(threshold) <= 0).all()


def test_roc_point_is_the_rates_at_its_threshold() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(500).round(2)
    y = (rng.random(500) < p).astype(np.int64)
    for false, true, threshold in metrics.roc(y, p)[1:]:
        assert false == pytest.approx((p[y == 0] >= threshold).mean())
        assert true == pytest.approx((p[y == 1] >= threshold).mean())


def test_cost_of_each_kind_of_error() -> None:
    y, decided = np.array([0, 0, 1, 1]), np.array([False, True, False, True])
    costs = Costs(false_positive=2, false_negative=5)
    assert metrics.decision_costs(y, decided, costs).tolist() == [0, 2, 5, 0]


def test_calibration_error() -> None:
    y = np.tile([0, 0, 0, 1], 100)
    assert metrics.calibration_error(y, np.full(400, 0.25)) == pytest.approx(0, abs=0.03)
    assert metrics.calibration_error(y, np.full(400, 0.65)) == pytest.approx(0.4, abs=0.01)
    assert sum(rows for rows, _, _ in metrics.calibration(y, np.linspace(0, 1, 400))) == 400


@given(st.lists(st.floats(0, 1), min_size=1))
def test_scores_are_counted_on_the_predictors_grid(scores: list[float]) -> None:
    counts = metrics.score_counts(np.array(scores))
    assert len(counts) == len(SCORE_EDGES) + 1
    for i in range(len(counts)):
        assert counts[i] == sum(bucket(SCORE_EDGES, score) == i for score in scores)
