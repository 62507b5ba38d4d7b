"""One execution of the compiled pipeline, wherever it goes on; and the one on this machine."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from components.preprocess.sources import Source
from pipelines import COMPILED
from pipelines.progress import Progress
from serin.platforms.embedded import processes

STOP_S: Final = 20.0
Tell = Callable[[str], None]


class Execution(Protocol):
    """A pipeline that was started. `log` says where more is to be read."""

    progress: Progress
    log: str

    def running(self) -> bool:
        """Looks, and brings `progress` up to date."""

    @property
    def succeeded(self) -> bool: ...

    def artifact(self, task: str, name: str) -> Path | None:
        """What a step left, on this machine; None if it left nothing. Only after the end."""


class Backend(Protocol):
    def data(self, source: Source) -> str:
        """The table's path or address as steps read it."""

    def start(self, arguments: Mapping[str, Any], folder: Path, tell: Tell) -> AbstractContextManager[Execution]:
        """Run the compiled pipeline with `arguments`; what is kept lies in `folder`, `tell` gets lines to print."""


class Local:
    """kfp.local, in a process of its own that ends with the block."""

    def data(self, source: Source) -> str:
        return str(source.path)

    @contextmanager
    def start(self, arguments: Mapping[str, Any], folder: Path, tell: Tell) -> Iterator[Execution]:
        file = folder / "arguments.json"
        file.write_text(json.dumps(arguments, indent=1), encoding="utf-8")
        with (
            TemporaryDirectory(dir=folder.resolve(), prefix="tmp-", ignore_cleanup_errors=True) as scratch,
            _process(file, folder, scratch) as process,
        ):
            execution = _LocalExecution(process, folder)
            reader = threading.Thread(target=execution.read, args=(tell,))
            reader.start()
            try:
                yield execution
            finally:
                _end(process)
                reader.join()


def _process(arguments: Path, folder: Path, scratch: str) -> subprocess.Popen[str]:
    """kfp leaves a folder in the temporary directory for each step: it is in `scratch`."""
    threads = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        processes.python("pipelines.local", str(COMPILED), str(arguments), str(folder / "pipeline")),
        stdin=subprocess.PIPE,  # see `serin.parent`
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **threads, "TMPDIR": scratch},
        start_new_session=True,  # a group of its own, so that a step ends with it
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _LocalExecution:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.progress = Progress()
        self.log = str(folder / "pipeline.log")
        self._process = process
        self._folder = folder

    def read(self, tell: Tell) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        with Path(self.log).open("wb", buffering=0) as out:
            for line in self._process.stdout:
                with suppress(OSError):  # a full disk: the pipeline waits for whoever reads what it prints
                    out.write(line.encode())
                told = self.progress.feed(line, time.monotonic())
                if told:
                    tell(told)

    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def succeeded(self) -> bool:
        return self._process.returncode == 0

    def artifact(self, task: str, name: str) -> Path | None:
        found = sorted((self._folder / "pipeline").glob(f"*/{task}/{name}"))
        return found[-1] if found else None
