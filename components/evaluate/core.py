"""Choose the challenger, score it and the champion on the same held-out rows, and give the verdict."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from components import dataset
from components.config import Config, Costs, Training
from components.evaluate import metrics, verdict
from components.evaluate.compare import Comparison, Groups, Scored, comparable, compare
from components.evaluate.evaluation import Candidate, Curves, Evaluation, Metrics, Side, Slice
from components.train import features, record, scoring
from components.train.learners import RECIPES
from serin import model
from serin.errors import UserError

SLICE_VALUES: Final = 10
SLICE_ROWS: Final = 50
"""Slices are shown of columns with at most so many values, and of values with at least so many rows."""
BASE_RATE: Final = "base rate"


@dataclass(frozen=True)
class Model:
    """`p` are its probabilities [N] of the test rows; `digest` is None for the base rate. `retyped`: the columns that
    had another type when it was trained."""

    learner: str
    digest: str | None
    threshold: float
    p: np.ndarray
    retyped: tuple[str, ...] = ()

    @property
    def scored(self) -> Scored:
        return Scored(self.p, self.p >= self.threshold)


def evaluate(config: Config, candidates: Sequence[Path], champion: Path | None, test: Path) -> Evaluation:
    """Compare the best of `candidates` with `champion`, model directories all, on the dataset directory `test`.

    Missing evidence never promotes. Without a champion the challenger is compared, by log loss alone, with the base
    rate of its training data. Raises `UserError` when a candidate is not as training sealed it.
    """
    schema, rows = dataset.read_schema(test), dataset.read_rows(test)
    y = rows[schema.target].to_numpy(np.int64)
    chosen = choose(candidates)
    challenger = _load(chosen, schema, rows)
    stable: Model | None = None
    try:
        stable = _load(champion, schema, rows) if champion else _base_rate(chosen, len(rows), config.costs)
        missing = _missing_evidence(y, challenger, stable, config.gate.min_rows)
    except UserError as error:
        missing = f"the champion cannot score the test rows ({error})"

    groups = {name: _values(rows[name]) for name in schema.protected}
    comparison = Comparison((), ())
    if stable is None or missing:
        word, reason = verdict.without_evidence(missing)
    else:
        comparison = compare(
            y,
            challenger.scored,
            stable.scored,
            groups,
            costs=config.costs,
            gate=config.gate,
            seed=config.training.seed,
        )
        log_loss, checks = comparison.differences[0], comparison.checks
        if challenger.digest == stable.digest:
            word, reason = verdict.same_model(challenger.learner)
        elif champion:
            word, reason = verdict.against_champion(challenger.learner, stable.learner, log_loss, checks)
        else:
            comparison = Comparison(comparison.differences[:1], checks[:1])
            word, reason = verdict.of_first_model(challenger.learner, log_loss, checks[0])
    return Evaluation(
        verdict=word,
        reason=reason,
        rows=len(rows),
        events=int(y.sum()),
        level=1 - config.gate.alpha,
        resamples=config.gate.resamples,
        candidates=tuple(_candidate(root) for root in candidates),
        challenger=_side(challenger, y, config.costs),
        champion=None if stable is None else _side(stable, y, config.costs),
        differences=comparison.differences,
        checks=comparison.checks,
        slices=tuple(_slices(rows, y, schema, challenger, stable, config.costs)),
        notes=(
            *budget_notes([record.read(root) for root in candidates], config.training),
            *_notes(y, groups, stable.retyped if stable else ()),
        ),
    )


def choose(candidates: Sequence[Path]) -> Path:
    """The model directory with the least out-of-fold log loss; test rows have no say in the choice."""
    return min(candidates, key=lambda root: record.read(root).log_loss)


def _load(root: Path, schema: dataset.Schema, rows: pd.DataFrame) -> Model:
    signature = model.verify(root)
    predicted, labelled = (signature.target, signature.positive), (schema.target, schema.positive)
    if predicted != labelled:
        raise UserError(
            f"Model {root} predicts {' = '.join(predicted)}, the rows are labelled {' = '.join(labelled)}."
        )
    known, changed = features.retyped(rows, signature.features)
    return Model(signature.learner, model.digest(root), signature.threshold, scoring.score(root, known), changed)


def _base_rate(root: Path, rows: int, costs: Costs) -> Model:
    """What is known without a model: the event rate of the rows the model in `root` learned from."""
    threshold = costs.false_positive / (costs.false_positive + costs.false_negative)
    return Model(BASE_RATE, None, threshold, np.full(rows, record.read(root).event_rate))


def _missing_evidence(y: np.ndarray, challenger: Model, champion: Model, min_rows: int) -> str:
    """Why the rows cannot decide; empty if they can."""
    if len(y) < min_rows:
        return f"there are {len(y)} test rows; gate.min_rows requires {min_rows}"
    if len(np.unique(y)) < 2:
        return "all test rows have the same label"
    for side, name in ((challenger, "challenger"), (champion, "champion")):
        if unscored := np.count_nonzero(~np.isfinite(side.p)):
            return f"the {name} has no score for {unscored} of {len(y)} test rows"
    return ""


def _candidate(root: Path) -> Candidate:
    known = record.read(root)
    return Candidate(
        learner=known.learner, digest=model.digest(root), log_loss=known.log_loss, auc=known.auc, cost=known.cost
    )


def _side(side: Model, y: np.ndarray, costs: Costs) -> Side | None:
    if not len(y) or not np.isfinite(side.p).all():
        return None
    curves = Curves(
        roc=tuple(metrics.roc(y, side.p)),
        calibration=tuple(metrics.calibration(y, side.p)),
        scores=tuple(metrics.score_counts(side.p)),
    )
    return Side(
        learner=side.learner,
        digest=side.digest,
        threshold=side.threshold,
        metrics=_metrics(side.scored, y, costs),
        curves=curves,
    )


def _metrics(scored: Scored, y: np.ndarray, costs: Costs) -> Metrics:
    auc, positives = metrics.auc(y, scored.p), scored.decided[y == 1]
    return Metrics(
        log_loss=float(metrics.log_losses(y, scored.p).mean()),
        brier=float(np.mean((scored.p - y) ** 2)),
        auc=None if math.isnan(auc) else auc,
        calibration_error=metrics.calibration_error(y, scored.p),
        cost=float(metrics.decision_costs(y, scored.decided, costs).mean()),
        selection_rate=float(scored.decided.mean()),
        true_positive_rate=float(positives.mean()) if len(positives) else None,
    )


def _values(column: pd.Series) -> dict[str, np.ndarray]:
    """Which rows [N] have which value; numbers of many values fall into quarters of the rows."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > SLICE_VALUES:
        edges = np.unique(column.quantile([0.25, 0.5, 0.75]))
        quarter = np.searchsorted(edges, column, side="left")
        ends = [f"{edge:g}" for edge in edges]
        between = [f"{low} to {high}" for low, high in pairwise(ends)]
        names = [f"up to {ends[0]}", *between, f"above {ends[-1]}"]
        labels = pd.Series(np.take(names, quarter), index=column.index).where(column.notna(), "missing")
    elif pd.api.types.is_numeric_dtype(column):
        labels = column.map("{:g}".format, na_action="ignore").fillna("missing")
    else:
        labels = column.where(column != "", "missing")
    return {str(value): (labels == value).to_numpy() for value in sorted(labels.unique())}


