"""The Open Inference Protocol (KServe's V2), as JSON with the binary tensor extension.

Requests hold one tensor per feature, [rows] or [rows, 1]; a feature without a tensor is missing in every row.
"""

import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from predictor import answers
from predictor.columns import Batch, Layout, json_name, number_column, string_column, to_float32, unknown_fields
from predictor.errors import InvalidInput, TooLarge
from serin.model import Feature, Signature

NUMPY_TYPES: Final = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Any of these is taken for a number; strings are "BYTES"."""
DATATYPES: Final = {"number": "FP32", "string": "BYTES"}
"""How metadata describes the features."""
_LENGTH_BYTES: Final = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`data`: a list of values, or their bytes in little-endian order (strings: 4 bytes of length before each)."""

    name: str
    datatype: str
    shape: Sequence[Any]
    data: Sequence[Any] | bytes


@dataclass(frozen=True, slots=True)
class Request:
    """`outputs`: the tensors asked for, each with whether it is to be binary."""

    id: str | None
    batch: Batch
    outputs: Mapping[str, bool]


def decode(body: bytes, json_length: str | None, layout: Layout, signature: Signature, max_rows: int) -> Request:
    """`json_length`: the header Inference-Header-Content-Length. Raises `InvalidInput` or `TooLarge`."""
    head, binary = _split(body, json_length)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInput(f'The body: expected an object {{"inputs": […]}}, got {json_name(document)}.')
    request_id = document.get("id")
    if not isinstance(request_id, str | None):
        raise InvalidInput(f"Field 'id': expected a string, got {json_name(request_id)}.")
    tensors, start = [], 0
    for tensor in _objects(document, "inputs"):
        size = _parameter(tensor, "binary_data_size", int)
        if size is None:
            tensors.append(_tensor(tensor, _value(tensor, "data", list)))
        elif "data" in tensor or not 0 <= size <= len(binary) - start:
            raise InvalidInput(
                f"Tensor {tensor.get('name')!r}: expected 'data' or a 'binary_data_size' within the body, got {size}."
            )
        else:
            tensors.append(_tensor(tensor, binary[start : start + size]))
            start += size
    if start < len(binary):
        raise InvalidInput(f"The body: expected its end after the last tensor, got {len(binary) - start} more bytes.")
    return Request(request_id, to_batch(tensors, layout, max_rows), _outputs(document, signature))


def to_batch(tensors: Sequence[Tensor], layout: Layout, max_rows: int) -> Batch:
    """Raises `InvalidInput` or `TooLarge`."""
    if not tensors:
        raise InvalidInput("Field 'inputs': expected at least one tensor, got an empty list.")
    unknown = {tensor.name for tensor in tensors} - layout.names
    if unknown:
        raise unknown_fields(unknown)
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        if by_name.setdefault(tensor.name, tensor) is not tensor:
            raise InvalidInput(f"Field 'inputs': expected one tensor per feature, got {tensor.name!r} twice.")
    rows = _rows(tensors[0])
    if rows > max_rows:
        raise TooLarge(f"Field 'inputs': expected at most {max_rows} rows, got {rows}.")
    for tensor in tensors:
        if _rows(tensor) != rows:
            raise InvalidInput(
                f"Tensor {tensor.name!r}: expected {rows} rows as in the first tensor, got {_rows(tensor)}."
            )
    numbers = np.full((len(layout.numbers), rows), np.nan, np.float32)
    strings = np.full((len(layout.strings), rows), "", object)
    for features, columns, column in ((layout.numbers, numbers, _numbers), (layout.strings, strings, _strings)):
        for i, feature in enumerate(features):
            if feature.name in by_name:
                columns[i] = column(feature, by_name[feature.name], rows)
    return Batch(rows, numbers, strings)


