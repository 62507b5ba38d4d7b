"""Train one learner: tune, calibrate, choose the threshold, export to ONNX, and seal the model directory."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from components import dataset
from components.config import Config, Learner
from components.evaluate import metrics
from components.train import card, explanation, features, scoring
from components.train.calibration import IDENTITY, cheapest_threshold
from components.train.export import check_parity, hostile, to_onnx
from components.train.fitting import FOLDS, Trained, fit
from components.train.learners import RECIPES
from components.train.record import TRAINING_FILE, Record
from components.train.review import review_band
from serin.errors import UserError
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
from serin.model.explanation import EXPLANATION_FILE
from serin.model.histograms import SCORE_EDGES

SAMPLES: Final = 500
CONTRACT_FILE: Final = Path("meta/contract.json")


@dataclass(frozen=True)
class TrainingResult:
    digest: str
    record: Record
    seconds: float


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
    the same data, config, number of trials and judged rows the directory is the same, byte for byte.
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
            f"There are {events} training rows with {schema.target} = {schema.positive} and {len(y) - events} "
            f"with {schema.negative}; at least {FOLDS} of each are needed: add data or lower split.test."
        )
    groups = _groups(rows, config.split.group)
    with threadpool_limits(1):
        trained = fit(RECIPES[learner], inputs, y, groups, config.training, clock)

    judged = y[trained.judged]
    threshold = cheapest_threshold(trained.probabilities, judged, config.costs)
    record = Record(
        learner=learner,
        rows=len(y),
        event_rate=float(y.mean()),
        log_loss=float(metrics.log_losses(judged, trained.probabilities).mean()),
        auc=metrics.auc(judged, trained.probabilities),
        cost=float(metrics.decision_costs(judged, trained.probabilities >= threshold, config.costs).mean()),
        threshold=threshold,
        calibrated=trained.sigmoid != IDENTITY,
        trials=trained.trials,
        judged_rows=len(judged),
        params=dict(trained.params),
    )
    signature = Signature(
        learner=learner,
        target=schema.target,
        positive=schema.positive,
        negative=schema.negative,
        threshold=threshold,
        review=review_band(trained.probabilities, judged, config.costs),
        features=columns,
    )
    scores = _export(trained, columns, test_inputs, out)
    texts = {
        SIGNATURE_FILE: signature.model_dump_json(indent=1),
        SAMPLES_FILE: _samples(held_out, signature, scores).model_dump_json(indent=1),
        TRAINING_FILE: record.model_dump_json(indent=1),
        CONTRACT_FILE: (train / dataset.CONTRACT_FILE).read_text(encoding="utf-8"),
        PROFILE_FILE: _profile(train, scores),
        CARD_FILE: card.write(config, schema, record),
        EXPLANATION_FILE: explanation.of(trained.estimator, trained.sigmoid, columns, inputs).model_dump_json(),
    }
    (out / "meta").mkdir(exist_ok=True)
    for file, text in texts.items():
        (out / file).write_text(text.rstrip() + "\n", encoding="utf-8")
    return TrainingResult(digest=seal(out), record=record, seconds=clock() - started)


def _groups(rows: pd.DataFrame, column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    if column not in rows.columns:
        raise UserError(f"Config split.group: column {column!r} is not in the data; correct its name.")
    return rows[column].to_numpy()


def _export(trained: Trained, columns: tuple[Feature, ...], inputs: pd.DataFrame, out: Path) -> np.ndarray:
    """Write the ONNX file once it agrees with Python on all of `inputs`; return Python's scores of them."""
    graph = to_onnx(trained.estimator, trained.sigmoid, columns)
    checked = pd.concat([inputs, hostile(inputs)], ignore_index=True)
    names = [f"held-out row {i}" for i in range(len(inputs))]
    names += [f"generated row {i}" for i in range(len(checked) - len(inputs))]
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


def _profile(train: Path, scores: np.ndarray) -> str:
    """The profile of the training rows, with the distribution of the held-out scores beside it."""
    profile: dict[str, Any] = json.loads((train / dataset.PROFILE_FILE).read_text(encoding="utf-8"))
    profile["scores"] = {"edges": SCORE_EDGES, "counts": metrics.score_counts(scores)}
    return json.dumps(profile, indent=1, ensure_ascii=False)
