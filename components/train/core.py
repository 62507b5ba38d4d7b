"""Train one learner: tune, calibrate, choose the threshold, export to ONNX, and seal the model directory."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from components import dataset
from components.config import Config, Learner, Training
from components.evaluate import metrics
from components.train import card, features, scoring
from components.train.calibration import Sigmoid, calibrate, cheapest_threshold
from components.train.export import check_parity, hostile, to_onnx
from components.train.learners import RECIPES, Params, Recipe, margin
from components.train.record import TRAINING_FILE, Record
from serin.errors import UserError
from serin.histograms import SCORE_EDGES
from serin.model import (
    CARD_FILE,
    MODEL_FILE,
    PROFILE_FILE,
    SAMPLES_FILE,
    SIGNATURE_FILE,
    Feature,
    Samples,
    Signature,
    seal,
)

TUNING_FOLDS: Final = 3
FOLDS: Final = 5
SAMPLES: Final = 500
CONTRACT_FILE: Final = Path("meta/contract.json")

Fold = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TrainingResult:
    digest: str
    record: Record
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A fitted learner with its calibration; `probabilities` are out-of-fold, row by row of the training data."""

    estimator: BaseEstimator
    sigmoid: Sigmoid
    params: Params
    trials: int
    probabilities: np.ndarray

    def predict(self, inputs: pd.DataFrame) -> np.ndarray:
        return self.sigmoid(margin(self.estimator, inputs))


def train(
    config: Config,
    learner: Learner,
    *,
    train: Path,
    test: Path,
    out: Path,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingResult:
    """Write the model directory `out` from the dataset directories `train` and `test`.

    Of `test` only the features are used: for the parity check, the samples and the scores' distribution. With
    the same data, config and number of trials the directory is the same, byte for byte.
    Raises `UserError` for data no model can be made of, `ParityError` when the export is not exact.
    """
    started = clock()
    schema = dataset.read_schema(train)
    rows, held_out = dataset.read_rows(train), dataset.read_rows(test)
    columns = features.of_schema(schema)
    inputs, test_inputs = features.frame(rows, columns), features.frame(held_out, columns)
    y = rows[schema.target].to_numpy(np.int64)
    events = int(y.sum())
    if min(events, len(y) - events) < FOLDS:
        raise UserError(
            f"The training rows hold {events} rows with {schema.target} = {schema.positive} and {len(y) - events} "
            f"with {schema.negative}; at least {FOLDS} of each are needed: add data or lower split.test."
        )
    groups = _groups(rows, config.split.group)
    with threadpool_limits(1):
        trained = fit(RECIPES[learner], inputs, y, groups, config.training, clock)

    threshold = cheapest_threshold(trained.probabilities, y, config.costs)
    record = Record(
        learner=learner,
        rows=len(y),
        event_rate=float(y.mean()),
        log_loss=float(metrics.log_losses(y, trained.probabilities).mean()),
        auc=metrics.auc(y, trained.probabilities),
        cost=float(metrics.decision_costs(y, trained.probabilities >= threshold, config.costs).mean()),
        threshold=threshold,
        calibrated=trained.sigmoid != Sigmoid(),
        trials=trained.trials,
        params=dict(trained.params),
    )
    signature = Signature(
        learner=learner,
        target=schema.target,
        positive=schema.positive,
        negative=schema.negative,
        threshold=threshold,
        features=columns,
    )
    scores = _export(trained, columns, test_inputs, out)
    _describe(
        out, config, schema, signature, record, _samples(held_out, signature, scores), scores, dataset_dir=train
    )
    return TrainingResult(digest=seal(out), record=record, seconds=clock() - started)


def fit(
    recipe: Recipe,
    inputs: pd.DataFrame,
    y: np.ndarray,
    groups: np.ndarray | None,
    training: Training,
    clock: Callable[[], float],
) -> Trained:
    """Tune on one partition of the rows, judge and calibrate the winner on another one, fit it on all rows."""
    seed = training.seed
    params, trials = _tune(recipe, inputs, y, _folds(y, groups, TUNING_FOLDS, seed), training, clock)
    margins = _out_of_fold(recipe, params, inputs, y, _folds(y, groups, FOLDS, seed + 1), seed)
    sigmoid, probabilities = calibrate(margins, y, seed)
    estimator = recipe.build(params, inputs, seed).fit(inputs, y)
    return Trained(estimator, sigmoid, params, trials, probabilities)


def _tune(
    recipe: Recipe,
    inputs: pd.DataFrame,
    y: np.ndarray,
    folds: list[Fold],
    training: Training,
    clock: Callable[[], float],
) -> tuple[Params, int]:
    """The setting with the least log loss, and how many were tried: at most `training.trials`, and no more than
    are expected to end within `training.budget_s`. The first setting is always tried."""
    if not recipe.space:
        return recipe.first, 0
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=training.seed, n_startup_trials=5))
    study.enqueue_trial(dict(recipe.first))
    started = clock()
    tried = 0
    while tried < training.trials and (tried == 0 or (clock() - started) * (tried + 1) / tried <= training.budget_s):
        trial = study.ask(dict(recipe.space))
        margins = _out_of_fold(recipe, trial.params, inputs, y, folds, training.seed)
        study.tell(trial, float(metrics.log_losses(y, Sigmoid()(margins)).mean()))
        tried += 1
    return study.best_params, tried


