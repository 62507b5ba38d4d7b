"""Scores of a model directory through ONNX Runtime, as the predictor computes them."""

from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

from components.train.features import frame
from serin.errors import UserError
from serin.model import MODEL_FILE, signature

BATCH_ROWS = 50_000


def score(model: Path, rows: pd.DataFrame) -> np.ndarray:
    """Probabilities [N], float32, that the model directory gives to dataset rows.

    Raises `UserError` when the rows lack a column the model needs, or ONNX Runtime refuses the model.
    """
    inputs = frame(rows, signature(model).features)
    try:
        return run((model / MODEL_FILE).read_bytes(), inputs)
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
        raise UserError(f"Model {model} does not run in ONNX Runtime: {' '.join(str(error).split())}") from error


def run(onnx_model: bytes, inputs: pd.DataFrame) -> np.ndarray:
    """Probabilities [N], float32, for inputs by name (see `features.frame`)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])
    scores = [np.empty(0, np.float32)]
    for start in range(0, len(inputs), BATCH_ROWS):
        batch = inputs.iloc[start : start + BATCH_ROWS]
        feeds = {str(name): batch[name].to_numpy()[:, None] for name in batch.columns}
        scores.append(session.run(["probability"], feeds)[0].ravel())
    return np.concatenate(scores)
