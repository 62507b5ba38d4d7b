"""The supervisor: makes processes, routes and rollouts follow what the store says.

One loop, several times a second, each pass from scratch: look at everything, decide, write, act. It can be killed
between any two statements; the next one finds the gateway and the model servers still serving and goes on.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

import aiohttp

from serin import address, checks, model
from serin.errors import TryAgain, UserError
from serin.judge.policy import Source
from serin.judge.window import Window
from serin.measure import envoy, events
from serin.measure.windows import (
    CUT_OFF,
    TIMED_OUT,
    Counters,
    Reading,
    ServerCounts,
    following,
    to_document,
    window_between,
)
from serin.plan import Checks
from serin.platforms.embedded import gateway, processes, retention
from serin.platforms.embedded.clock import Clock
from serin.platforms.embedded.gateway import Upstream
from serin.platforms.embedded.gateway_process import GatewayProcess
from serin.platforms.embedded.platform import EmbeddedPlatform, Gateway
from serin.platforms.embedded.routes import FOLDER, Routes, fall_back
from serin.platforms.embedded.servers import Servers
from serin.platforms.embedded.store import RevisionRecord, Store
from serin.platforms.embedded.takeover import TakeOvers, remove_leftovers
from serin.rollout.document import Check, ModelRollout
from serin.rollout.reconcile import RunChecks, reconcile, unwatched
from serin.rollout.turns import active_rollouts

TICK_S: Final = 0.2
DRAIN_S: Final = 10.0
"""A revision without traffic is stopped when its last request is answered, or after this time."""
COUNTERS_TIMEOUT_S: Final = 0.5
"""A model server that hangs must not keep the loop from taking its traffic away."""
MAX_COUNTERS_BYTES: Final = 2**20
MIN_DRAIN_S: Final = 1.0
STRAY_S: Final = 5.0
LOCKED_S: Final = 0.5
"""A store that another program keeps locked for longer is as good as none: a look must not wait for it."""
PRUNE_S: Final = 3600.0
PATIENCE_S: Final = 5.0
"""A stable revision may take so long to get ready before that is a problem."""
_log = logging.getLogger("serin.supervisor")


class Supervisor:
    def __init__(self, home: Path, *, wall: Callable[[], float] = time.time) -> None:
        self._home = home
        self._store = Store(home, patience_s=LOCKED_S)
        self._clock = Clock(self._store, wall=wall)
        self._takeovers = TakeOvers(home)
        self._platform = EmbeddedPlatform(self._store, self._takeovers)
        self._routes = Routes(home, self._store)
        self._servers = Servers(home, self._store)
        self._gateway = GatewayProcess(home, self._store)
        self._unready_since: dict[str, float] = {}
        self._state: dict[str, Any] | None = None
        self._draining: dict[str, float] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._healthy: dict[str, int] = {}
        self._complaints: dict[str, str] = {}
        self._pinned: dict[str, int] | None = None
        """Values of the gateway's runtime that were set; None while an earlier supervisor may have set some."""

    async def run(self, stop: asyncio.Event) -> None:
        (self._home / FOLDER).mkdir(parents=True, exist_ok=True)
        _private(self._home / gateway.SOCKETS)
        self._routes.recall()
        self._end_strays()
        remove_leftovers(self._home)
        watch = asyncio.create_task(self._watch_gateway())
        pruning = asyncio.create_task(self._prune())
        while not stop.is_set():
            start = time.monotonic()
            try:
                await self._tick()
            except Exception as error:  # a full disk, say: whoever ends now leaves a candidate nobody watches
                await self._fall_back()
                self._complain(error)
            rest = TICK_S - (time.monotonic() - start)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(rest, 0.01))
        for task in (watch, pruning, *self._checks.values()):
            task.cancel()
        await self._gateway.close()

    async def _watch_gateway(self) -> None:
        while True:
            try:
                await self._gateway.watch()
            except Exception as error:  # whatever it was: a gateway that nobody watches is replaced by nobody
                self._complain(error)

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE_S)
            try:
                await asyncio.to_thread(retention.prune, self._home)
            except Exception as error:  # what cannot be pruned now is tried again, and rollouts go on
                self._complain(error, "what to prune")

    async def _fall_back(self) -> None:
        """No candidate has traffic while nobody watches it."""
        try:
            if self._routes.fall_back():
                _log.error("all traffic goes to the stable revisions")
        except OSError as error:  # a read-only file system: not even a rename is possible
            self._complain(error, "the routes")
            pins = self._routes.pins
            if pins:  # with every look: a gateway that was replaced meanwhile knows nothing of them
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):  # tried again with the next look
                    await self._gateway.pin(pins)
                    self._pinned = pins

    async def _unpin(self) -> None:
        """Files decide again; at first the one that gives a candidate nothing, if it was us who pinned."""
        if self._pinned:
            self._routes.fall_back()
        if self._pinned != {}:
            await self._gateway.unpin(gateway.pinned(each.cluster for each in self._store.revisions()))
            self._pinned = {}

    def _complain(self, error: Exception, about: str = "the platform") -> None:
        """Once, until it is another error or a look succeeds: a full disk must not be filled with complaints."""
        if self._complaints.get(about) != repr(error):
            self._complaints[about] = repr(error)
            _log.error("reconciling %s fails, retrying", about, exc_info=error)

    async def _tick(self) -> None:
        self._write_clusters()
        self._gateway.ensure()
        self._servers.look(self._healthy)
        stats = await self._gateway.stats()
        self._save_state(stats)
        if stats is None:
            return
        await self._unpin()
        self._healthy = {name: cluster.healthy for name, cluster in stats.clusters.items()}
        seen = self._confirmed(stats)
        await self._steps(stats, seen)
        self._routes.write(self._store.services(), seen.healthy)
        self._retire(stats)
        self._complaints.pop("the platform", None)
        now_ns = time.monotonic_ns()
        os.utime(self._home / processes.LOCK, ns=(now_ns, now_ns))  # as `Embedded.problem` reads it

    # rollouts

    async def _steps(self, stats: envoy.GatewayStats, seen: Gateway) -> None:
        """One of every unfinished rollout. The model servers are asked for their counts all at once: one that hangs
        delays a look no more than any number of them."""
        turns = active_rollouts(self._store.unfinished())
        if not turns:
            self._clock.follow()
        self._takeovers.keep({(each.metadata.namespace, each.metadata.name) for each, _, _ in turns})
        found = await asyncio.gather(*(self._read(each, stats, seen) for each, _, _ in turns), return_exceptions=True)
        for (rollout, waits_for, superseded_by), read in zip(turns, found, strict=True):
            try:
                self._step(rollout, read, seen, waits_for, superseded_by)
                self._complaints.pop(rollout.metadata.name, None)
            except TryAgain:  # nothing about this rollout: it goes on when that is over, without traffic until then
                raise
            except Exception as error:
                # one broken rollout must neither stop the others nor leave users with a candidate nobody watches
                self._complain(error, rollout.metadata.name)
                reason = f"{type(error).__name__}: {error}"
                self._platform.withdraw(rollout)
                self._store.save_status(rollout, unwatched(rollout.status, reason, self._clock.now()))

    def _step(
        self,
        rollout: ModelRollout,
        read: tuple[Reading | None, Window | None] | BaseException,
        seen: Gateway,
        waits_for: str | None,
        superseded_by: str | None,
    ) -> None:
        if isinstance(read, BaseException):
            raise read
        reading, window = read
        observation = self._platform.observe(
            rollout,
            seen,
            windows=(window,) if window else (),
            waits_for=waits_for,
            superseded_by=superseded_by,
        )
        current = self._store.rollout(rollout.metadata.name, rollout.metadata.namespace)
        status, actions = reconcile(current.spec, current.status, observation, self._clock.now())
        with self._store.transaction():
            if status != current.status:
                self._store.save_status(current, status)
            if reading is not None:
                self._store.save_counters(current, reading.model_dump(mode="json", by_alias=True))
            if window is not None:
                self._store.add_window(current, window.id, to_document(window))
            for action in actions:
                self._platform.apply(current, action)
        if status.phase is not current.status.phase or status.stage != current.status.stage:
            _log.info("%s: %s at %d %%: %s", current.metadata.name, status.phase, status.traffic, status.reason)
        for action in actions:
            if isinstance(action, RunChecks):
                self._run_checks(current, action)

    async def _read(
        self, rollout: ModelRollout, stats: envoy.GatewayStats, seen: Gateway
    ) -> tuple[Reading | None, Window | None]:
        """The counters of both arms now, and the window since the last reading if the candidate had traffic in it.

        Read before any traffic too, so that the first window begins with the first request.
        """
        namespace = rollout.metadata.namespace
        percent = seen.splits.get((namespace, rollout.spec.service), 0)
        stable, candidate = rollout.status.stable_revision, rollout.status.candidate_revision
        if stable is None or candidate is None:
            return None, None
        sources = rollout.spec.judge.sources
        arms = await asyncio.gather(
            *(self._counters(namespace, name, stats, sources) for name in (stable, candidate))
        )
        if arms[0] is None or arms[1] is None:
            return None, None
        document = self._store.counters(rollout)
        before = Reading.model_validate(document) if document else None
        now = Reading(
            at_s=self._clock.now().timestamp(),
            window_id=(before.window_id if before else self._store.last_window(rollout)) + 1,
            stage=rollout.status.stage or 0,
            percent=percent,
            gateway=str(self._store.setting("gateway_pid")),
            stable=arms[0],
            candidate=arms[1],
        )
        reading = following(before, now)
        if before is None or (before.percent == 0 and percent == 0):
            return reading, None
        return reading, window_between(before, reading)

    async def _counters(
        self, namespace: str, name: str, stats: envoy.GatewayStats, sources: Mapping[str, Source]
    ) -> Counters | None:
        record = self._store.revision(name, namespace)
        if record is None:
            return None
        cluster = stats.clusters.get(record.cluster, envoy.ClusterStats())
        numbers = range(len(record.servers))
        counted = await asyncio.gather(*(_server_counts(record, number, sources) for number in numbers))
        return Counters(
            codes=cluster.codes,
            retried=cluster.retried,
            unanswered={CUT_OFF: cluster.cut_off, TIMED_OUT: cluster.timed_out},
            active=cluster.active,
            servers=dict(enumerate(counted)),
            reports=tuple(name for name in sources if counted and all(name in each.events for each in counted)),
        )

    def _run_checks(self, rollout: ModelRollout, action: RunChecks) -> None:
        key = f"{rollout.metadata.namespace}/{rollout.metadata.name}"
        if key not in self._checks:
            self._checks[key] = asyncio.create_task(self._check(rollout, action, key))

    async def _check(self, rollout: ModelRollout, action: RunChecks, key: str) -> None:
        namespace = rollout.metadata.namespace
        candidate = self._store.revision(action.candidate, namespace)
        stable = self._store.revision(action.stable, namespace) if action.stable else None
        if candidate is None:
            del self._checks[key]
            return
        try:
            samples = await asyncio.to_thread(model.samples, candidate.model)
        except (OSError, ValueError) as error:
            results: tuple[Check, ...] = (Check(name="samples", passed=False, detail=f"cannot be read: {error}"),)
        else:
            answers, of_stable = await checks.replay(
                _address(candidate),
                _address(stable) if stable else None,
                rollout.spec.service,
                samples.records,
            )
            results = checks.compare(answers, of_stable, samples.scores)
            if stable is not None and rollout.spec.effective_plan.checks is Checks.FULL:
                results += (await _accepted(candidate, stable),)
        document = {"checks": [check.model_dump(mode="json", by_alias=True) for check in results]}
        with self._store.transaction():
            self._store.save_checks(rollout, document)

    # the gateway

    def _save_state(self, stats: envoy.GatewayStats | None) -> None:
        """What those who ask for the platform's state are told, where it has changed."""
        waiting, problems = [], [self._gateway.problem] if self._gateway.problem else []
        for service in self._store.services():
            record = self._store.revision(service.stable, service.namespace) if service.stable else None
            if record is None:
                continue
            if stats is not None and stats.clusters.get(record.cluster, envoy.ClusterStats()).healthy > 0:
                self._unready_since.pop(record.cluster, None)
                continue
            waiting.append(record.name)
            since = self._unready_since.setdefault(record.cluster, time.monotonic())
            if record.failure is not None or time.monotonic() - since > PATIENCE_S:
                problems.append(not_serving(service.name, record))
        answering = self._gateway.pid if stats is not None else None
        state = {"gateway": answering, "waiting": waiting, "problems": problems}
        if state != self._state:
            self._store.save_setting("state", state)
            self._state = state

    def _confirmed(self, stats: envoy.GatewayStats) -> Gateway:
        return Gateway(
            healthy=frozenset(name for name, cluster in stats.clusters.items() if cluster.healthy > 0),
            splits=self._routes.confirmed(stats),
        )

    def _write_clusters(self) -> None:
        revisions = self._store.revisions()
        self._routes.write_clusters(
            [Upstream(each.cluster, each.service, self._servers.sockets(each)) for each in revisions]
        )

    def _retire(self, stats: envoy.GatewayStats) -> None:
        """Stop revisions no service refers to: out of the routes, drained, out of the clusters, then ended."""
        wanted = {(s.namespace, name) for s in self._store.services() for name in (s.stable, s.candidate) if name}
        routes_in_force = self._routes.in_force(stats)
        for record in self._store.revisions():
            if (record.namespace, record.name) in wanted or not routes_in_force:
                continue
            since = self._draining.setdefault(record.cluster, time.monotonic())
            active = sum(
                stats.clusters.get(name, envoy.ClusterStats()).active
                for name in (record.cluster, gateway.other(record.cluster))
            )
            age_s = time.monotonic() - since
            if age_s < MIN_DRAIN_S or (active > 0 and age_s < DRAIN_S):
                continue
            del self._draining[record.cluster]
            with self._store.transaction():
                self._store.delete_revision(record)
            self._write_clusters()
            self._servers.end(record)

    def _end_strays(self) -> None:
        """End what an earlier supervisor started but did not live to write down."""
        known = {server.pid for each in self._store.revisions() for server in each.servers}
        known.add((self._store.setting("gateway_pid") or [None])[0])
        strays = [pid for pid in processes.belonging_to(self._home) if pid not in known]
        if strays:
            _log.warning("stopping stray processes %s", strays)
            processes.stop(strays, timeout_s=STRAY_S)


