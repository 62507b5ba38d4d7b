"""What clients send, in every protocol, scores as the Python model scores the same row."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from components import dataset
from components.config import Config, Learner
from components.preprocess import core, generator
from components.preprocess.sources import SourceKind
from components.train import features
from components.train.export import to_onnx
from components.train.fitting import Trained, fit
from components.train.learners import RECIPES
from predictor import v1, v2
from predictor.scorer import PARITY, Scorer
from serin.model import Feature, Signature

ROWS = 200
GIBBERISH = "\N{REPLACEMENT CHARACTER} 'never\" seen,"


def every_dtype(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    whole = rng.integers(-5, 90, rows)
    kind = rng.choice(["rot", "grün", "blau", "it's", 'say "x"', ""], rows)
    flag = rng.random(rows) < 0.4
    log_odds = 0.04 * whole + 1.2 * (kind == "grün") - 1.5 * flag
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in range(rows)],
            "whole": whole,
            "big": rng.integers(2**40, 2**52, rows),
            "price in €": np.where(rng.random(rows) < 0.2, np.nan, np.round(rng.lognormal(3, 2, rows), 3)),
            "tiny": rng.normal(0, 1e-6, rows),
            "flag": flag,
            "flag with gaps": np.where(rng.random(rows) < 0.2, None, rng.random(rows) < 0.5),
            "kind": kind,
            "code": [f"{n:03d}x" for n in rng.integers(0, 300, rows)],
            "day": pd.date_range("2026-01-01", periods=rows, freq="7h").strftime("%Y-%m-%d"),
            "target": np.where(rng.random(rows) < 1 / (1 + np.exp(-log_odds)), "yes", "no"),
        }
    )


@pytest.fixture(scope="module", params=["every dtype", "telco"])
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Dataset directories to train on and to test on."""
    root = tmp_path_factory.mktemp("data")
    source, target, positive, ids = root / "data.csv", "target", "yes", ["id"]
    if request.param == "telco":
        target, positive, ids = "Churn", "Yes", ["customerID"]
        if "SERIN_DATA" in os.environ:
            source = Path(os.environ["SERIN_DATA"])
        else:
            generator.snapshot(1, 1500).to_csv(source, index=False)
    else:
        every_dtype(1500).to_csv(source, index=False)
    config = Config.model_validate(
        {"service": "parity", "data": {"source": str(source)}, "target": target, "positive": positive, "ids": ids}
    )
    kind = SourceKind("file")
    core.preprocess(config, source, source_kind=kind, champion=None, train=root / "train", test=root / "test")
    return root / "train", root / "test"


@pytest.fixture(scope="module", params=["rule", "logistic", "hist_gradient_boosting", "xgboost"])
def models(
    request: pytest.FixtureRequest, table: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, Scorer]:
    """The same model in Python and in the server."""
    learner: Learner = request.param
    schema, rows = dataset.read_schema(table[0]), dataset.read_rows(table[0])
    columns = features.of_schema(schema)
    training = Config.model_fields["training"].default.model_copy(update={"trials": 1})
    y = rows[schema.target].to_numpy(np.int64)
    with threadpool_limits(1):
        trained = fit(RECIPES[learner], features.frame(rows, columns), y, None, training, time.monotonic)
    root = tmp_path_factory.mktemp("model")
    (root / "model").mkdir()
    (root / "model" / "model.onnx").write_bytes(to_onnx(trained.estimator, trained.sigmoid, columns))
    signature = Signature(learner=learner, target="t", positive="yes", negative="no", threshold=0.5, features=columns)
    return trained, Scorer.load(root, signature)


@pytest.fixture(scope="module")
def records(table: tuple[Path, Path]) -> list[dict[str, Any]]:
    """Held-out rows, every second one with a field changed: null, not there, blank, never seen, or huge."""
    rng = np.random.default_rng(7)
    columns = features.of_schema(dataset.read_schema(table[1]))
    rows = dataset.read_rows(table[1]).head(ROWS)[[column.name for column in columns]].astype(object)
    records = rows.mask(rows.isna() | (rows == ""), None).to_dict("records")
    for record in records[::2]:
        column: Feature = columns[int(rng.integers(len(columns)))]
        strange = [1e12, -1e12, 0, True, 2**53] if column.dtype == "number" else ["", " \t", GIBBERISH, "Ä" * 300]
        record[column.name] = strange[int(rng.integers(len(strange)))]
        if rng.random() < 0.5:
            record[columns[int(rng.integers(len(columns)))].name] = None
        if rng.random() < 0.5:
            del record[columns[int(rng.integers(len(columns)))].name]
    return records


def python_scores(trained: Trained, columns: tuple[Feature, ...], records: list[dict[str, Any]]) -> np.ndarray:
    """As training would see these rows: NaN for a missing number, "" for a missing or blank string."""
    frame = pd.DataFrame(
        {
            column.name: [float("nan") if r.get(column.name) is None else float(r[column.name]) for r in records]
            if column.dtype == "number"
            else np.array(
                [(r.get(column.name) or "") if (r.get(column.name) or "").strip() else "" for r in records], object
            )
            for column in columns
        }
    )
    return trained.predict(features.frame(frame, columns))


def tensors(columns: tuple[Feature, ...], records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A boolean, which V1 takes as a number, is none in a tensor of FP64."""
    return [
        {
            "name": column.name,
            "shape": [len(records), 1],
            "datatype": "FP64" if column.dtype == "number" else "BYTES",
            "data": [float(v) if isinstance(v := record.get(column.name), bool) else v for record in records],
        }
        for column in columns
    ]


def binary(columns: tuple[Feature, ...], records: list[dict[str, Any]]) -> tuple[bytes, str]:
    parts, inputs = [], tensors(columns, records)
    for tensor in inputs:
        data = tensor.pop("data")
        if tensor["datatype"] == "FP64":
            part = np.array(data, "<f8").tobytes()
        else:
            texts = [(value or "").encode() for value in data]
            part = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        tensor["parameters"] = {"binary_data_size": len(part)}
        parts.append(part)
    head = orjson.dumps({"inputs": inputs})
    return head + b"".join(parts), str(len(head))


def test_every_protocol_scores_as_python_does(models: tuple[Trained, Scorer], records: list[dict[str, Any]]) -> None:
    trained, scorer = models
    columns, layout = scorer.signature.features, scorer.layout
    named = orjson.dumps({"instances": records})
    lists = orjson.dumps({"instances": [{c.name: [r.get(c.name) for r in records] for c in columns}]})
    as_json = orjson.dumps({"inputs": tensors(columns, records)})
    batches = {
        "records": v1.decode(named, layout, ROWS),
        "lists": v1.decode(lists, layout, ROWS),
        "V2 JSON": v2.decode(as_json, None, layout, scorer.signature, ROWS).batch,
        "V2 binary": v2.decode(*binary(columns, records), layout, scorer.signature, ROWS).batch,
    }
    expected = python_scores(trained, columns, records)
    assert np.ptp(expected) > 0.1
    for protocol, batch in batches.items():
        difference = np.abs(scorer.score(batch) - expected)
        worst = int(difference.argmax())
        assert difference[worst] <= PARITY, f"{protocol}: row {records[worst]}"
    one_by_one = [scorer.score(v1.decode(orjson.dumps({"instances": [r]}), layout, 1))[0] for r in records[:20]]
    assert np.abs(np.array(one_by_one) - expected[:20]).max() <= PARITY
