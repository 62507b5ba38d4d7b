"""Where the prediction log goes: Parquet files in a directory or under an S3 prefix, or CloudEvents to an HTTP
address."""

import http.client
import os
import tempfile
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from predictor import answers
from predictor.columns import Batch
from predictor.log import Entry, Fields, PartlyWritten, Sink, is_missing
from serin.errors import UserError
from serin.model import Signature

TIMEOUT_S: Final = 5.0
S3_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
"""Without one of these the client would ask the machine's metadata service."""


def sink(target: str, fields: Fields, signature: Signature, *, model: str, revision: str, digest: str) -> Sink:
    """`target`: a directory, an s3:// prefix, or an http(s) address. Raises `UserError` if it is none of them."""
    if target.startswith(("http://", "https://")):
        return CloudEvents(_address(target), fields, signature, model=model, revision=revision, digest=digest)
    if target.startswith("s3://"):
        place = _temporary_directory(), _s3(target)
    elif "://" in target:
        raise UserError(
            f"Prediction log: {target!r} is neither a directory, an s3:// prefix nor an http address; correct --log."
        )
    else:
        place = _directory(Path(target))
    return ParquetFiles(*place, fields, signature, revision=revision, digest=digest)


def _address(target: str) -> urllib.parse.SplitResult:
    try:
        address = urllib.parse.urlsplit(target)
        known = bool(address.hostname) and address.port != 0
    except ValueError:
        known = False
    if not known or address.username is not None:
        raise UserError(
            f"Prediction log: {target!r} is not an address of the form http://host:port/path; correct --log."
        )
    return address


Keep = Callable[[Path, str], object]
"""Moves or copies a finished file to where it is kept, under the given name. Raises when it cannot."""


def _directory(directory: Path) -> tuple[Path, Keep]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Prediction log: {directory} cannot be created ({error.strerror}); correct --log."
        ) from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"Prediction log: {directory} cannot be written to; correct --log.")
    return directory, lambda file, name: file.rename(directory / name)


def _temporary_directory() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(
            "Prediction log: files for S3 are assembled in a temporary directory, but none is writable; "
            "mount one at /tmp or set TMPDIR."
        ) from error


def _s3(target: str) -> Keep:
    """Credentials, region and endpoint come from the environment variables that every AWS SDK reads. The store
    is not called before the first write: a store that is away keeps no server from starting."""
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    if not any(os.environ.get(name) for name in S3_CREDENTIALS):
        raise UserError(
            f"Prediction log: no credentials for {target}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    try:
        store = S3Store.from_url(
            target,
            client_options={
                "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
                "timeout": timedelta(seconds=TIMEOUT_S),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=TIMEOUT_S)},
        )
    except BaseError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"Prediction log: {target} cannot be used ({reason}); correct --log or AWS_….") from error
    return lambda file, name: obstore.put(store, name, file)


class ParquetFiles:
    """Each write makes one file: request_id, row (its place in the request), time, revision, digest, score,
    decision, features (a struct, null for missing). It is put together in `directory`; `keep` sees it whole."""

    def __init__(
        self, directory: Path, keep: Keep, fields: Fields, signature: Signature, *, revision: str, digest: str
    ) -> None:
        import duckdb  # takes as much memory as the rest of the server: only who writes Parquet pays

        self._directory, self._keep, self._fields, self._signature = directory, keep, fields, signature
        self._constants = {"revision": revision, "digest": digest}
        self._database = duckdb.connect(config={"threads": 1})

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
        try:
            self._database.execute(
                f"COPY (SELECT request_id, row, to_timestamp(time) AS time, {constants}, score, decision, "  # noqa: S608
                f"{struct} AS features FROM entries) TO {_text(str(partial))} (FORMAT parquet)"
            )
            self._keep(partial, name)
        finally:
            self._database.unregister("entries")
            partial.unlink(missing_ok=True)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


class CloudEvents:
    """Two events per request as KServe's own logger sends them: …inference.request with the instances,
    …inference.response with the predictions, both under the request's id."""

    def __init__(
        self,
        address: urllib.parse.SplitResult,
        fields: Fields,
        signature: Signature,
        *,
        model: str,
        revision: str,
        digest: str,
    ) -> None:
        self._address, self._fields, self._signature = address, fields, signature
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
        written = 0
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
                        raise ConnectionError(f"{self._address.hostname} answered {answer.status}")
                written += entry.batch.rows
        except (OSError, http.client.HTTPException) as error:
            raise PartlyWritten(written) from error
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
