"""An embedded platform under measurement: real Envoy, real model servers, load that is counted from outside."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.sockets import OnSocket, ask
from components import config as configuration
from components.config import Config
from components.preprocess import core as preprocessing
from components.preprocess import sources
from components.train import core as training
from serin import model, release
from serin.judge import JudgeSpec, ScoreMetric, Scores
from serin.measure import envoy
from serin.plan import Bake, OnInconclusive, Plan, Stage
from serin.platforms.embedded import client, gateway, processes
from serin.platforms.embedded.client import Embedded
from serin.platforms.embedded.servers import DEFAULT_REPLICAS
from serin.rollout.document import Candidate, EnvVar, ModelRollout, Phase, Spec

ROOT: Final = Path(__file__).parents[1]
TELCO: Final = ROOT / "pipelines" / "configs" / "telco.yaml"
QUICK: Final = Plan(
    stages=(Stage(traffic=50, min_seconds=1, margin=5),),
    bake=Bake(seconds=1),
    deadline_seconds=120,
    start_seconds=20,
    on_inconclusive=OnInconclusive.ROLLBACK,
)
OTHER_MODEL: Final = JudgeSpec(scores=ScoreMetric(expected=Scores.DIFFERENT))
"""The judge as `make run` has it: another learner is expected to score differently."""


@dataclass
class Tally:
    """What the load generator counted."""

    sent: int = 0
    answers: dict[tuple[str, int], int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Tally":
        document = json.loads(path.read_text(encoding="utf-8"))
        answers = {(each["revision"], each["status"]): each["count"] for each in document["answers"]}
        return cls(document["sent"], answers)

    def of(self, revision: str | None) -> int:
        return sum(count for (name, _), count in self.answers.items() if name == revision)

    def lost(self, *, besides: str | None = None) -> int:
        """Requests without a 2xx answer, those that the revision `besides` answered left out."""
        good = sum(count for (_, status), count in self.answers.items() if 200 <= status < 300)
        bad = sum(count for (name, status), count in self.answers.items() if name == besides and status >= 300)
        return self.sent - good - bad


class Bench:
    """A platform of its own with two models: `old` serves, `new` is better."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "a home"
        self.config = configuration.load(TELCO)
        self.old, self.new = self._models()
        os.environ["SERIN_PORT"] = "0"
        client.up(self.home)
        self.platform = Embedded(self.home)
        self.drills = 0

    def _models(self) -> tuple[Path, Path]:
        source = sources.resolve(self.config, config_path=TELCO, cache=ROOT / ".cache", environ=os.environ)
        train, test = self.folder / "train", self.folder / "test"
        preprocessing.preprocess(
            self.config, source.path, source_kind=source.kind, champion=None, train=train, test=test
        )
        quick = _with_trials(self.config, 1)
        for learner in ("rule", "logistic"):
            training.train(quick, learner, train=train, test=test, out=self.folder / learner)
        return self.folder / "rule", self.folder / "logistic"

    def close(self) -> None:
        client.down(self.home)

    def reset(self) -> None:
        """Start again with `old` serving and nothing else known."""
        client.down(self.home)
        self.platform.store.close()
        shutil.rmtree(self.home)
        client.up(self.home)
        self.platform = Embedded(self.home)
        ended = self.follow(self.release(self.old, QUICK))
        assert ended.status.phase is Phase.PROMOTED, ended.status.reason

    def release(self, folder: Path, plan: Plan, judge: JudgeSpec = OTHER_MODEL) -> str:
        digest = model.digest(folder)
        candidate = Candidate(storage_uri=str(folder), digest=digest)
        spec = Spec(service=self.config.service, candidate=candidate, plan=plan, judge=judge)
        return release.request(self.platform, spec, digest).metadata.name

    def move(self, home: Path) -> None:
        """Go on with the platform in another folder; where there is none yet `old` serves."""
        self.home = home
        client.up(home)
        self.platform = Embedded(home)
        if self.platform.champion(self.config.service) is None:
            self.follow(self.release(self.old, QUICK))

    def drill(self, fault: str, plan: Plan, judge: JudgeSpec | None = None) -> str:
        serving = self.platform.champion(self.config.service)
        assert serving is not None
        candidate = Candidate(
            storage_uri=str(serving.model),
            digest=serving.digest,
            runtime="serin-drill",
            env=(EnvVar(name="SERIN_FAULT", value=fault),),
        )
        self.drills += 1
        spec = Spec(service=self.config.service, candidate=candidate, plan=plan, judge=judge or JudgeSpec())
        return release.create(self.platform, spec, f"drill-{self.drills}").metadata.name

    def find(self, name: str) -> ModelRollout:
        found = self.platform.find(name)
        assert found is not None
        return found

    def follow(
        self, name: str, until: Callable[[ModelRollout], bool] | None = None, *, timeout_s: float = 300
    ) -> ModelRollout:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            rollout = self.find(name)
            if (until or (lambda each: each.status.phase.terminal))(rollout):
                return rollout
            time.sleep(0.01)
        raise SystemExit(f"{name} did not get there within {timeout_s:.0f} s: {self.find(name).status.history}")

    def servers(self, revision: str) -> list[int]:
        """The pids of the revision's model servers that are alive, in their order."""
        record = self.platform.store.revision(revision, self.platform.namespace)
        servers = record.servers if record is not None else ()
        return [each.pid for each in servers if each.pid is not None and processes.alive(each.pid, each.started)]

    def await_servers(self, *revisions: str | None) -> None:
        """Wait until the gateway finds all servers of the revisions healthy."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            told = ask(OnSocket(self.home, gateway.ADMIN), "/stats/prometheus?filter=membership_healthy$").decode()
            stats = envoy.parse(told).clusters
            healthy = [
                stats[name].healthy for each in revisions if (name := f"{self.platform.namespace}/{each}") in stats
            ]
            if healthy == [DEFAULT_REPLICAS] * len(revisions):
                return
            time.sleep(0.05)
        raise SystemExit(f"the model servers of {revisions} do not get healthy")

    @contextmanager
    def load(self, rate: float) -> Iterator[Callable[[], Tally]]:
        """Requests at `rate` while the block runs; the function it gives reads the final count after it."""
        out = self.folder / f"load-{time.time_ns()}.json"
        arguments = ("load", "--service", self.config.service, "--rate", str(rate), "--out", str(out))
        process = subprocess.Popen(
            processes.python("serin.cli.main", "--home", str(self.home), *arguments), stdout=subprocess.DEVNULL
        )
        while not out.exists() or Tally.read(out).sent < rate:
            time.sleep(0.05)
        try:
            yield lambda: Tally.read(out)
        finally:
            process.terminate()
            process.wait(30)

    @contextmanager
    def route_changes(self) -> Iterator[list[float]]:
        """The times (epoch seconds, to 5 ms) at which the gateway put new routes in force while the block runs."""
        changes: list[float] = []
        done = threading.Event()

        def watch() -> None:
            seen = b""
            while not done.wait(0.005):
                told = ask(OnSocket(self.home, gateway.ADMIN), "/stats?filter=rds.services.version_text")
                if told != seen:
                    changes.append(time.time())
                    seen = told

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield changes
        finally:
            done.set()
            watcher.join()


def _with_trials(config: Config, trials: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"trials": trials})})
