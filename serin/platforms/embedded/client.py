"""The embedded platform as commands and pipeline steps use it: start, stop, find, ask."""

import os
import shutil
import signal
import socket
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from serin.errors import TryAgain, UserError
from serin.hint import typed
from serin.platforms.embedded import processes
from serin.platforms.embedded.gateway import LOCAL
from serin.platforms.embedded.routes import fall_back
from serin.platforms.embedded.store import Store
from serin.platforms.ports import ALL, Champion, Which
from serin.rollout.document import ModelRollout

NAMESPACE: Final = "default"
START_S: Final = 30.0
STOP_S: Final = 15.0
FULL_BYTES: Final = 2**20
SILENT_S: Final = 10.0
"""A supervisor touches its lock several times a second, whenever it has looked at everything. What it leaves there
is the time since the boot: a clock that is set must not make it look silent."""


class Embedded:
    """The platform that lives in `home`; `namespace` is the one commands and pipelines use."""

    def __init__(self, home: Path, namespace: str = NAMESPACE) -> None:
        self.store = Store(home)
        self.namespace = namespace

    def __str__(self) -> str:
        return f"serving at {self.address}"

    @property
    def address(self) -> str | None:
        """Of the gateway; None before the first start."""
        port = self.store.setting("port")
        return f"http://{LOCAL}:{port}" if port else None

    def host(self, service: str) -> None:
        """One gateway serves every service under its own path."""

    def champion(self, service: str) -> Champion | None:
        found = self.store.service(service, self.namespace)
        record = self.store.revision(found.stable, self.namespace) if found and found.stable else None
        if record is None:
            return None
        return Champion(record.name, record.digest, str(record.model))

    def rollouts(self, which: Which = ALL) -> list[ModelRollout]:
        return self.store.rollouts(self.namespace, which)

    def find(self, name: str) -> ModelRollout | None:
        return self.store.find_rollout(name, self.namespace)

    def windows(self, name: str, *, last: int | None = None) -> list[dict[str, Any]]:
        return self.store.windows(name, self.namespace, last=last)

    def create(self, rollout: ModelRollout) -> None:
        self.store.create_rollout(rollout)

    def patch_spec(self, name: str, **changes: bool) -> None:
        self.store.patch_spec(name, self.namespace, **changes)

    def problem(self) -> str | None:
        home = self.store.home
        if supervisor_pid(home) is None:
            return f"no supervisor is running for {home}; start it with {typed('up')}"
        if time.monotonic() - (home / processes.LOCK).stat().st_mtime > SILENT_S:
            if shutil.disk_usage(home).free < FULL_BYTES:
                return f"the disk of {home} is full; stable has all traffic until there is free space"
            return f"the supervisor of {home} makes no progress; see {home / 'logs' / 'supervisor.log'}"
        return "; ".join(_state(self.store)["problems"]) or None


def home_folder() -> Path:
    """Where the embedded platform lives: SERIN_HOME, or .serin in the current folder."""
    return Path(os.environ.get("SERIN_HOME", ".serin")).resolve()


supervisor_pid: Final = processes.supervisor_pid


def up(home: Path, *, timeout_s: float = START_S) -> str:
    """Start the platform, or find it running; return the address of its gateway.

    SERIN_PORT names the gateway's port, this time and from now on (0: any free one). Without it and from the start
    that is 8080, or any free one where 8080 is taken. When this returns every service answers, unless
    `Embedded.problem` says why one does not.

    Raises `UserError` when the port named is taken, or the gateway listens on another already, `TryAgain` when the
    supervisor ends, or the gateway does not answer within `timeout_s`.
    """
    home = home.resolve()
    try:
        port = _port()
        _check_port(home, port)
        store = Store(home)
    except UserError:
        with suppress(OSError):
            if supervisor_pid(home) is None:  # nobody watches a candidate that still has traffic
                fall_back(home)
        raise
    try:
        log = home / "logs" / "supervisor.log"
        supervisor = None
        if supervisor_pid(home) is None:
            supervisor, _ = processes.spawn(
                processes.python("serin.platforms.embedded.supervisor", str(home)),
                folder=home,
                log=log,
                env={"SERIN_PORT": str(port)} if port is not None else {},
            )
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if supervisor_pid(home) is not None and _ready(store):
                return f"http://{LOCAL}:{store.setting('port')}"
            if supervisor is not None and supervisor.poll():
                raise TryAgain(f"The supervisor of {home} exited at once; see {log}.", delay_s=5)
            time.sleep(0.05)
        told = "; ".join(_state(store)["problems"]) or "the gateway does not answer"
    finally:
        store.close()
    raise TryAgain(f"Not ready within {timeout_s:.0f} s: {told}; see {log}.", delay_s=5)


def _port() -> int | None:
    port = os.environ.get("SERIN_PORT", "")
    if not port:
        return None
    if not (port.isdecimal() and int(port) < 2**16):
        raise UserError(f"SERIN_PORT={port} is not a port; use a number from 0 to 65535.")
    return int(port)


def _check_port(home: Path, port: int | None) -> None:
    """Raises `UserError` when the gateway cannot listen where the user wants it to."""
    wanted, current, gateway = port, None, None
    if (home / "serin.db").exists():
        with closing(Store(home)) as store:
            wanted = port if port is not None else store.setting("wanted_port")
            current, gateway = store.setting("port"), store.setting("gateway_pid")
    if processes.alive(*(gateway or (None, None))):
        if port and current and port != current:
            raise UserError(
                f"The gateway of {home} listens on port {current}, not on SERIN_PORT={port}; stop it with "
                f"{typed('down')} first, or leave SERIN_PORT out."
            )
        return
    if wanted and not processes.port_is_free(wanted):
        raise UserError(
            f"Port {wanted} is taken by {processes.holder(wanted)}; stop that, or choose another with SERIN_PORT "
            "(0: any free one)."
        )


def _state(store: Store) -> dict[str, Any]:
    """What the supervisor saw last: the gateway's pid if it answers, revisions not ready yet, problems."""
    return store.setting("state") or {"gateway": None, "waiting": [], "problems": []}


def _ready(store: Store) -> bool:
    """Whether the gateway lets clients in, and every service is there for them or known not to be."""
    pid, started = store.setting("gateway_pid") or (None, None)
    state, port = _state(store), store.setting("port")
    if not processes.alive(pid, started) or state["gateway"] != pid or port is None:
        return False
    try:
        socket.create_connection((LOCAL, port), timeout=1).close()
    except OSError:
        return False
    return not state["waiting"] or bool(state["problems"])


def down(home: Path) -> int:
    """Stop everything that belongs to `home`, gateway first; return how many processes that were.

    State stays: the next `up` serves the same model and goes on with an unfinished rollout.
    """
    home = home.resolve()
    count = 0
    pid = supervisor_pid(home)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        count += 1
        deadline = time.monotonic() + STOP_S
        while supervisor_pid(home) == pid and time.monotonic() < deadline:
            time.sleep(0.05)
        if supervisor_pid(home) == pid:
            os.kill(pid, signal.SIGKILL)
    ours = processes.belonging_to(home)
    processes.stop(ours, timeout_s=STOP_S)
    return count + len(ours)
