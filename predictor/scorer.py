"""The model of one directory, in ONNX Runtime."""

from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from predictor.columns import Batch, Layout, from_records
from predictor.explain import Explainer
from serin.errors import UserError
from serin.model import MODEL_FILE, SAMPLES_FILE, Samples, Signature

OUTPUT: Final = "probability"
PARITY: Final = 1e-5
"""The largest difference between the scores of the Python model and of the exported one."""

_ONNX_TYPES: Final = {"number": "tensor(float)", "string": "tensor(string)"}


class Scores(Protocol):
    signature: Signature
    layout: Layout

    def score(self, batch: Batch) -> NDArray[Any]:
        """Probability of the positive class, float32 [rows]."""
        ...


class Scorer:
    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature) -> None:
        self.signature = signature
        self._session = session
        self.layout = Layout.of(signature.features)
        self._numbers = [feature.input for feature in self.layout.numbers]
        self._strings = [feature.input for feature in self.layout.strings]

    @classmethod
    def load(cls, root: Path, signature: Signature) -> Self:
        """Raises `UserError` when ONNX Runtime cannot run the model or its inputs and outputs differ from
        `signature`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # rows are few: a second thread costs more than it brings
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(root / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            reason = " ".join(str(error).split())
            raise UserError(
                f"Model {root}: ONNX Runtime {onnxruntime.__version__} cannot load {MODEL_FILE} ({reason}); "
                f"export the model again for this version."
            ) from error
        expected = {feature.input: _ONNX_TYPES[feature.dtype] for feature in signature.features}
        found = {node.name: node.type for node in session.get_inputs()}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"Model {root}: input {name!r} is {expected.get(name, 'unknown')} in the signature and "
                    f"{found.get(name, 'unknown')} in {MODEL_FILE}; export the model again."
                )
        outputs = [node.name for node in session.get_outputs()]
        if outputs != [OUTPUT]:
            raise UserError(f"Model {root}: outputs are {outputs}, expected [{OUTPUT!r}]; export the model again.")
        return cls(session, signature)

    def score(self, batch: Batch) -> NDArray[Any]:
        numbers, strings = batch.numbers[:, :, None], batch.strings[:, :, None]
        inputs = dict(zip(self._numbers, numbers, strict=True)) | dict(zip(self._strings, strings, strict=True))
        (scores,) = self._session.run(None, inputs)
        result: NDArray[Any] = scores.reshape(-1)
        return result


def warm_up(scorer: Scorer, explainer: Explainer | None, samples: Samples) -> None:
    """Score the model's own samples, one by one as clients do and all at once, and explain some.

    Raises `UserError` when a score differs from the one training recorded, or contributions do not add up to it.
    """
    records = samples.records
    for record in records[:32]:
        scorer.score(from_records(scorer.layout, [record]))
    batch = from_records(scorer.layout, records)
    _check(scorer.score(batch), np.asarray(samples.scores), f"scores of {SAMPLES_FILE}")
    if explainer:
        some = from_records(scorer.layout, records[:4])
        scores = scorer.score(some)
        contributions = explainer.explain(some, scores)
        log_odds = contributions.base + contributions.values.sum(axis=1)
        _check(1 / (1 + np.exp(-log_odds)), scores, "sums of contributions")


def _check(found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    difference = float(np.abs(found - expected).max(initial=0.0))
    if not difference <= PARITY:  # NaN is no parity either
        raise UserError(
            f"Model: {what} differ by {difference:.2g} from those in training (limit {PARITY:g}); "
            "export the model again."
        )
