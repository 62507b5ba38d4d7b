"""Fit one learner: tune it, calibrate it, and keep what it says about rows it was not fitted on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from components.config import Training
from components.evaluate import metrics
from components.train.calibration import IDENTITY, Sigmoid, calibrate
from components.train.learners import Params, Recipe, margin
from serin.errors import UserError

TUNING_FOLDS: Final = 3
FOLDS: Final = 5
FEWEST_FOLDS: Final = 2
MIN_ROWS: Final = 1000
MIN_EVENTS: Final = 200
"""Of the rarer class, in a sample of the rows."""
SMALL_CELLS: Final = 500_000

Fold = tuple[np.ndarray, np.ndarray]
"""Row numbers to fit on, row numbers held out."""


@dataclass(frozen=True)
class Trained:
    """A learner fitted on all training rows, with its calibration. `judged` are the numbers of the rows, all or a
    sample of them, that `trials`, calibration and the out-of-fold `probabilities` are of."""

    estimator: BaseEstimator
    sigmoid: Sigmoid
    params: Params
    trials: int
    judged: np.ndarray
    probabilities: np.ndarray

    def predict(self, inputs: pd.DataFrame) -> np.ndarray:
        return self.sigmoid(margin(self.estimator, inputs))


@dataclass(frozen=True)
class Effort:
    """What the time budget allows: `rows` to tune and judge on, whether to tune at all, folds to judge by."""

    rows: int
    tuning: bool
    folds: int


def effort(fit_s: float, rows: int, rarer: int, budget_s: float) -> Effort:
    """Bound the fits before the last one, which takes all rows: one trial and the judging of its setting.

    `fit_s`: what one fit on all `rows` takes; it is taken to grow in proportion to them. `rarer`: rows of the rarer
    class. Rows are halved rather than cut to measure, so that runs whose timings differ a little have the same ones.
    Where too few would be left, there is no tuning.
    """
    first_trial, judging = TUNING_FOLDS - 1, FOLDS - 1  # in fits of all rows: each of k leaves one k-th out
    wanted = rows
    while fit_s * wanted / rows * (first_trial + judging) > budget_s:
        half = wanted // 2
        if half < MIN_ROWS or rarer * half < MIN_EVENTS * rows:
            judged_in_time = fit_s * wanted / rows * judging <= budget_s
            return Effort(wanted, tuning=False, folds=FOLDS if judged_in_time else FEWEST_FOLDS)
        wanted = half
    return Effort(wanted, tuning=True, folds=FOLDS)


def fit(
    recipe: Recipe,
    inputs: pd.DataFrame,
    y: np.ndarray,
    groups: np.ndarray | None,
    training: Training,
    clock: Callable[[], float],
) -> Trained:
    """Tune on one partition of the rows, judge and calibrate the winner on another one, fit it on all rows.

    All but the last fit keep to `training.budget_s`, if need be on a sample of the rows, see `effort`.
    """
    seed = training.seed
    started = clock()
    allowed = _effort(recipe, inputs, y, training, clock)
    judged = _sample(y, allowed.rows, seed)
    some, some_y = inputs.iloc[judged], y[judged]
    some_groups = None if groups is None else groups[judged]
    judging = folds(some_y, some_groups, allowed.folds, seed + 1)
    params, trials = recipe.first, 0
    if recipe.space and allowed.tuning:
        tuning = folds(some_y, some_groups, TUNING_FOLDS, seed)
        left = training.model_copy(update={"budget_s": training.budget_s - (clock() - started)})
        params, trials = _tune(recipe, some, some_y, tuning, left, clock)
    margins = _out_of_fold(recipe, params, some, some_y, judging, seed)
    sigmoid, probabilities = calibrate(margins, some_y, seed)
    estimator = recipe.build(params, inputs, seed).fit(inputs, y)
    return Trained(estimator, sigmoid, params, trials, judged, probabilities)


def _effort(
    recipe: Recipe, inputs: pd.DataFrame, y: np.ndarray, training: Training, clock: Callable[[], float]
) -> Effort:
    """From the time that one fit takes, on part of a long table. Small tables are not worth the measurement."""
    rows = len(y)
    if inputs.size <= SMALL_CELLS:
        return Effort(rows, tuning=True, folds=FOLDS)
    measured = _sample(y, min(rows, max(MIN_ROWS, SMALL_CELLS // len(inputs.columns))), training.seed)
    started = clock()
    recipe.build(recipe.first, inputs, training.seed).fit(inputs.iloc[measured], y[measured])
    fit_s = (clock() - started) * rows / len(measured)
    return effort(fit_s, rows, int(min(y.sum(), rows - y.sum())), training.budget_s)


def _sample(y: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Row numbers in their order, with the classes in their proportion."""
    everything = np.arange(len(y))
    if rows >= len(y):
        return everything
    chosen, _ = train_test_split(everything, train_size=rows, stratify=y, random_state=seed)
    return np.sort(chosen)


def _tune(
    recipe: Recipe,
    inputs: pd.DataFrame,
    y: np.ndarray,
    parts: list[Fold],
    training: Training,
    clock: Callable[[], float],
) -> tuple[Params, int]:
    """The setting with the least log loss, and how many were tried: at most `training.trials`, and no more than
    leave time, within `training.budget_s`, to judge the best one. The first setting is always tried."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=training.seed, n_startup_trials=5))
    study.enqueue_trial(dict(recipe.first))
    started = clock()
    judging = (FOLDS - 1) / (TUNING_FOLDS - 1)  # takes as long as so many trials
    tried = 0
    while tried < training.trials and (
        tried == 0 or (clock() - started) * (tried + 1 + judging) / tried <= training.budget_s
    ):
        trial = study.ask(dict(recipe.space))
        margins = _out_of_fold(recipe, trial.params, inputs, y, parts, training.seed)
        study.tell(trial, float(metrics.log_losses(y, IDENTITY(margins)).mean()))
        tried += 1
    return study.best_params, tried


def folds(y: np.ndarray, groups: np.ndarray | None, count: int, seed: int) -> list[Fold]:
    """Stratified; rows of one group stay together. Raises `UserError` when the groups are too few or too uneven to
    leave both classes to learn from in every fold."""
    if groups is None:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(y, y))
    if len(np.unique(groups)) >= count:
        found = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(y, y, groups))
        if all(len(np.unique(y[fit])) == 2 for fit, _ in found):
            return found
    raise UserError(
        f"Config split.group: the groups cannot be divided into {count} folds with both classes in the training "
        "rows of each; choose a finer column, or remove split.group."
    )


def _out_of_fold(
    recipe: Recipe, params: Params, inputs: pd.DataFrame, y: np.ndarray, parts: list[Fold], seed: int
) -> np.ndarray:
    """Log-odds [N], each from a model that was not fitted on its row."""
    margins = np.empty(len(y))
    for fitted_on, held_out in parts:
        estimator = recipe.build(params, inputs, seed).fit(inputs.iloc[fitted_on], y[fitted_on])
        margins[held_out] = margin(estimator, inputs.iloc[held_out])
    return margins
