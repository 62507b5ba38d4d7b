"""What a score means: the answer's columns, the same in every protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from serin.model import Signature


def datatypes(signature: Signature) -> dict[str, str]:
    """The answer's columns and their datatypes in the Open Inference Protocol."""
    columns = {"probability": "FP32", "decision": "BYTES"}
    return columns | {"review": "BOOL"} if signature.review else columns


def columns(signature: Signature, scores: NDArray[Any]) -> dict[str, Sequence[Any]]:
    """`decision` is the signature's positive or negative label; `review` is true where the score is in the band
    in which the model is too unsure to decide alone."""
    values = scores.tolist()
    threshold, positive, negative = signature.threshold, signature.positive, signature.negative
    answer: dict[str, Sequence[Any]] = {
        "probability": list(scores),  # float32: JSON gets the shortest text that reads back as the same
        "decision": [positive if score >= threshold else negative for score in values],
    }
    if signature.review:
        low, high = signature.review
        answer["review"] = [low <= score <= high for score in values]
    return answer


def rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One object per row."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