def requested(names: Sequence[str], signature: Signature) -> Sequence[str]:
    """The outputs asked for, all if none. Raises `InvalidInput` for a name that is none."""
    known = answers.datatypes(signature)
    for name in names:
        if name not in known:
            raise InvalidInput(f"Field 'outputs': expected {', '.join(map(repr, known))}, got {name!r}.")
    return names or list(known)


def encode(
    model: str, version: str, request_id: str, request: Request, signature: Signature, scores: NDArray[Any]
) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON part if tensors follow it."""
    tensors, binary = [], []
    columns, datatypes = answers.columns(signature, scores), answers.datatypes(signature)
    for name, as_binary in request.outputs.items():
        tensor: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": [len(scores)]}
        if as_binary:
            binary.append(to_bytes(datatypes[name], columns[name]))
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = columns[name]
        tensors.append(tensor)
    answer = {"model_name": model, "model_version": version, "id": request.id or request_id, "outputs": tensors}
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(binary), len(head)) if binary else (head, None)


def to_bytes(datatype: str, values: Sequence[Any]) -> bytes:
    """A tensor's values as in `Tensor.data`."""
    if datatype != "BYTES":
        return np.array(values, NUMPY_TYPES[datatype]).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(len(value).to_bytes(_LENGTH_BYTES, "little") + value for value in encoded)


def server_metadata() -> dict[str, Any]:
    return {"name": "serin", "version": importlib.metadata.version("serin"), "extensions": ["binary_tensor_data"]}


def metadata(model: str, version: str, signature: Signature) -> dict[str, Any]:
    return {
        "name": model,
        "versions": [version],
        "platform": "onnx_onnxruntime",
        "inputs": [
            {"name": feature.name, "datatype": DATATYPES[feature.dtype], "shape": [-1, 1]}
            for feature in signature.features
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in answers.datatypes(signature).items()
        ],
    }


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes]:
    if json_length is None:
        return body, b""
    if not (re.fullmatch(r"[0-9]{1,10}", json_length) and int(json_length) <= len(body)):
        raise InvalidInput(
            "Header Inference-Header-Content-Length: expected a number of bytes within the body, "
            f"got {json_length[:20]!r}."
        )
    return body[: int(json_length)], body[int(json_length) :]


def _tensor(tensor: dict[str, Any], data: list[Any] | bytes) -> Tensor:
    return Tensor(_value(tensor, "name", str), _value(tensor, "datatype", str), _value(tensor, "shape", list), data)


def _objects(document: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value: list[Any] = _value(document, field, list)
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise InvalidInput(f"Field {field!r}, item {i}: expected an object, got {json_name(item)}.")
    return value


_NAMES: Final[dict[type, str]] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "an integer",
    bool: "true or false",
}


def _value(document: dict[str, Any], field: str, expected: type[_T]) -> _T:
    value = document.get(field)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        of = f" of tensor {document['name']!r}" if "name" in document else ""
        raise InvalidInput(f"Field {field!r}{of}: expected {_NAMES[expected]}, got {json_name(value)}.")
    return value


def _parameter(document: dict[str, Any], name: str, expected: type[_T]) -> _T | None:
    """None when it is not there."""
    if document.get("parameters") is None:
        return None
    parameters = _value(document, "parameters", dict)
    return _value(parameters, name, expected) if name in parameters else None


def _outputs(document: dict[str, Any], signature: Signature) -> dict[str, bool]:
    binary = bool(_parameter(document, "binary_data_output", bool))
    asked = _objects(document, "outputs") if document.get("outputs") is not None else []
    own = {_value(output, "name", str): _parameter(output, "binary_data", bool) for output in asked}
    names = requested(list(own), signature)
    return {name: binary if (wanted := own.get(name)) is None else wanted for name in names}


def _rows(tensor: Tensor) -> int:
    match list(tensor.shape):
        case [int(rows)] | [int(rows), 1] if rows > 0 and not isinstance(rows, bool):
            return rows
        case shape:
            got = orjson.dumps(shape).decode()
            raise InvalidInput(f"Tensor {tensor.name!r}: expected shape [rows] or [rows, 1], got {got}.")