def _slices(
    rows: pd.DataFrame, y: np.ndarray, schema: dataset.Schema, challenger: Model, champion: Model | None, costs: Costs
) -> Iterator[Slice]:
    """By protected attributes, then by string features of few values."""
    if champion is None or not np.isfinite([challenger.p, champion.p]).all():
        return
    few = [c.name for c in schema.features if c.dtype == "string" and rows[c.name].nunique() <= SLICE_VALUES]
    for name in dict.fromkeys((*schema.protected, *few)):
        for value, members in _values(rows[name]).items():
            if members.sum() >= SLICE_ROWS:
                yield Slice(
                    column=name,
                    value=value,
                    rows=int(members.sum()),
                    events=int(y[members].sum()),
                    protected=name in schema.protected,
                    challenger=_metrics(challenger.scored.of(members), y[members], costs),
                    champion=_metrics(champion.scored.of(members), y[members], costs),
                )


def budget_notes(records: Sequence[record.Record], training: Training) -> Iterator[str]:
    """What the time budget did not allow to train on, or to try."""
    for each in records:
        if each.sampled:
            yield (
                f"{each.learner}: training.budget_s of {training.budget_s:g} s allowed to tune and calibrate on "
                f"{each.judged_rows:,} of the {each.rows:,} training rows; the model was fitted on all of them."
            )
        if not each.trials and RECIPES[each.learner].space:
            yield f"{each.learner}: training.budget_s of {training.budget_s:g} s left no time for tuning."


def _notes(y: np.ndarray, groups: Groups, retyped: tuple[str, ...]) -> Iterator[str]:
    if retyped:
        yield (
            f"The type of {', '.join(f'`{name}`' for name in retyped)} has changed since the champion was trained. "
            "It was scored with the old type, which its clients send; the challenger accepts only the new one."
        )
    for attribute, values in groups.items():
        for value, members in values.items():
            if not comparable(y, members):
                yield f"{attribute} = {value} has too few rows ({members.sum()}) to be checked."
