"""The `serin` command."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import yaml
from rich.console import Console

from serin import load as load_generator
from serin import model, release, view
from serin.errors import TryAgain, UserError
from serin.judge.commands import commands as judge_commands
from serin.plan import PROFILES, Checks, OnInconclusive, Plan, Stage
from serin.platforms.embedded import client, processes
from serin.platforms.embedded.client import Embedded
from serin.rollout import Candidate, EnvVar, ModelRollout, Phase, Spec, parse

FAULTS: Final = ("errors", "latency", "scores", "crash", "slowstart")
_POSITIVE: Final = click.FloatRange(0, min_open=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="SERIN_HOME",
    default=Path(".serin"),
    show_default=True,
    help="Folder of the embedded platform.",
)
@click.pass_context
def cli(context: click.Context, home: Path) -> None:
    """Release models through canaries that promote or roll themselves back on evidence."""
    context.obj = home.resolve()


@cli.command()
@click.pass_obj
def up(home: Path) -> None:
    """Start the platform, or find it running."""
    click.echo(f"serving at {client.up(home)}")


@cli.command()
@click.pass_obj
def down(home: Path) -> None:
    """Stop everything; models and rollouts stay on disk."""
    count = client.down(home)
    click.echo(f"stopped {count} processes" if count else "nothing was running")


@cli.command()
@click.pass_obj
def status(home: Path) -> None:
    """What serves, and every rollout."""
    platform = _existing(home)
    problem = platform.problem()
    click.echo(problem or f"serving at {platform.address}")
    Console().print(view.table(platform.rollouts(), datetime.now(UTC)))


@cli.command(name="release")
@click.argument("model_folder", type=click.Path(path_type=Path))
@click.option("--service", required=True, help="Name of the service (and of the model in its paths).")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="YAML file with a plan.")
@click.option("--profile", type=click.Choice(list(PROFILES)), help="A ready-made plan.")
@click.option("--traffic", default="none", show_default=True, help="Requests per second to send meanwhile, or none.")
@click.pass_obj
def release_command(
    home: Path, model_folder: Path, service: str, plan_file: Path | None, profile: str | None, traffic: str
) -> None:
    """Release a model directory as a canary and watch it to its end."""
    model.verify(model_folder.resolve())
    digest = model.digest(model_folder)
    document: dict[str, object] = {
        "service": service,
        "candidate": {"storageUri": str(model_folder.resolve()), "digest": digest},
        "profile": profile,
    }
    if plan_file is not None:
        document["plan"] = _plan(plan_file)
    spec = parse({"metadata": {"name": "new"}, "spec": document}).spec
    rate = _rate(traffic)
    client.up(home)
    platform = Embedded(home)
    with _traffic(platform, service, rate, Path("runs")):
        ended = _watch(platform, release.request(platform, spec, digest).metadata.name)
    _end(ended)


@cli.command()
@click.argument("rollout", required=False)
@click.pass_obj
def watch(home: Path, rollout: str | None) -> None:
    """Watch a rollout (the latest one) until it ends."""
    platform = _existing(home)
    _end(_watch(platform, _latest(platform, rollout).metadata.name))


@cli.command()
@click.argument("rollout", required=False)
@click.pass_obj
def history(home: Path, rollout: str | None) -> None:
    """What happened, and why, step by step."""
    found = _latest(_existing(home), rollout)
    click.echo(f"{found.metadata.name} of {found.spec.service}")
    for entry in found.status.history:
        click.echo(f"{entry.at:%Y-%m-%d %H:%M:%S}Z  {entry.phase:<12} {entry.traffic:>3} %  {entry.reason}")


def _switch(name: str, change: dict[str, bool], told: str, text: str) -> None:
    @cli.command(name=name, help=text)
    @click.argument("rollout", required=False)
    @click.pass_obj
    def command(home: Path, rollout: str | None) -> None:
        platform = _existing(home)
        found = _latest(platform, rollout)
        if found.status.phase.terminal:
            raise UserError(f"Rollout {found.metadata.name} has ended ({found.status.phase}); nothing was changed.")
        platform.store.patch_spec(found.metadata.name, found.metadata.namespace, **change)
        click.echo(f"{found.metadata.name}: {told}")


_switch("pause", {"paused": True}, "paused; the judge goes on watching", "Hold the split where it is.")
_switch("resume", {"paused": False}, "resumed", "Go on after a pause.")
_switch("approve", {"approved": True}, "approved", "Answer a rollout that waits for approval.")
_switch("promote", {"promote": True}, "promoting, outside the judge's guarantee", "Skip what is left of the plan.")
_switch("abort", {"abort": True}, "aborting, traffic goes back to stable", "End a rollout with traffic on stable.")


@cli.command()
@click.argument("fault", type=click.Choice(FAULTS))
@click.option("--service", default=None, help="Default: the only service there is.")
@click.option("--checks/--no-checks", default=True, help="Check at 0 % traffic first, or let live traffic find it.")
@click.option("--traffic", type=click.FloatRange(0), default=100, show_default=True, help="Requests per second.")
@click.option(
    "--first-stage", type=click.IntRange(1, 99), default=5, show_default=True, help="Percent to begin with."
)
@click.option("--rate", type=click.FloatRange(0, 1), default=1, show_default=True, help="Share of requests it hits.")
@click.pass_obj
def drill(
    home: Path, fault: str, service: str | None, *, checks: bool, traffic: float, first_stage: int, rate: float
) -> None:
    """Release a deliberately bad candidate and show the way back."""
    platform = _existing(home)
    service = service or _only_service(platform)
    champion = platform.champion(service)
    if champion is None:
        raise UserError(f"Service {service} serves nothing yet; release a first model with `make run`.")
    client.up(home)
    stages = tuple(Stage(traffic=share, min_seconds=10) for share in sorted({first_stage, 25, 50}))
    spec = Spec(
        service=service,
        candidate=Candidate(
            storage_uri=str(champion.model),
            digest=champion.digest,
            runtime="serin-drill",
            env=(EnvVar(name="SERIN_FAULT", value=fault), EnvVar(name="SERIN_FAULT_RATE", value=str(rate))),
        ),
        plan=Plan(
            stages=stages,
            start_seconds=20,
            deadline_seconds=300,
            on_inconclusive=OnInconclusive.ROLLBACK,
            checks=Checks.FULL if checks else Checks.NONE,
        ),
    )
    name, _ = release.attach(platform.rollouts(), f"drill-{fault}", serving=False)
    folder = Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    with _traffic(platform, service, traffic, folder) as tally:
        rollout = release.create(platform, spec, name)
        ended = _watch(platform, rollout.metadata.name)
    exposed = tally()
    click.echo(
        f"user requests the bad candidate saw: {ended.status.requests.candidate}; "
        f"failed in all: {exposed.get('failed', 0)} of {exposed.get('sent', 0)}"
    )
    if ended.status.phase is not Phase.ROLLED_BACK:
        raise SystemExit(1)


@cli.command(hidden=True)
@click.option("--service", required=True)
@click.option("--rate", type=_POSITIVE, default=100, show_default=True, help="Requests per second.")
@click.option("--seconds", type=_POSITIVE, default=None, help="Default: until stopped.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the counts, renewed every second.")
@click.pass_obj
def load(home: Path, service: str, rate: float, seconds: float | None, out: Path | None) -> None:
    """Send recorded requests on schedule and count every answer by revision and status."""
    platform = _existing(home)
    champion = platform.champion(service)
    if champion is None or platform.address is None:
        raise UserError(f"Service {service} serves nothing yet; release a first model with `make run`.")
    records = model.samples(champion.model).records
    tally = asyncio.run(
        load_generator.run_to_file(platform.address, service, records, rate=rate, seconds=seconds, out=out)
    )
    click.echo(json.dumps(tally.document()))


for judge_command in judge_commands:
    cli.add_command(judge_command)


def _existing(home: Path) -> Embedded:
    if not (home / "serin.db").exists():
        raise UserError(f"There is no platform in {home}; start one with `serin up` or `make run`.")
    return Embedded(home)


def _only_service(platform: Embedded) -> str:
    names = [service.name for service in platform.store.services()]
    if len(names) != 1:
        raise UserError(f"Say which service with --service; there are {', '.join(names) or 'none'}.")
    return names[0]


def _latest(platform: Embedded, name: str | None) -> ModelRollout:
    if name is not None:
        return platform.store.rollout(name, platform.namespace)
    rollouts = platform.rollouts()
    if not rollouts:
        raise UserError("There is no rollout yet; start one with `make run` or `serin release`.")
    return rollouts[-1]


def _plan(file: Path) -> object:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Plan {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Plan {file} is not YAML ({' '.join(str(error).split())}).") from error


def _rate(traffic: str) -> float:
    if traffic == "none":
        return 0.0
    try:
        rate = float(traffic)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise UserError(f"--traffic {traffic}: give requests per second, or none.")
    return rate


def _watch(platform: Embedded, name: str) -> ModelRollout:
    def read() -> tuple[ModelRollout, list[dict[str, object]]]:
        found = platform.store.rollout(name, platform.namespace)
        return found, platform.store.windows(name, platform.namespace, last=view.WINDOWS)

    return view.follow(
        read,
        console=Console(),
        until=lambda rollout: rollout.status.phase.terminal,
        sleep=time.sleep,
    )


@contextmanager
def _traffic(platform: Embedded, service: str, rate: float, folder: Path) -> Iterator[Callable[[], dict[str, int]]]:
    """Send traffic while the block runs; yields a function that gives the final counts after it."""
    counts: dict[str, int] = {}
    if rate <= 0 or platform.champion(service) is None:
        yield lambda: counts
        return
    folder.mkdir(parents=True, exist_ok=True)
    out = (folder / "load.json").resolve()
    out.unlink(missing_ok=True)
    arguments = ("load", "--service", service, "--rate", str(rate), "--out", str(out))
    process = subprocess.Popen(
        processes.python("serin.cli", "--home", str(platform.store.home), *arguments), stdout=subprocess.DEVNULL
    )
    try:
        while not out.exists() and process.poll() is None:  # it keeps its count from the first request on
            time.sleep(0.05)
        yield lambda: counts
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        counts.update(json.loads(out.read_text(encoding="utf-8")) if out.exists() else {})


def _end(rollout: ModelRollout) -> None:
    click.echo(f"{rollout.status.phase}: {rollout.status.reason}")
    if rollout.status.phase is not Phase.PROMOTED:
        raise SystemExit(1)


def main() -> None:
    guarded(cli)


def guarded(command: click.Command) -> None:
    """Run a command; a user's mistake ends with one sentence and exit code 2."""
    try:
        command(standalone_mode=False)
    except UserError as error:
        click.echo(f"serin: {error}", err=True)
        sys.exit(2)
    except TryAgain as error:
        click.echo(f"serin: {error} Try again in {error.delay_s:.0f} s.", err=True)
        sys.exit(3)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the rollout goes on: look with `serin status`", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
