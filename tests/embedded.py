"""The embedded platform under test: real Envoy, real model servers, live traffic, and people with kill -9."""

import asyncio
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import predictor_models
import urllib3
from onnx import TensorProto, helper

from benchmarks.sockets import OnSocket, ask
from serin import load, model, release
from serin.judge import JudgeSpec, LatencyMetric, policy
from serin.measure import envoy
from serin.model.explanation import EXPLANATION_FILE
from serin.plan import Bake, Checks, Plan, Stage
from serin.platforms.embedded import client, gateway, processes
from serin.platforms.embedded.client import Embedded
from serin.rollout.document import Candidate, EnvVar, ModelRollout, Phase, Spec

DEADLINE_S = 40.0
SERVICE = "churn"
QUICK = Plan(
    stages=(Stage(traffic=20, min_seconds=1, margin=5), Stage(traffic=50, min_seconds=1, margin=3)),
    bake=Bake(traffic=99, seconds=1),
    start_seconds=20,
    deadline_seconds=60,
)
LENIENT = JudgeSpec(
    errors=policy.EventMetric(name="errors", weight=0.45, acceptable_rate=0.1),
    rejected=policy.EventMetric(name="rejected", weight=0.02, floor=0.002, acceptable_rate=0.15),
    latency=LatencyMetric(weight=0.01, margin=4, tolerance_ms=1000),
)
"""On a busy machine latency proves nothing; and few events are no reason to wait for thousands of requests."""


def write_model(root: Path, *, intercept: float = 2.0) -> str:
    """A model with 80 recorded samples; `intercept` makes another one of it. Returns the digest."""
    network = predictor_models.onnx_model()
    for weight in network.graph.initializer:
        if weight.name == "intercept":
            weight.float_data[:] = [intercept]
    told = predictor_models.EXPLANATION
    learner = told.learner.model_copy(update={"base": told.learner.base + intercept - 2})
    predictor_models.write(root, model=network, explanation=told.model_copy(update={"learner": learner}))
    records = tuple(
        {"tenure": n % 70, "Montant dû": float(20 + n), "Contract": ("One year", "Month-to-month")[n % 2]}
        for n in range(80)
    )
    odds = [predictor_models.score(record) for record in records]
    scores = tuple(1 / (1 + math.exp(2 - intercept) * (1 - p) / p) for p in odds)
    samples = model.Samples(records=records, scores=scores)
    (root / model.SAMPLES_FILE).write_text(samples.model_dump_json(), encoding="utf-8")
    return model.seal(root)


CHANGES = ("dropped", "renamed", "retyped")


def change_signature(root: Path, change: str) -> str:
    """Make the model in `root` one that has another idea of the feature Contract than its clients. Its own samples
    are as it wants them. Returns the digest."""
    signature = model.signature(root)
    *others, contract = signature.features
    samples = model.samples(root)
    plain = [{name: value for name, value in record.items() if name != "Contract"} for record in samples.records]
    (root / EXPLANATION_FILE).unlink()
    if change == "renamed":
        others.append(contract.model_copy(update={"name": "contract"}))
        records = [each | {"contract": old["Contract"]} for each, old in zip(plain, samples.records, strict=True)]
    else:
        network = onnx.load(root / model.MODEL_FILE)
        for index, graph_input in enumerate(network.graph.input):
            if graph_input.name == "Contract":
                del network.graph.input[index]
        if change == "retyped":
            others.append(contract.model_copy(update={"dtype": "number"}))
            network.graph.input.append(helper.make_tensor_value_info("Contract", TensorProto.FLOAT, [None, 1]))
        for node in list(network.graph.node):
            if "contract" in node.output:
                network.graph.node.remove(node)
            elif "contract" in node.input:
                node.input.remove("contract")
        onnx.save(network, root / model.MODEL_FILE)
        records = plain if change == "dropped" else [each | {"Contract": 1.0} for each in plain]
        samples = samples.model_copy(
            update={"scores": tuple(predictor_models.score(each | {"Contract": None}) for each in plain)}
        )
    signature = signature.model_copy(update={"features": tuple(others)})
    (root / model.SIGNATURE_FILE).write_text(signature.model_dump_json(), encoding="utf-8")
    samples = samples.model_copy(update={"records": tuple(records)})
    (root / model.SAMPLES_FILE).write_text(samples.model_dump_json(), encoding="utf-8")
    return model.seal(root)