def not_serving(service: str, record: RevisionRecord) -> str:
    """What people are told of a stable revision that is not there for its users."""
    why = record.failure or "its process does not become ready"
    restarts = sum(server.restarts for server in record.servers)
    again = f"restarts so far: {restarts}" if restarts else "starting"
    return f"{record.name}, the stable revision of {service}, is not serving: {why.rstrip('.')}; {again}"


def _private(folder: Path) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # whatever it was


def _address(record: RevisionRecord) -> str:
    """Of a server of the revision that is there."""
    alive = [number for number, each in enumerate(record.servers) if processes.alive(each.pid, each.started)]
    return address.UNIX + gateway.socket_of(record.cluster, (alive or [0])[0])


async def _accepted(candidate: RevisionRecord, stable: RevisionRecord) -> Check:
    """Whether the candidate answers what stable's clients send. A stable model whose samples cannot be read any more
    is no reason to keep it."""
    try:
        records = model.samples(stable.model).records
    except (OSError, ValueError) as error:
        return Check(name="requests", passed=True, detail=f"not sent: stable's samples cannot be read ({error})")
    ours, theirs = await checks.replay(_address(candidate), _address(stable), candidate.service, records)
    return checks.accepted(ours, theirs or [])


async def _server_counts(record: RevisionRecord, number: int, sources: Mapping[str, Source]) -> ServerCounts:
    counted: dict[str, Any] = {}
    declared: dict[str, float] = {}
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):  # its absence is no evidence
        async with (
            address.session(
                address.UNIX + gateway.socket_of(record.cluster, number), timeout_s=COUNTERS_TIMEOUT_S
            ) as server,
            server.get("/metrics/serin.json") as response,
        ):
            if response.status == 200:
                told = await address.read_json(response, MAX_COUNTERS_BYTES)
                counted = told if isinstance(told, dict) else {}
            if sources:
                async with server.get("/metrics") as response:
                    text = (await address.read(response, MAX_COUNTERS_BYTES)).decode()
                    declared = events.parse(text, sources) if response.status == 200 else {}
    return ServerCounts(
        boot=counted.get("boot"),
        latency=counted.get("latency", {}),
        score=counted.get("score", {}),
        events=declared,
    )


async def _main(home: Path, wall: Callable[[], float]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Supervisor(home, wall=wall).run(stop)


def _locked(lock: IO[str]) -> bool:
    """Commands that ask who holds the lock hold it themselves for an instant, so one refusal means nothing."""
    for _ in range(10):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.02)
    return False


def main(home: Path, wall: Callable[[], float] = time.time) -> int:
    """Supervise until SIGTERM. Only one supervisor works on a home: a second one ends at once."""
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / processes.LOCK).open("a+") as lock:
        if not _locked(lock):
            _log.info("another supervisor is running for %s", home)
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()))
        with contextlib.suppress(OSError):  # on a full disk it works on without its number there
            lock.flush()
        os.chdir(home)
        try:
            asyncio.run(_main(home, wall))
        except Exception as error:  # whatever ends it: nobody watches candidates from now on
            fall_back(home)
            if not isinstance(error, UserError | TryAgain):
                raise
            _log.error("%s", error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
