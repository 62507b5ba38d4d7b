"""Fit one learner: tune it, calibrate it, and keep what it says about rows it was not fitted on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import optuna
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from components.config import Training
from components.evaluate import metrics
from components.train.calibration import IDENTITY, Sigmoid, calibrate
from components.train.learners import Params, Recipe, margin
from serin.errors import UserError

TUNING_FOLDS: Final = 3
FOLDS: Final = 5

Fold = tuple[np.ndarray, np.ndarray]
"""Row numbers to fit on, row numbers held out."""


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
    tuning, judging = folds(y, groups, TUNING_FOLDS, seed), folds(y, groups, FOLDS, seed + 1)
    params, trials = _tune(recipe, inputs, y, tuning, training, clock)
    margins = _out_of_fold(recipe, params, inputs, y, judging, seed)
    sigmoid, probabilities = calibrate(margins, y, seed)
    estimator = recipe.build(params, inputs, seed).fit(inputs, y)
    return Trained(estimator, sigmoid, params, trials, probabilities)


def _tune(
    recipe: Recipe,
    inputs: pd.DataFrame,
    y: np.ndarray,
    parts: list[Fold],
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
