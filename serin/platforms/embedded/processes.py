"""Processes that outlive the one that started them, found again by pid and the moment of their start."""

import contextlib
import fcntl
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil

from serin.platforms.embedded.gateway import LOCAL

LOCK: Final = "supervisor.lock"
"""The file of a platform's folder that its supervisor holds locked."""
_KEPT_VARIABLES: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""A model server gets these of the supervisor's environment, and nothing that may be a secret; nor TMPDIR, which may
go with a caller's run."""
KILL_S: Final = 5.0
_OWN_FILES: Final = ("--config-path", "--model-dir")
"""The options by which a gateway and a model server are known as ours."""


def spawn(
    arguments: Sequence[str], *, folder: Path, log: Path, env: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str | None]:
    """Start a program in `folder` and in a session of its own, so that neither Ctrl-C nor our end reaches it. What it
    writes is for this user alone.

    Returns the process and what `alive` knows it by.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**kept, **(env or {})},
            start_new_session=True,
            umask=0o077,
            cwd=folder,
        )
    return process, started(process.pid)


def started(pid: int) -> str | None:
    """What tells the process from any other that has or had its pid, whatever becomes of the machine's clock."""
    found = _stat(pid)
    return f"{boot()}:{found[1]}" if found is not None else None


def alive(pid: int | None, start: str | None) -> bool:
    """Whether the very process is there, not another one that got its pid."""
    if pid is None or start is None:
        return False
    found = _stat(pid)
    return found is not None and found[0] != psutil.STATUS_ZOMBIE and f"{boot()}:{found[1]}" == start


def _stat(pid: int) -> tuple[str, str] | None:
    """Status as psutil names it, and the start in ticks since the boot; where there is no /proc the time of day."""
    try:
        if not psutil.LINUX:
            process = psutil.Process(pid)
            return process.status(), str(process.create_time())
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (psutil.Error, FileNotFoundError, ProcessLookupError):
        return None
    return psutil.STATUS_ZOMBIE if fields[0] in b"ZX" else psutil.STATUS_RUNNING, fields[19].decode()


@functools.cache
def boot() -> str:
    """Names the machine's boot; "" where nothing does."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii").strip() if file.exists() else ""


def supervisor_pid(home: Path) -> int | None:
    """The pid of the supervisor that holds the lock of `home`, None when there is none."""
    with contextlib.suppress(FileNotFoundError), (home / LOCK).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            return int(text) if text else None
    return None


def memory_bytes(pid: int) -> int:
    """What a process holds in memory; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def available_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that may still be taken, of the machine and of our container (cgroup v2)."""
    available = int(psutil.virtual_memory().available)
    files = [cgroups / name for name in ("memory.max", "memory.current", "memory.stat")]
    if not all(file.exists() for file in files):
        return available
    limit, used, details = (file.read_text(encoding="ascii").strip() for file in files)
    given_back = next((int(line.split()[1]) for line in details.splitlines() if line.startswith("inactive_file ")), 0)
    return available if limit == "max" else min(available, int(limit) - int(used) + given_back)


def stop(pids: Iterable[int], *, timeout_s: float) -> None:
    """SIGTERM to each in turn, SIGKILL to those that are still there after `timeout_s`."""
    ending = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.terminate()
            ending.append(process)
    _, remaining = psutil.wait_procs(ending, timeout_s)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, KILL_S)


def belonging_to(home: Path) -> list[int]:
    """The pids of all gateways and model servers whose files are below `home`, gateways first."""
    prefix = f"{home}{os.sep}"
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            for option, value in pairwise(process.cmdline()):
                if option in _OWN_FILES and value.startswith(prefix):
                    found.append((_OWN_FILES.index(option), process.pid))
    return [pid for _, pid in sorted(found)]


def port_is_free(port: int) -> bool:
    """Whether nobody listens on that port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL, port))
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """Who listens on a port of this machine, in words: other users' processes may have no names for us."""
    with contextlib.suppress(psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.pid is not None and each.laddr[1:] == (port,):
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return "a program of another user"


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules with this very interpreter; `-P` keeps the folder it is started in
    out of the import path."""
    return [sys.executable, "-P", "-m", module, *arguments]