@dataclass
class Home:
    """One platform. Every wait has a deadline, and what is shown when it is over helps."""

    path: Path
    address: str = ""
    platform: Embedded = field(init=False)

    def __post_init__(self) -> None:
        self.address = client.up(self.path)
        self.platform = Embedded(self.path)

    def request(self, folder: Path, **changes: object) -> ModelRollout:
        digest = model.digest(folder)
        spec = Spec(
            service=SERVICE,
            candidate=Candidate(storage_uri=str(folder), digest=digest),
            **({"plan": QUICK, "judge": LENIENT} | changes),
        )
        return release.request(self.platform, spec, digest)

    def drill(self, folder: Path, fault: str, *, checks: Checks, **changes: object) -> ModelRollout:
        name, _ = release.attach(self.platform.rollouts(), f"drill-{fault}", serving=False)
        spec = Spec(
            service=SERVICE,
            candidate=Candidate(
                storage_uri=str(folder), runtime="serin-drill", env=(EnvVar(name="SERIN_FAULT", value=fault),)
            ),
            plan=QUICK.model_copy(update={"checks": checks, "start_seconds": 8, **changes}),
            judge=LENIENT,
        )
        return release.create(self.platform, spec, name)

    def find(self, rollout: ModelRollout) -> ModelRollout:
        return self.platform.store.rollout(rollout.metadata.name, rollout.metadata.namespace)

    def reached(self, rollout: ModelRollout, phase: Phase) -> None:
        """Wait until the rollout is, or was, in `phase`."""
        self.wait(lambda: phase in [entry.phase for entry in self.find(rollout).status.history], phase)

    def ended(self, rollout: ModelRollout, timeout_s: float = DEADLINE_S) -> ModelRollout:
        self.wait(lambda: self.find(rollout).status.phase.terminal, "the end", timeout_s)
        return self.find(rollout)

    def wait(self, holds: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}\n{self.story()}"
            time.sleep(0.02)

    def story(self) -> str:
        lines = []
        for rollout in self.platform.rollouts():
            lines.append(f"{rollout.metadata.name}: {rollout.status.phase} {rollout.status.reason}")
            lines += [f"  {e.at:%H:%M:%S} {e.phase} {e.traffic} % {e.reason}" for e in rollout.status.history]
        for log in sorted((self.path / "logs").glob("*.log")):
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
            lines += [f"--- {log.name}", *tail]
        return "\n".join(lines)

    def kill_supervisor(self) -> None:
        self.wait(lambda: client.supervisor_pid(self.path), "a supervisor")
        pid = client.supervisor_pid(self.path)
        os.kill(pid, signal.SIGKILL)
        self.wait(lambda: client.supervisor_pid(self.path) is None, "its end")

    def servers(self, revision: str) -> list[int]:
        """The pids of the revision's servers that are alive."""
        record = self.platform.store.revision(revision, client.NAMESPACE)
        servers = record.servers if record is not None else ()
        return [each.pid for each in servers if processes.alive(each.pid, each.started)]

    def healthy(self, revision: str) -> int:
        """How many of the revision's servers the gateway finds healthy."""
        told = ask(OnSocket(self.path, gateway.ADMIN), "/stats/prometheus?filter=membership_healthy$").decode()
        cluster = envoy.parse(told).clusters.get(f"{client.NAMESPACE}/{revision}")
        return cluster.healthy if cluster is not None else 0

    def known(self) -> list[int]:
        """The processes that ought to be there: the gateway, and the servers of each revision."""
        servers = [server.pid for each in self.platform.store.revisions() for server in each.servers]
        return sorted([self.platform.store.setting("gateway_pid")[0], *servers])

    def settled(self) -> None:
        """Wait until nothing but gateway and stable is left."""
        self.wait(
            lambda: (
                len(self.platform.store.revisions()) == 1
                and sorted(processes.belonging_to(self.path)) == self.known()
            ),
            "one gateway and one server",
        )


@contextmanager
def home(path: Path) -> Iterator[Home]:
    try:
        yield Home(path.resolve())
    finally:
        client.down(path)


@contextmanager
def traffic(here: Home, folder: Path, *, rate: float = 300, timeout_s: float = 10) -> Iterator[load.Tally]:
    """Live requests while the block runs; the tally is complete after it."""
    tally = load.Tally()
    records = model.samples(folder).records
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        sending = load.run(here.address, SERVICE, records, rate=rate, stop=stop, tally=tally, timeout_s=timeout_s)
        loop.run_until_complete(sending)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield tally
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)
        loop.close()


@contextmanager
def asked(url: str, *, rate: float) -> Iterator[list[int]]:
    """GETs of one address while the block runs: the status of each answer."""
    statuses: list[int] = []
    stop = threading.Event()

    def run() -> None:
        with urllib3.PoolManager(retries=False) as http:
            while not stop.wait(1 / rate):
                statuses.append(http.request("GET", url).status)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join(DEADLINE_S)


def by_revision(tally: load.Tally) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (revision, _), count in tally.answers.items():
        counts[revision] = counts.get(revision, 0) + count
    return counts


def shown(tally: load.Tally) -> str:
    return json.dumps(tally.document())
