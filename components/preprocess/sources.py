"""Where the data comes from: a file, an address (downloaded once and checked), or a generator without network."""

import hashlib
import http.client
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import unquote, urlsplit

from components import storage
from components.config import Config
from serin.errors import TryAgain, UserError

TIMEOUT_S: Final = 30.0
RETRY_DELAY_S: Final = 10.0
CHUNK_BYTES: Final = 1 << 16
PASSING_STATUS: Final = (408, 425, 429)
"""Client errors that are worth another try; so are all server errors."""
SYNTHETIC_CUSTOMERS: Final = 7043
SYNTHETIC_SEED: Final = 7


class SourceKind(StrEnum):
    FILE = "file"
    DOWNLOAD = "download"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Source:
    path: Path
    kind: SourceKind
    sha256: str
    bytes: int


def resolve(config: Config, *, config_path: Path, cache: Path, environ: Mapping[str, str]) -> Source:
    """The data as a file on this machine, by its absolute path.

    In this order: the file named by SERIN_DATA; `data.source` if it is a path, relative to the config file; an
    earlier download in `cache` whose checksum is right; a download; and if the network fails and the config names a
    generator, synthetic data, announced on stderr. Raises `TryAgain` if the network fails and there is no generator.
    """
    if chosen := environ.get("SERIN_DATA"):
        return _source(_local(Path(chosen).expanduser(), None, named_by="SERIN_DATA"), SourceKind.FILE)
    if not _is_address(config.data.source):
        path = (config_path.parent / Path(config.data.source).expanduser()).resolve()
        return _source(_local(path, config.data.sha256, named_by="data.source"), SourceKind.FILE)
    try:
        return _source(_download(config.data.source, config.data.sha256, cache), SourceKind.DOWNLOAD)
    except TryAgain as error:
        if config.data.synthetic is None:
            raise
        _announce_synthetic(error)
        return _source(_generate(cache), SourceKind.SYNTHETIC)


def fetch(source: str, sha256: str | None, directory: Path) -> Path:
    """The file at a path or address; a download lands in `directory`. The checksum is checked if given."""
    if _is_address(source):
        return _download(source, sha256, directory)
    return _local(Path(source), sha256, named_by="data.source")


def _is_address(source: str) -> bool:
    return "://" in source


def _source(path: Path, kind: SourceKind) -> Source:
    return Source(path=path.absolute(), kind=kind, sha256=sha256_of(path), bytes=path.stat().st_size)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _local(path: Path, sha256: str | None, *, named_by: str) -> Path:
    if not path.is_file():
        raise UserError(f"{named_by}: there is no file {path}; give the path of a CSV or Parquet file.")
    if sha256 is not None:
        _check_sum(path, sha256, str(path))
    return path


def _check_sum(path: Path, expected: str, name: str) -> None:
    found = sha256_of(path)
    if found != expected.lower():
        raise UserError(
            f"data.sha256: {name} has SHA-256 {found}, expected {expected}; get the right file or correct it."
        )


def _download(address: str, sha256: str | None, directory: Path) -> Path:
    parts = urlsplit(address)
    from_store = storage.in_object_store(address)
    if not from_store and parts.scheme not in ("http", "https"):
        raise UserError(
            f"data.source: {parts.scheme}:// is not supported ({address}); use a path, http(s)://, s3:// or gs://."
        )
    key = sha256.lower() if sha256 else hashlib.sha256(address.encode()).hexdigest()
    target = directory / f"{key[:16]}-{PurePosixPath(unquote(parts.path)).name or 'data'}"
    if sha256 and target.is_file() and sha256_of(target) == sha256.lower():
        return target
    with _replacing(target) as part:
        if from_store:
            folder, _, name = address.rpartition("/")
            storage.get(folder, name, part)
        else:
            with part.open("wb") as file:
                for chunk in _chunks(address):
                    file.write(chunk)
        if sha256:
            _check_sum(part, sha256, address)
    if not sha256:
        print(f"{address} was not verified; to pin it, set data.sha256: {sha256_of(target)}", file=sys.stderr)
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path to write to; the file takes the place of `target` if the block ends well, and is gone if it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-")
    except OSError as error:
        raise UserError(f"Directory {target.parent} cannot be written: {error.strerror}.") from error
    with scratch:
        part = Path(scratch.name) / target.name
        yield part
        part.replace(target)


def _chunks(address: str) -> Iterator[bytes]:
    """The bytes at an address, with progress on stderr."""
    request = urllib.request.Request(address, headers={"User-Agent": "serin"})  # noqa: S310 (http or https only)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            total = int(response.headers.get("Content-Length") or 0)
            received = 0
            with _progress(address, total) as advance:
                while chunk := response.read(CHUNK_BYTES):
                    received += len(chunk)
                    advance(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        if 400 <= error.code < 500 and error.code not in PASSING_STATUS:
            raise UserError(
                f"data.source: {address} answers {error.code} {error.reason}; correct the address."
            ) from error
        raise TryAgain(f"{address} answers {error.code} {error.reason}", delay_s=RETRY_DELAY_S) from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise TryAgain(f"{address} cannot be downloaded ({reason})", delay_s=RETRY_DELAY_S) from error
    if received < total:
        raise TryAgain(f"{address} was interrupted after {received} of {total} bytes", delay_s=RETRY_DELAY_S)


@contextmanager
def _progress(address: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else one line at the start and one at the end."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("Downloading data", total=total or None)
            yield lambda size: bar.advance(task, size)
        return
    print(f"Downloading {address}", file=sys.stderr)
    sizes: list[int] = []
    yield sizes.append
    print(f"Downloaded {sum(sizes):,} bytes", file=sys.stderr)


def _announce_synthetic(reason: TryAgain) -> None:
    print(
        "\n*** SYNTHETIC DATA ***\n"
        f"{reason}.\n"
        "This run uses generated customers instead. It shows how serin works; its figures say nothing about real\n"
        "customers. To use a real file, set SERIN_DATA to its path.\n",
        file=sys.stderr,
        flush=True,
    )


def _generate(cache: Path) -> Path:
    from components.preprocess.generator import snapshot

    target = cache / "synthetic-churn.csv"
    with _replacing(target) as part:
        snapshot(SYNTHETIC_SEED, SYNTHETIC_CUSTOMERS).to_csv(part, index=False)
    return target
