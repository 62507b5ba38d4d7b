"""Training one learner: the model directory it leaves, what it may look at, and when it refuses."""

import json
from itertools import count
from pathlib import Path
from typing import get_args

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import dataset
from components.config import Costs, Learner, Training
from components.evaluate.core import budget_notes
from components.train import record, scoring
from components.train.calibration import IDENTITY, Sigmoid, calibrate, cheapest_threshold
from components.train.core import train
from components.train.features import CATEGORIES, frame, of_schema, retyped, top_categories
from components.train.fitting import FEWEST_FOLDS, FOLDS, MIN_EVENTS, MIN_ROWS, Effort, effort, fit, folds
from components.train.learners import RECIPES
from predictor import explain
from predictor.scorer import Scorer, warm_up
from serin import model
from serin.errors import UserError
from serin.model.histograms import SCORE_EDGES

LEARNERS = get_args(Learner)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    return datasets.write(datasets.orders(600, 0), root / "train"), datasets.write(
        datasets.orders(300, 1), root / "test"
    )


@pytest.fixture(scope="module", params=LEARNERS)
def trained(
    request: pytest.FixtureRequest, sides: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("models") / request.param
    train(datasets.config(), request.param, train=sides[0], test=sides[1], out=out)
    return out


def test_directory_is_sealed_and_complete(trained: Path) -> None:
    signature = model.verify(trained)
    assert signature.learner == trained.name
    assert (signature.target, signature.positive, signature.negative) == ("returned", "yes", "no")
    assert [(f.name, f.input, f.dtype) for f in signature.features] == [
        ("Preis in €", "f0", "number"),
        ("f0", "f1", "number"),
        ("size", "f2", "string"),
        ("region", "f3", "string"),
    ]
    assert {p.name for p in (trained / "model").iterdir()} == {"model.onnx"}
    assert {p.name for p in (trained / "meta").iterdir()} == {
        "signature.json",
        "samples.json",
        "profile.json",
        "contract.json",
        "card.md",
        "training.json",
        "explanation.json",
        "digests.json",
    }


def test_samples_are_what_a_client_sends_and_the_model_answers(trained: Path, sides: tuple[Path, Path]) -> None:
    samples = model.samples(trained)
    held_out = dataset.read_rows(sides[1])
    assert len(samples.records) == len(held_out)
    blanks = [(r["f0"], r["size"]) for r in samples.records]
    assert sum(delay is None for delay, _ in blanks) == held_out["f0"].isna().sum() > 0
    assert sum(size is None for _, size in blanks) == (held_out["size"] == "").sum() > 0
    assert all(set(r) == {"Preis in €", "f0", "size", "region"} for r in samples.records)
    np.testing.assert_allclose(samples.scores, scoring.score(trained, held_out), atol=1e-5)


def test_predictor_serves_it(trained: Path) -> None:
    scorer = Scorer.load(trained, model.verify(trained))
    explainer = explain.load(trained, scorer.layout)
    assert explainer is not None
    warm_up(scorer, explainer, model.samples(trained))


def test_record_is_out_of_fold_and_better_than_chance(trained: Path) -> None:
    known = record.read(trained)
    y = datasets.orders(600, 0)["returned"]
    chance = -float(np.mean(y * np.log(y.mean()) + (1 - y) * np.log(1 - y.mean())))
    assert known.log_loss < chance
    assert 0.6 < known.auc < 1
    assert known.cost < 1 - y.mean()
    assert known.trials == (0 if trained.name == "rule" else 2)


def test_profile_gains_the_distribution_of_scores(trained: Path) -> None:
    profile = json.loads((trained / "meta/profile.json").read_text(encoding="utf-8"))
    assert profile["rows"] == 600
    assert tuple(profile["scores"]["edges"]) == SCORE_EDGES
    assert sum(profile["scores"]["counts"]) == 300


def test_labels_of_the_test_rows_are_never_read(trained: Path, sides: tuple[Path, Path], tmp_path: Path) -> None:
    rows = dataset.read_rows(sides[1])
    rows["returned"] = np.random.default_rng(3).permutation(rows["returned"])
    shuffled = datasets.write(rows, tmp_path / "test")
    again = train(datasets.config(), trained.name, train=sides[0], test=shuffled, out=tmp_path / "model")
    assert again.digest == model.digest(trained)


def test_labels_of_the_training_rows_matter(trained: Path, sides: tuple[Path, Path], tmp_path: Path) -> None:
    rows = dataset.read_rows(sides[0])
    rows["returned"] = np.random.default_rng(3).permutation(rows["returned"])
    shuffled = datasets.write(rows, tmp_path / "train")
    other = train(datasets.config(), trained.name, train=shuffled, test=sides[1], out=tmp_path / "model")
    assert other.digest != model.digest(trained)


def test_card_names_costs_threshold_and_protected_attributes(trained: Path) -> None:
    text = (trained / "meta/card.md").read_text(encoding="utf-8")
    for part in (
        "orders",
        "`returned` is `yes`",
        "- region",
        "a false negative 4;",
        f"{record.read(trained).threshold:.4f}",
    ):
        assert part in text


def test_too_few_of_one_class_is_the_users_to_fix(sides: tuple[Path, Path], tmp_path: Path) -> None:
    rows = dataset.read_rows(sides[0])
    rows["returned"] = (np.arange(len(rows)) < 4).astype(np.int64)
    few = datasets.write(rows, tmp_path / "train")
    with pytest.raises(UserError, match="4 training rows with returned = yes"):
        train(datasets.config(), "logistic", train=few, test=sides[1], out=tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("budget_s", "tried"),
    [
        (1, 1),  # the first setting is tried whatever the budget
        (32, 3),
        (1000, 5),
    ],
)
def test_tuning_ends_with_the_budget_or_the_trials(
    sides: tuple[Path, Path], tmp_path: Path, budget_s: float, tried: int
) -> None:
    config = datasets.config(training={"trials": 5, "budget_s": budget_s})
    # the clock is looked at once per trial and gains five seconds each time; judging takes as long as two
    # trials, so a fourth would end after 20 s and judging after 30 s
    result = train(config, "logistic", train=sides[0], test=sides[1], out=tmp_path, clock=count(0, 5).__next__)
    assert result.record.trials == tried


@pytest.mark.parametrize(
    ("fit_s", "rows", "rarer", "expected"),
    [
        (1.0, 1_000_000, 300_000, Effort(1_000_000, tuning=True, folds=FOLDS)),  # 2 + 4 fits in 10 s
        (10.0, 1_000_000, 300_000, Effort(125_000, tuning=True, folds=FOLDS)),
        (1000.0, 1_000_000, 1000, Effort(250_000, tuning=False, folds=FEWEST_FOLDS)),  # events are not thrown away
        (2.0, 1079, 400, Effort(1079, tuning=False, folds=FOLDS)),  # a wide table has no rows to spare
        (60.0, 1079, 400, Effort(1079, tuning=False, folds=FEWEST_FOLDS)),
    ],
)
def test_the_budget_bounds_the_first_trial_and_the_folds(
    fit_s: float, rows: int, rarer: int, expected: Effort
) -> None:
    assert effort(fit_s, rows, rarer, budget_s=10.0) == expected


@given(
    fit_s=st.floats(0, 1e5), rows=st.integers(20, 10**7), rare=st.floats(0.001, 0.5), budget_s=st.floats(0.01, 1e4)
)
def test_the_budget_is_kept_or_as_little_is_done_as_makes_sense(
    fit_s: float, rows: int, rare: float, budget_s: float
) -> None:
    rarer = max(1, int(rare * rows))
    found = effort(fit_s, rows, rarer, budget_s)
    assert 1 <= found.rows <= rows
    assert found.rows == rows or (found.rows >= MIN_ROWS and rarer * found.rows >= MIN_EVENTS * rows)
    fits = (found.folds - 1) + (2 if found.tuning else 0)
    assert fit_s * found.rows / rows * fits <= budget_s or found.folds == FEWEST_FOLDS


def test_a_long_table_is_tuned_on_a_sample_and_fitted_whole() -> None:
    rng = np.random.default_rng(1)
    inputs = pd.DataFrame({f"f{i}": rng.normal(size=60_000).astype(np.float32) for i in range(10)})
    y = (inputs["f0"] + rng.normal(size=60_000) > 1).to_numpy(np.int64)
    seconds = iter([0.0, 0.0, 20.0, 20.0, *range(21, 100)])  # 50,000 rows take 20 s
    trained = fit(RECIPES["logistic"], inputs, y, None, Training(trials=5, budget_s=60), seconds.__next__)
    assert len(trained.judged) == len(trained.probabilities) == 15_000
    assert y[trained.judged].mean() == pytest.approx(y.mean(), abs=1e-3)
    assert trained.trials >= 1
    known = record.Record(
        learner="logistic",
        rows=len(y),
        event_rate=0.2,
        log_loss=0.1,
        auc=0.9,
        cost=1,
        threshold=0.5,
        calibrated=False,
        trials=0,
        judged_rows=len(trained.judged),
        params={},
    )
    assert list(budget_notes([known], Training(budget_s=60))) == [
        "logistic: training.budget_s of 60 s allowed to tune and calibrate on 15,000 of the 60,000 training rows; "
        "the model was fitted on all of them.",
        "logistic: training.budget_s of 60 s left no time for tuning.",
    ]


def test_folds_keep_groups_together() -> None:
    groups = np.repeat(np.arange(40), 5)
    y = np.tile([0, 1, 0, 1, 1], 40)
    held_out = np.concatenate([fold for _, fold in folds(y, groups, 5, seed=1)])
    assert sorted(held_out) == list(range(200))
    for fitted_on, fold in folds(y, groups, 5, seed=1):
        assert not set(groups[fitted_on]) & set(groups[fold])


@pytest.mark.parametrize("groups", [[0, 1, 2, 3] * 25, [0] * 20 + list(range(1, 81))])
def test_groups_that_leave_a_fold_nothing_to_learn_from_are_refused(groups: list[int]) -> None:
    y = (np.array(groups) == 0).astype(int)
    with pytest.raises(UserError, match=r"split.group: the groups cannot be divided into 5 folds"):
        folds(y, np.array(groups), 5, seed=1)


def test_group_column_is_used_forfolds(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    """Twins of one order: split apart, a tree ensemble would recognise them by price."""
    rows = dataset.read_rows(sides[0])
    noise = rows.assign(returned=np.random.default_rng(5).integers(0, 2, len(rows)))
    doubled = datasets.write(noise.loc[noise.index.repeat(3)].reset_index(drop=True), tmp_path / "train")
    grouped = datasets.config(split={"group": "order"})
    losses = [
        train(c, "xgboost", train=doubled, test=sides[1], out=tmp_path / name).record.log_loss
        for name, c in (("grouped", grouped), ("apart", datasets.config()))
    ]
    assert losses[0] > np.log(2) - 0.02 > losses[1]


class TestDoor:
    def test_missing_column(self, sides: tuple[Path, Path]) -> None:
        features = of_schema(dataset.read_schema(sides[0]))
        with pytest.raises(UserError, match="'size' is missing"):
            frame(datasets.orders(5).drop(columns="size"), features)

    def test_wrong_type(self, sides: tuple[Path, Path]) -> None:
        features = of_schema(dataset.read_schema(sides[0]))
        with pytest.raises(UserError, match="'size' is float64; the model needs a string"):
            frame(datasets.orders(5).assign(size=1.0), features)

    def test_columns_in_the_type_of_an_older_model(self, sides: tuple[Path, Path]) -> None:
        features = of_schema(dataset.read_schema(sides[0]))
        rows = datasets.orders(5).assign(size=[1.0, np.nan, 2.5, 1e6, 3.0], f0=["007", "", "8", "x", "1"])
        known, changed = retyped(rows, features)
        assert changed == ("size",)
        assert known["size"].tolist() == ["1", "", "2.5", "1000000", "3"]
        known, changed = retyped(rows.assign(f0=["007", "", "8", "9", "1"]), features)
        assert changed == ("f0", "size")
        assert known["f0"].tolist() == pytest.approx([7, np.nan, 8, 9, 1], nan_ok=True)

    def test_beyond_float32(self, sides: tuple[Path, Path]) -> None:
        features = of_schema(dataset.read_schema(sides[0]))
        with pytest.raises(UserError, match="'f0' holds numbers beyond"):
            frame(datasets.orders(5).assign(f0=1e39), features)

    def test_categories_are_the_most_frequent_and_ties_go_by_name(self) -> None:
        values = pd.Series([f"v{i:03}" for i in range(100)] + ["v099", "v098"])
        top = top_categories(values)
        assert top[:3] == ["v098", "v099", "v000"]
        assert len(top) == CATEGORIES


class TestCalibration:
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, 4000)
    y = (rng.random(4000) < 1 / (1 + np.exp(-margins))).astype(np.int64)

    def test_true_log_odds_are_left_alone(self) -> None:
        assert calibrate(self.margins, self.y, seed=0)[0] == IDENTITY

    def test_overconfident_log_odds_are_drawn_in(self) -> None:
        sigmoid, p = calibrate(3 * self.margins + 2, self.y, seed=0)
        assert sigmoid.slope == pytest.approx(1 / 3, rel=0.1)
        assert sigmoid.intercept == pytest.approx(-2 / 3, abs=0.15)
        assert abs(p.mean() - self.y.mean()) < 0.01

    def test_a_model_worse_than_chance_is_not_turned_around(self) -> None:
        assert calibrate(-self.margins, self.y, seed=0)[0] == Sigmoid()


class TestThreshold:
    @pytest.mark.parametrize("seed", range(20))
    def test_no_other_threshold_costs_less(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        p, y = rng.integers(1, 20, 60) / 20, rng.integers(0, 2, 60)
        costs = Costs(false_positive=1, false_negative=float(rng.integers(1, 9)))

        def cost(threshold: float) -> float:
            decided = p >= threshold
            return float(((y == 1) & ~decided).sum() * costs.false_negative + ((y == 0) & decided).sum())

        best = min(cost(t) for t in [0, *np.unique(p) + 1e-9])
        assert cost(cheapest_threshold(p, y, costs)) == best

    def test_among_equals_the_ideal_one(self) -> None:
        p = np.array([0.1, 0.2, 0.3, 0.6, 0.7])
        y = np.array([0, 0, 0, 1, 1])
        assert cheapest_threshold(p, y, Costs()) == pytest.approx(0.45)
