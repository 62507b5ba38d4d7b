"""The model servers of the embedded platform: started, started again when they die, ended when nobody wants them.

A revision has several, so that its users do not notice the end of one.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from serin.platforms.embedded import gateway, processes
from serin.platforms.embedded.store import RevisionRecord, Server, Store
from serin.platforms.embedded.takeover import RUNTIMES

REPLICAS: Final = "replicas"
"""The setting for how many servers a revision has; without it DEFAULT_REPLICAS, or one where memory is short."""
DEFAULT_REPLICAS: Final = 2
DRAIN_S: Final = 10.0
"""A server that was asked to end and goes on longer than this is killed."""
SPARE_BYTES: Final = 256 * 2**20
LONGEST_DELAY_S: Final = 10.0
_USER_MISTAKE: Final = 2
_log = logging.getLogger("serin.supervisor")


@dataclass(frozen=True, slots=True)
class _Ending:
    pid: int
    started: str | None
    child: subprocess.Popen[bytes] | None
    deadline: float


class Servers:
    def __init__(self, home: Path, store: Store) -> None:
        self._home, self._store = home, store
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._retry_at: dict[str, float] = {}
        self._seen_alive: set[str] = set()
        self._ending: list[_Ending] = []

    def look(self, healthy: Mapping[str, int]) -> None:
        """Start what is missing. `healthy`: the servers that pass the gateway's health checks, by cluster."""
        self._reap()
        lasting = {(service.namespace, service.stable) for service in self._store.services()}
        for record in self._store.revisions():
            now = self._looked_at(
                record, healthy.get(record.cluster, 0), lasting=(record.namespace, record.name) in lasting
            )
            if now != record:
                with self._store.transaction():
                    self._store.save_revision(now)

    def sockets(self, record: RevisionRecord) -> tuple[str, ...]:
        """Of the servers that the revision has, and of those it may get: a list that grows later would make the
        gateway begin anew with the revision."""
        count = max(len(record.servers), self._store.setting(REPLICAS) or DEFAULT_REPLICAS)
        return tuple(gateway.socket_of(record.cluster, number) for number in range(count))

    def _looked_at(self, record: RevisionRecord, healthy: int, *, lasting: bool) -> RevisionRecord:
        """`lasting` revisions are started again whatever they died of: there is none but them."""
        if healthy > 0:
            record = replace(record, failure=None)
        servers = list(record.servers)
        if not servers or (healthy >= len(servers) and len(servers) < self._wanted(record)):
            servers.append(Server())
        for number, server in enumerate(servers):
            key = gateway.socket_of(record.cluster, number)
            child = self._children.get(key)
            if child is not None and child.poll() is None and server.pid != child.pid:  # it could not be written down
                servers[number] = server = replace(server, pid=child.pid, started=processes.started(child.pid))
            if processes.alive(server.pid, server.started):
                self._seen_alive.add(key)
                continue
            if key in self._seen_alive:
                record, servers[number] = self._after_death(record, server, key)
            if (record.failure is None or lasting) and time.monotonic() >= self._retry_at.get(key, 0):
                servers[number] = self._started(record, servers[number], number, key)
        return replace(record, servers=tuple(servers))

    def _wanted(self, record: RevisionRecord) -> int:
        chosen: int | None = self._store.setting(REPLICAS)
        if chosen is not None:
            return chosen
        largest = max((processes.memory_bytes(each.pid) for each in record.servers if each.pid), default=0)
        enough = room_for_another(largest, processes.available_bytes())
        return DEFAULT_REPLICAS if enough else 1

    def _after_death(self, record: RevisionRecord, server: Server, key: str) -> tuple[RevisionRecord, Server]:
        """Count a death that happened under our eyes."""
        self._seen_alive.discard(key)
        child = self._children.pop(key, None)
        code = child.poll() if child is not None else None
        if code == _USER_MISTAKE:
            record = replace(record, failure=self._last_words(record))
        _log.warning("%s died (exit code %s), %d restarts so far", record.name, code, server.restarts)
        return record, Server(restarts=server.restarts + 1)

    def _started(self, record: RevisionRecord, server: Server, number: int, key: str) -> Server:
        self._retry_at[key] = time.monotonic() + delay_s(server.restarts)
        process, started = processes.spawn(
            processes.python(
                RUNTIMES[record.runtime],
                *("--model-name", record.service),
                *("--model-dir", str(record.model)),
                *("--revision", record.name),
                *("--digest", record.digest),
                *("--unix-socket", key),
            ),
            folder=self._home,
            log=self._log_file(record),
            env={"OMP_NUM_THREADS": "1", **record.env},
        )
        self._children[key] = process
        self._seen_alive.add(key)
        return replace(server, pid=process.pid, started=started)

    def end(self, record: RevisionRecord) -> None:
        for number, server in enumerate(record.servers):
            key = gateway.socket_of(record.cluster, number)
            child = self._children.pop(key, None)
            self._seen_alive.discard(key)
            if server.pid is not None and processes.alive(server.pid, server.started):
                os.kill(server.pid, signal.SIGTERM)
                self._ending.append(_Ending(server.pid, server.started, child, time.monotonic() + DRAIN_S))
            (self._home / key).unlink(missing_ok=True)
        _log.info("%s stopped", record.name)

    def _reap(self) -> None:
        """Take note of children that ended, and end those that were asked to and did not."""
        for child in self._children.values():
            child.poll()
        for ending in list(self._ending):
            if ending.child is not None:
                ending.child.poll()
            if not processes.alive(ending.pid, ending.started):
                self._ending.remove(ending)
            elif time.monotonic() > ending.deadline:
                os.kill(ending.pid, signal.SIGKILL)

    def _log_file(self, record: RevisionRecord) -> Path:
        return self._home / "logs" / f"{record.name}.log"

    def _last_words(self, record: RevisionRecord) -> str:
        lines = self._log_file(record).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process refused to start"


def delay_s(restarts: int) -> float:
    """From one start of a server to the next: what ran for long is back at once, what dies at once comes back ever
    more slowly."""
    return 0.0 if restarts == 0 else min(0.5 * 2 ** min(restarts, 10), LONGEST_DELAY_S)


def room_for_another(size_bytes: int, available_bytes: int) -> bool:
    """Whether memory allows one more server as large as the one there is, with some to spare for its requests."""
    return available_bytes > 2 * size_bytes + SPARE_BYTES
