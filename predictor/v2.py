"""The Open Inference Protocol (KServe's V2): one tensor per feature in, tensors "probability" and "decision" out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from numpy.typing import NDArray

from predictor.columns import Batch, json_column, json_name, unknown_fields
from predictor.errors import InvalidInput, TooLarge
from predictor.v1 import decisions
from serin.model import Feature, Signature

NUMBER_DATATYPES: Final = frozenset(
    {"BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64"}
)
DATATYPES: Final = {"number": "FP32", "string": "BYTES"}
"""How metadata describes the features; any number datatype is taken for a number."""
OUTPUTS: Final = {"probability": "FP32", "decision": "BYTES"}


@dataclass(frozen=True, slots=True)
class Request:
    """`outputs`: the tensors asked for, in that order."""

    id: str | None
    batch: Batch
    outputs: tuple[str, ...]


def decode(body: bytes, features: Sequence[Feature], max_rows: int) -> Request:
    """Raises `InvalidInput` or `TooLarge`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInput(f'The body: expected an object {{"inputs": […]}}, got {json_name(document)}.')
    tensors = _list_of_objects(document, "inputs")
    if not tensors:
        raise InvalidInput("Field 'inputs': expected at least one tensor, got an empty list.")
    by_name = {feature.name: feature for feature in features}
    columns = {}
    rows = _rows(tensors[0])
    if rows > max_rows:
        raise TooLarge(f"Field 'inputs': expected at most {max_rows} rows, got {rows}.")
    for tensor in tensors:
        name = _string(tensor, "name")
        if name not in by_name:
            raise unknown_fields({name})
        if name in columns:
            raise InvalidInput(f"Field 'inputs': tensor {name!r} is there twice.")
        if _rows(tensor) != rows:
            raise InvalidInput(f"Tensor {name!r}: expected {rows} rows as in the first tensor, got {_rows(tensor)}.")
        columns[name] = _column(by_name[name], tensor, rows)
    for feature in features:
        if feature.name not in columns:
            columns[feature.name] = json_column(feature, [None] * rows)
    request_id = document.get("id")
    if not isinstance(request_id, str | None):
        raise InvalidInput(f"Field 'id': expected a string, got {json_name(request_id)}.")
    return Request(request_id, Batch(rows, columns), _outputs(document))


def _list_of_objects(document: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = document.get(field)
    if not isinstance(value, list):
        raise InvalidInput(f"Field {field!r}: expected a list of tensors, got {json_name(value)}.")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidInput(f"Field {field!r}, item {i}: expected an object, got {json_name(item)}.")
    return value


def _string(tensor: dict[str, Any], field: str) -> str:
    value = tensor.get(field)
    if not isinstance(value, str):
        raise InvalidInput(f"Field {field!r} of a tensor: expected a string, got {json_name(value)}.")
    return value


def _rows(tensor: dict[str, Any]) -> int:
    name = _string(tensor, "name")
    match tensor.get("shape"):
        case [int(rows)] | [int(rows), 1] if rows > 0 and not isinstance(rows, bool):
            return rows
        case shape:
            raise InvalidInput(
                f"Tensor {name!r}: expected shape [rows] or [rows, 1], got {orjson.dumps(shape).decode()}."
            )


def _column(feature: Feature, tensor: dict[str, Any], rows: int) -> NDArray[Any]:
    datatype = _string(tensor, "datatype")
    fits = datatype == "BYTES" if feature.dtype == "string" else datatype in NUMBER_DATATYPES
    if not fits:
        raise InvalidInput(
            f"Tensor {feature.name!r}: expected datatype {DATATYPES[feature.dtype]}, got {datatype!r}."
        )
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InvalidInput(f"Tensor {feature.name!r}: expected 'data' to be a list, got {json_name(data)}.")
    flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    if len(flat) != rows:
        raise InvalidInput(f"Tensor {feature.name!r}: expected {rows} values as in its shape, got {len(flat)}.")
    return json_column(feature, flat)


def _outputs(document: dict[str, Any]) -> tuple[str, ...]:
    if document.get("outputs") is None:
        return tuple(OUTPUTS)
    names = tuple(_string(output, "name") for output in _list_of_objects(document, "outputs"))
    for name in names:
        if name not in OUTPUTS:
            raise InvalidInput(f"Field 'outputs': expected {' or '.join(map(repr, OUTPUTS))}, got {name!r}.")
    return names or tuple(OUTPUTS)


def encode(model: str, request_id: str, request: Request, signature: Signature, scores: NDArray[Any]) -> bytes:
    tensors: list[dict[str, Any]] = []
    for name in request.outputs:
        data = list(scores) if name == "probability" else decisions(signature, scores)
        tensors.append({"name": name, "datatype": OUTPUTS[name], "shape": [len(data)], "data": data})
    answer = {"model_name": model, "id": request.id or request_id, "outputs": tensors}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def metadata(model: str, signature: Signature) -> dict[str, Any]:
    return {
        "name": model,
        "platform": "onnx_onnxruntime",
        "inputs": [
            {"name": feature.name, "datatype": DATATYPES[feature.dtype], "shape": [-1, 1]}
            for feature in signature.features
        ],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS.items()],
    }
