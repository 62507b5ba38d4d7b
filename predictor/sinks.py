"""Where the prediction log goes: Parquet files in a directory, or CloudEvents to an HTTP address."""

import http.client
import os
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from predictor import answers
from predictor.columns import Batch
from predictor.log import Entry, Fields, Sink, is_missing
from serin.errors import UserError
from serin.model import Signature

TIMEOUT_S: Final = 5.0


def sink(target: str, fields: Fields, signature: Signature, *, model: str, revision: str, digest: str) -> Sink:
    """`target`: a directory, or an http(s) address. Raises `UserError` if it is neither."""
    if target.startswith(("http://", "https://")):
        return CloudEvents(target, fields, signature, model=model, revision=revision, digest=digest)
    if "://" in target:
        raise UserError(
            f"Prediction log: {target!r} is neither a directory nor an http address; mount the store instead."
        )
    return ParquetFiles(Path(target), fields, signature, revision=revision, digest=digest)


class ParquetFiles:
    """Each write makes one file: request_id, row (its place in the request), time, revision, digest, score,
    decision, features (a struct, null for missing). A file appears under its name only when it is whole."""

    def __init__(self, directory: Path, fields: Fields, signature: Signature, *, revision: str, digest: str) -> None:
        import duckdb  # takes as much memory as the rest of the server: only who writes Parquet pays

        self._directory, self._fields, self._signature = directory, fields, signature
        self._constants = {"revision": revision, "digest": digest}
        self._database = duckdb.connect(config={"threads": 1})
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Prediction log: {directory} cannot be made ({error.strerror}); correct --log."
            ) from error
        if not os.access(directory, os.W_OK):
            raise UserError(f"Prediction log: {directory} cannot be written to; correct --log.")

    def write(self, entries: Sequence[Entry]) -> None:
        rows = [entry.batch.rows for entry in entries]
        scores = np.concatenate([entry.scores for entry in entries])
        arrays: dict[str, Any] = {
            "request_id": np.repeat(np.array([entry.request_id for entry in entries], object), rows),
            "row": np.concatenate([np.arange(n) for n in rows]),
            "time": np.repeat([entry.time_s for entry in entries], rows),
            "score": scores,
            "decision": np.array(answers.columns(self._signature, scores)["decision"], object),
        }
        features = self._fields.columns(
            Batch(
                len(scores),
                np.concatenate([entry.batch.numbers for entry in entries], axis=1),
                np.concatenate([entry.batch.strings for entry in entries], axis=1),
            )
        )
        parts = []
        for i, (name, values) in enumerate(features.items()):
            arrays[f"f{i}"] = values
            missing = f"isnan(f{i})" if values.dtype.kind == "f" else f"f{i} = ''"
            parts.append(f"{_quoted(name)}: CASE WHEN {missing} THEN NULL ELSE f{i} END")
        struct = f"{{{', '.join(parts)}}}" if parts else "NULL"
        constants = ", ".join(f"{_text(value)} AS {name}" for name, value in self._constants.items())
        self._database.register("entries", arrays)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}.parquet"
        partial = self._directory / f".{name}.part"
        self._database.execute(
            f"COPY (SELECT request_id, row, to_timestamp(time) AS time, {constants}, score, decision, "  # noqa: S608
            f"{struct} AS features FROM entries) TO {_text(str(partial))} (FORMAT parquet)"
        )
        self._database.unregister("entries")
        partial.rename(self._directory / name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


class CloudEvents:
    """Two events per request as KServe's own logger sends them: …inference.request with the instances,
    …inference.response with the predictions, both under the request's id."""

    def __init__(
        self, address: str, fields: Fields, signature: Signature, *, model: str, revision: str, digest: str
    ) -> None:
        self._address, self._fields, self._signature = urllib.parse.urlsplit(address), fields, signature
        self._headers = {
            "Content-Type": "application/json",
            "ce-specversion": "1.0",
            "ce-source": f"/v1/models/{model}",
            "ce-inferenceservicename": model,
            "ce-component": "predictor",
            "ce-revision": revision,
            "ce-modeldigest": digest,
        }

    def write(self, entries: Sequence[Entry]) -> None:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.netloc, timeout=TIMEOUT_S)
        path = urllib.parse.urlunsplit(("", "", self._address.path or "/", self._address.query, ""))
        try:
            for entry in entries:
                when = datetime.fromtimestamp(entry.time_s, UTC).isoformat()
                headers = self._headers | {"ce-id": entry.request_id, "ce-time": when}
                for name, body in self._bodies(entry):
                    headers["ce-type"] = f"org.kubeflow.serving.inference.{name}"
                    connection.request("POST", path, body, headers)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status >= 300:
                        raise ConnectionError(f"{self._address.geturl()} answered {answer.status}")
        finally:
            connection.close()

    def _bodies(self, entry: Entry) -> Iterator[tuple[str, bytes]]:
        features = self._fields.columns(entry.batch)
        yield "request", _rows("instances", {name: _nulls(values.tolist()) for name, values in features.items()})
        yield "response", _rows("predictions", answers.columns(self._signature, entry.scores))


def _nulls(values: list[Any]) -> list[Any]:
    return [None if is_missing(value) else value for value in values]


def _rows(name: str, columns: dict[str, Sequence[Any]]) -> bytes:
    return orjson.dumps({name: answers.rows(columns)}, option=orjson.OPT_SERIALIZE_NUMPY)