def _numbers(feature: Feature, tensor: Tensor, rows: int) -> NDArray[Any]:
    if tensor.datatype not in NUMPY_TYPES:
        raise _wrong_datatype(feature, tensor)
    if not isinstance(tensor.data, bytes):
        values = _flat(tensor, rows)
        numbers = number_column(feature, values)
        _check_datatype(tensor, values)
        return numbers
    dtype = np.dtype(NUMPY_TYPES[tensor.datatype])
    if len(tensor.data) != rows * dtype.itemsize:
        raise InvalidInput(
            f"Tensor {tensor.name!r}: expected {rows * dtype.itemsize} bytes for {rows} rows of {tensor.datatype}, "
            f"got {len(tensor.data)}."
        )
    if tensor.datatype == "BOOL" and (wrong := next((byte for byte in tensor.data if byte > 1), None)) is not None:
        raise InvalidInput(f"Tensor {tensor.name!r}: expected bytes 0 and 1 for BOOL, got {wrong}.")
    column: NDArray[Any] = to_float32([feature], np.frombuffer(tensor.data, dtype).reshape(1, -1))[0]
    return column


def _check_datatype(tensor: Tensor, values: Sequence[Any]) -> None:
    """Raises `InvalidInput` for a number that the tensor's datatype cannot hold. As in V1, null is missing; true and
    false are 1 and 0."""
    if tensor.datatype in ("FP32", "FP64"):
        return  # what is too large for the model is refused already
    fits, expected = _values_of(tensor.datatype)
    for row, value in enumerate(values):
        if value is not None and not fits(value):
            raise InvalidInput(
                f"Tensor {tensor.name!r}, row {row}: expected {expected} for {tensor.datatype}, got {value}."
            )


def _values_of(datatype: str) -> tuple[Callable[[float], bool], str]:
    """Whether `datatype` holds a number, and which it holds."""
    if datatype == "BOOL":
        return lambda value: value in (0, 1), "true or false"
    if datatype == "FP16":
        most = float(np.finfo(np.float16).max)
        return lambda value: abs(value) <= most, f"a number within ±{most:g}"
    limits = np.iinfo(NUMPY_TYPES[datatype])
    low, high = int(limits.min), int(limits.max)
    return lambda value: low <= value <= high and value == int(value), f"a whole number from {low} to {high}"


def _strings(feature: Feature, tensor: Tensor, rows: int) -> NDArray[Any]:
    if tensor.datatype != "BYTES":
        raise _wrong_datatype(feature, tensor)
    data = _texts(tensor, tensor.data) if isinstance(tensor.data, bytes) else tensor.data
    return string_column(feature, _flat(Tensor(tensor.name, tensor.datatype, tensor.shape, data), rows))


def _wrong_datatype(feature: Feature, tensor: Tensor) -> InvalidInput:
    expected = DATATYPES[feature.dtype]
    return InvalidInput(f"Tensor {tensor.name!r}: expected datatype {expected}, got {tensor.datatype!r}.")


def _flat(tensor: Tensor, rows: int) -> list[Any]:
    flat = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in tensor.data]
    if len(flat) != rows:
        raise InvalidInput(f"Tensor {tensor.name!r}: expected {rows} values as in its shape, got {len(flat)}.")
    return flat


def _texts(tensor: Tensor, data: bytes) -> list[str]:
    texts, offset = [], 0
    while offset < len(data):
        start = offset + _LENGTH_BYTES
        offset = start + int.from_bytes(data[start - _LENGTH_BYTES : start], "little")
        if start > len(data) or offset > len(data):
            raise InvalidInput(f"Tensor {tensor.name!r}: expected strings with their lengths, got a cut-off string.")
        try:
            texts.append(data[start:offset].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"Tensor {tensor.name!r}, row {len(texts)}: expected UTF-8, got {error.reason}."
            ) from error
    return texts
