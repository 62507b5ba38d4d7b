"""Models on their way into the platform's own storage, beside the loop that watches rollouts.

A model is checked, copied and hashed by a thread; the loop only asks how far that is.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

from serin import model
from serin.errors import UserError
from serin.hint import typed
from serin.model import files
from serin.rollout.document import Candidate, ModelRollout

RUNTIMES: Final[dict[str, str]] = {"serin-onnx": "predictor", "serin-drill": "predictor.drill"}
"""The program behind each runtime: a Python module that takes the predictor's arguments."""
PARTIAL: Final = ".partial"
RESERVE_BYTES: Final = 64 * 2**20
"""What a copy must leave free on the disk: a full one stops every rollout."""
_CHUNK: Final = 2**20
_SYNC_BYTES: Final = 32 * 2**20
_MB: Final = 2**20
_log = logging.getLogger("serin.supervisor")

Tell = Callable[[str], None]
"""Called with how far a takeover is, in words."""


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Either under way, and `progress` says how far; or done, the model has this `digest`; or refused."""

    progress: str | None = None
    digest: str | None = None
    refusal: str | None = None


class TakeOvers:
    """One at a time, each once for its rollout. `start` runs a job without waiting for it."""

    def __init__(self, home: Path, start: Callable[[Callable[[], None]], None] | None = None) -> None:
        self._home = home
        self._start = start or _in_thread
        self._found: dict[tuple[str, str], TakeOver] = {}
        self._turn = threading.Lock()

    def look(self, rollout: ModelRollout) -> TakeOver:
        key = (rollout.metadata.namespace, rollout.metadata.name)
        if key not in self._found:
            self._found[key] = TakeOver(progress="the model is taken over as soon as others are")
            self._start(lambda: self._run(key, rollout.spec.candidate))
        return self._found[key]

    def keep(self, unfinished: Collection[tuple[str, str]]) -> None:
        """Forget what was found for rollouts that have ended, given those that have not."""
        self._found = {key: found for key, found in self._found.items() if key in unfinished}

    def _run(self, key: tuple[str, str], candidate: Candidate) -> None:
        def tell(progress: str) -> None:
            self._found[key] = TakeOver(progress=progress)

        with self._turn:
            try:
                found = TakeOver(digest=take_over(self._home, candidate, tell))
            except UserError as error:
                found = TakeOver(refusal=str(error))
            except Exception as error:  # whatever it is, its rollout must hear of it
                _log.exception("the model of %s could not be taken over", key[1])
                found = TakeOver(refusal=f"the model could not be taken over: {type(error).__name__}: {error}")
            self._found[key] = found


def _in_thread(job: Callable[[], None]) -> None:
    threading.Thread(target=job, name="takeover", daemon=True).start()  # our end does not wait for it


def model_folder(home: Path, digest: str) -> Path:
    return home / "models" / digest.removeprefix("sha256:")[:16]


def remove_leftovers(home: Path) -> None:
    """Delete the copies that whoever made them did not live to finish."""
    for partial in (home / "models").glob("*" + PARTIAL):
        shutil.rmtree(partial)


def take_over(home: Path, candidate: Candidate, tell: Tell) -> str:
    """Bring the candidate's model into the platform's own storage, checked; return its digest.

    Nothing is copied of a directory with anything but regular files in it, or where it would fill the disk; a copy
    becomes a model by a rename, after its digests were checked in place.

    Raises `UserError` when runtime, address or digest is wrong, or the files cannot be read or copied.
    """
    if candidate.runtime not in RUNTIMES:
        raise UserError(f"There is no runtime {candidate.runtime}; known: {', '.join(RUNTIMES)}.")
    if candidate.storage_uri is None:
        raise UserError("The embedded platform releases models, not predictors; set candidate.storageUri.")
    source = _local_path(candidate.storage_uri)
    try:
        source = source.resolve()
        sizes = files.regular_files(source) if source.is_dir() else {}
        if model.DIGESTS_FILE not in sizes:
            raise UserError(f"{source} is not a model directory: it has no {model.DIGESTS_FILE}.")
        digest = model.digest(source)
        if candidate.digest not in (None, digest):
            raise UserError(f"Model {source}: digest is {digest}, expected {candidate.digest}; check storageUri.")
        folder = model_folder(home, digest)
        if folder.exists():
            tell(f"checking the model ({sum(sizes.values()) / _MB:,.0f} MB)")
            model.verify(folder, digest)
            os.utime(folder)  # as new: it is not forgotten while it waits
        else:
            _copy_in(source, sizes, folder, digest, tell)
    except (OSError, ValueError) as error:
        raise UserError(f"Model {source} cannot be taken over: {error}") from error
    return digest


def _copy_in(source: Path, sizes: Mapping[Path, int], folder: Path, digest: str, tell: Tell) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    total = sum(sizes.values())
    free = shutil.disk_usage(folder.parent).free
    if total + RESERVE_BYTES > free:
        raise UserError(
            f"Model {source} has {total / _MB:,.0f} MB, but only {free / _MB:,.0f} MB are free for {folder.parent}, "
            f"of which {RESERVE_BYTES // _MB} MB stay free; make room, for example with {typed('prune')}."
        )
    partial = folder.with_name(folder.name + PARTIAL)
    if partial.exists():
        shutil.rmtree(partial)
    try:
        copied = 0
        for name, size in sizes.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            for written in _copy(source / name, partial / name, size):
                copied += written
                tell(f"taking over the model: {copied / _MB:,.0f} of {total / _MB:,.0f} MB")
        tell(f"checking the model ({total / _MB:,.0f} MB)")
        model.verify(partial, digest)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy(source: Path, target: Path, size: int) -> Iterator[int]:
    """Copy a file of `size` bytes, no more, and have it on disk; yields the bytes of each step."""
    with files.open_regular(source) as reading, target.open("xb") as writing:
        unsynced = 0
        while size > 0 and (chunk := reading.read(min(size, _CHUNK))):
            writing.write(chunk)
            size -= len(chunk)
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES:  # in small portions, so that the store's own writes need not wait for many
                os.fdatasync(writing.fileno())
                unsynced = 0
            yield len(chunk)
        writing.flush()
        os.fsync(writing.fileno())


def _local_path(uri: str) -> Path:
    parsed = urlparse(uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if parsed.scheme:
        raise UserError(f"storageUri {uri}: the embedded platform reads file:// and plain paths only.")
    return Path(uri)