def _groups(rows: pd.DataFrame, column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    if column not in rows.columns:
        raise UserError(f"Config split.group: column {column!r} is not in the data; correct its name.")
    return rows[column].to_numpy()


def _folds(y: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[Fold]:
    """(fit, held out) row numbers, stratified; rows of one group stay together."""
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(splitter(count, shuffle=True, random_state=seed).split(y, y, groups))


def _out_of_fold(
    recipe: Recipe, params: Params, inputs: pd.DataFrame, y: np.ndarray, folds: list[Fold], seed: int
) -> np.ndarray:
    """Log-odds [N], each from a model that was not fitted on its row."""
    margins = np.empty(len(y))
    for fitted_on, held_out in folds:
        estimator = recipe.build(params, inputs, seed).fit(inputs.iloc[fitted_on], y[fitted_on])
        margins[held_out] = margin(estimator, inputs.iloc[held_out])
    return margins


def _export(trained: Trained, columns: tuple[Feature, ...], inputs: pd.DataFrame, out: Path) -> np.ndarray:
    """Write the ONNX file once it agrees with Python on all of `inputs`; return Python's scores of them."""
    graph = to_onnx(trained.estimator, trained.sigmoid, columns)
    checked = pd.concat([inputs, hostile(inputs)], ignore_index=True)
    names = [f"held-out row {i}" for i in range(len(inputs))]
    names += [f"made-up row {i}" for i in range(len(checked) - len(inputs))]
    expected = trained.predict(checked)
    check_parity(expected, scoring.run(graph, checked), names)
    (out / MODEL_FILE).parent.mkdir(parents=True, exist_ok=True)
    (out / MODEL_FILE).write_bytes(graph)
    return expected[: len(inputs)]


def _samples(held_out: pd.DataFrame, signature: Signature, scores: np.ndarray) -> Samples:
    """Up to `SAMPLES` held-out records, evenly spread, as a client sends them: null where nothing is known."""
    chosen = np.unique(np.linspace(0, len(held_out) - 1, min(len(held_out), SAMPLES)).astype(int))
    names = [feature.name for feature in signature.features]
    some = held_out.iloc[chosen][names].astype(object)
    some = some.mask(some.isna() | (some == ""), None)
    return Samples(records=tuple(some.to_dict("records")), scores=tuple(scores[chosen].tolist()))


def _describe(
    out: Path,
    config: Config,
    schema: dataset.Schema,
    signature: Signature,
    record: Record,
    samples: Samples,
    scores: np.ndarray,
    *,
    dataset_dir: Path,
) -> None:
    """Write all of meta/ but the digests."""
    (out / "meta").mkdir(parents=True, exist_ok=True)
    for file, value in ((SIGNATURE_FILE, signature), (SAMPLES_FILE, samples), (TRAINING_FILE, record)):
        (out / file).write_text(value.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (out / CONTRACT_FILE).write_bytes((dataset_dir / dataset.CONTRACT_FILE).read_bytes())
    profile: dict[str, Any] = json.loads((dataset_dir / dataset.PROFILE_FILE).read_text(encoding="utf-8"))
    profile["scores"] = {"edges": SCORE_EDGES, "counts": metrics.score_counts(scores)}
    (out / PROFILE_FILE).write_text(json.dumps(profile, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / CARD_FILE).write_text(card.write(config, schema, record), encoding="utf-8")
