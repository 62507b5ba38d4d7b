"""KServe's V1 protocol: `{"instances": [record, …]}` in, `{"predictions": [prediction, …]}` out.

A record names the features: `{"tenure": 5, "Contract": "One year"}`. An instance may also hold lists, all of
one length, and stands for that many rows: `{"tenure": [5, 12], "Contract": ["One year", null]}`.
"""

from typing import Any

import orjson
from numpy.typing import NDArray

from predictor import answers
from predictor.columns import Batch, Layout, from_records, json_name
from predictor.errors import InvalidInput, TooLarge
from predictor.explain import Contributions
from serin.model import Signature


def decode(body: bytes, layout: Layout, max_rows: int) -> Batch:
    """Raises `InvalidInput` or `TooLarge`."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"The body is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInput(f'The body: expected an object {{"instances": […]}}, got {json_name(document)}.')
    if "instances" not in document:
        raise InvalidInput("Field 'instances' is missing: expected a list of records.")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput(f"Field 'instances': expected a list of records, got {json_name(instances)}.")
    if not instances:
        raise InvalidInput("Field 'instances': expected at least one record, got an empty list.")
    return from_records(layout, _records(instances, max_rows))


def _records(instances: list[Any], max_rows: int) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for i, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise InvalidInput(
                f"Field 'instances', item {i}: expected an object with one value per feature, "
                f"got {json_name(instance)}."
            )
        if list in map(type, instance.values()):
            rows = _length(i, instance)
            _check_rows(len(records) + rows, max_rows)  # before they are made
            records += (dict(zip(instance, row, strict=True)) for row in zip(*instance.values(), strict=True))
        else:
            records.append(instance)
    _check_rows(len(records), max_rows)
    return records


def _check_rows(rows: int, max_rows: int) -> None:
    if rows > max_rows:
        raise TooLarge(f"Field 'instances': expected at most {max_rows} rows, got {rows} or more.")


def _length(i: int, instance: dict[str, Any]) -> int:
    for name, values in instance.items():
        if not isinstance(values, list):
            raise InvalidInput(
                f"Field {name!r} of 'instances', item {i}: expected a list as in the item's other fields, "
                f"got {json_name(values)}."
            )
    lengths = {len(values) for values in instance.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidInput(
            f"Field 'instances', item {i}: expected lists of one length above 0, got lengths {sorted(lengths)}."
        )
    return int(lengths.pop())


def encode(signature: Signature, scores: NDArray[Any]) -> bytes:
    """`{"predictions": [{"probability": 0.83, "decision": "Yes"}, …]}`, with "review" if the model has a band."""
    rows = answers.rows(answers.columns(signature, scores))
    return orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_explanations(signature: Signature, scores: NDArray[Any], contributions: Contributions) -> bytes:
    """`{"explanations": [{"probability": 0.83, …, "base": -1.2, "contributions": {"tenure": 0.4, …}}, …]}`, in
    log-odds: 1 / (1 + exp(-(base + sum of contributions))) is the probability."""
    rows = answers.rows(answers.columns(signature, scores))
    for row, values in zip(rows, contributions.values.tolist(), strict=True):
        row["base"] = contributions.base
        row["contributions"] = dict(zip(contributions.features, values, strict=True))
    return orjson.dumps({"explanations": rows}, option=orjson.OPT_SERIALIZE_NUMPY)
