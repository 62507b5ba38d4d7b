"""The `serin` command, and the part of it that is `kubectl serin`."""

import asyncio
import copy
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

import click
import yaml
from click.shell_completion import ShellComplete
from rich.console import Console

from serin import model, release
from serin.cli import view
from serin.cli.judge import commands as judge_commands
from serin.cli.target import connected, pass_platform, remembered, rollout_argument, rollout_named, said
from serin.errors import TryAgain, UserError
from serin.hint import typed
from serin.load import Losses
from serin.model.files import regular_files
from serin.plan import PROFILES, Checks, OnInconclusive, Plan, Stage
from serin.platforms import connect
from serin.platforms.embedded import client, processes, retention
from serin.platforms.embedded.client import Embedded
from serin.platforms.embedded.servers import REPLICAS
from serin.platforms.ports import ALL, Platform, Which
from serin.report import words
from serin.rollout.document import Approval, Candidate, EnvVar, ModelRollout, Phase, Spec, parse

FAULTS: Final = ("errors", "latency", "scores", "crash", "slowstart")
SWITCHES: Final = ("pause", "resume", "approve", "promote", "abort")
LISTED: Final = 20
AWAY_S: Final = 120.0
"""A watch goes on through an API server that is away no longer than this."""
_PIPE_WIDTH: Final = 240
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
TALLY: Final = "load.json"
_POSITIVE: Final = click.FloatRange(0, min_open=True)


class _Commands(click.Group):
    """Lists the switches of a rollout on one line, so that the help fits on a screen."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [
            (name, command.get_short_help_str())
            for name, command in self.commands.items()
            if not command.hidden and name not in SWITCHES
        ]
        first, *others = SWITCHES
        rows.append((first, f"Steer a rollout; likewise {', '.join(others)}."))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _platform(context: click.Context) -> Platform:
    named: str | None = said(context, "platform")
    if named is not None and not named.startswith("embedded:"):
        return connect(named)
    return _existing(_home(context))


def _runs() -> Path:
    """Where a command keeps what it counted."""
    return Path(os.environ.get("SERIN_RUNS", "runs"))


def _home(context: click.Context) -> Path:
    """The folder of the embedded platform."""
    named: str | None = said(context, "platform")
    if named is None:
        home: Path = said(context, "home") or Path(".serin")
        return home.resolve()
    if not named.startswith("embedded:"):
        raise UserError(f"{typed(str(context.info_name))} works only on the embedded platform, not on {named}.")
    return Path(named.removeprefix("embedded:")).resolve()


def _local(*, envvar: str | None = None) -> list[click.Option]:
    """Which platform, for `serin` and its commands; the environment is asked once, by `serin`."""
    return [
        remembered("--platform", metavar="NAME", help="embedded:FOLDER or kserve:NAMESPACE; default embedded:.serin"),
        remembered(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            envvar=envvar,
            hidden=True,
            help="FOLDER of --platform embedded:FOLDER.",
        ),
    ]


def _on_cluster() -> list[click.Option]:
    """Which namespace, for `kubectl serin` and its commands."""
    return [
        remembered("-n", "--namespace", help="Default: the current context's."),
        remembered("--context", help="Context of the kubeconfig."),
    ]


def _cluster(context: click.Context) -> Platform:
    from serin.platforms.kserve.client import KServe

    return KServe.connect(said(context, "namespace"), said(context, "context"))


_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_HELP: Final = "Release models through canaries that promote or roll themselves back."

cli = _Commands(
    "serin", help=_HELP, params=_local(envvar="SERIN_HOME"), context_settings={**_SETTINGS, "obj": _platform}
)
plugin = _Commands("kubectl serin", help=_HELP, params=_on_cluster(), context_settings={**_SETTINGS, "obj": _cluster})
"""The commands that make sense on a cluster; people know where to put -n and --context."""
for group in (cli, plugin):
    click.version_option(package_name="serin", message="serin %(version)s", hidden=True)(group)
    click.help_option("-h", "--help", help="Show this message; --version shows the version.")(group)  # on one line


@cli.command()
@click.option(
    "--replicas", type=click.IntRange(1, 16), help="Model servers per revision; default 2, if memory allows."
)
@click.pass_context
def up(context: click.Context, replicas: int | None) -> None:
    """Start the platform if it is not running."""
    home = _home(context)
    address = client.up(home)
    platform = Embedded(home)
    if replicas is not None:
        platform.store.save_setting(REPLICAS, replicas)
    click.echo(f"serving at {address}")
    problem = platform.problem()
    if problem is not None:
        click.echo(words.sentence(problem))


@cli.command()
@click.pass_context
def down(context: click.Context) -> None:
    """Stop everything; models and rollouts stay on disk."""
    count = client.down(_home(context))
    click.echo(f"stopped {count} processes" if count else "nothing was running")


@cli.command()
@click.option("--service", default=None, help="Only this service.")
@click.option(
    "--since", default=None, metavar="TIME", help="Only those created since: 36h, 7d, or a date such as 2026-11-30."
)
@click.option("--all", "every", is_flag=True, help=f"Show all, not only the latest {LISTED} and those in progress.")
@pass_platform
def status(platform: Platform, service: str | None, since: str | None, *, every: bool) -> None:
    """Show the service and its rollouts."""
    now = datetime.now(UTC)
    which = Which(service=service, since=view.since(since, now) if since is not None else None)
    rollouts = list(platform.rollouts(which if every else replace(which, last=LISTED + 1)))
    click.echo(platform.problem() or str(platform))
    if not rollouts:
        click.echo("no rollouts yet" if which == ALL else "no such rollouts")
        return
    older = len(rollouts) > LISTED and not every
    if older:
        names = {each.metadata.name for each in rollouts}
        under_way = platform.rollouts(replace(which, unfinished=True))
        rollouts = [*(each for each in under_way if each.metadata.name not in names), *rollouts[1:]]
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(view.table(rollouts, now, width=console.width))
    if older:
        click.echo(f"for older ones use {typed('status --all')}, --service or --since")


@cli.command()
@click.option("--dry-run", is_flag=True, help="List what would be deleted, without deleting it.")
@click.pass_context
def prune(context: click.Context, *, dry_run: bool) -> None:
    """Delete old timelines, rollouts, models, logs, and runs in ./runs.

    The supervisor does the same once an hour, runs aside. Models that serve or served before, and all that unfinished
    rollouts need, stay; so do the latest runs.
    """
    store, keep, now = _existing(_home(context)).store, retention.Keep(), datetime.now(UTC)
    pruning = retention.plan(store, keep, now)
    runs = retention.old_runs(Path("runs"), now)
    lines = [
        *(f"model {each}" for each in pruning.models),
        *(f"timeline of rollout {name}" for _, name in pruning.timelines),
        *(f"rollout {name}" for _, name in pruning.rollouts),
        *(f"log {each}" for each in pruning.logs),
        *(f"beginning of log {each}" for each in pruning.long_logs),
        *(f"run {each}" for each in runs),
    ]
    for line in lines:
        click.echo(f"{'would delete' if dry_run else 'deleting'} {line}")
    if not dry_run:
        retention.carry_out(store, pruning, keep, now)
        for run in runs:
            shutil.rmtree(run)
    click.echo("nothing to delete" if not lines else f"{len(lines)} in total")


@cli.command(name="release")
@click.argument("model_folder", type=click.Path(path_type=Path))
@click.option("--service", required=True, help="Name of the service (and of the model in its paths).")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="YAML file with a plan.")
@click.option("--profile", type=click.Choice(list(PROFILES)), help="A predefined plan.")
@click.option(
    "--traffic", default="none", show_default=True, help="Requests per second to send during the rollout, or none."
)
@click.pass_context
def release_command(
    context: click.Context,
    model_folder: Path,
    service: str,
    plan_file: Path | None,
    profile: str | None,
    traffic: str,
) -> None:
    """Release a model directory as a canary and watch until it ends."""
    home = _home(context)
    if model_folder.is_dir():
        regular_files(model_folder.resolve())
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
    requests_per_s = rate(traffic)
    client.up(home)
    platform = Embedded(home)
    folder = _runs()
    if not requests_per_s and platform.champion(service) is not None:
        click.echo(words.unattended(spec.effective_plan))
    with _traffic(platform, service, requests_per_s, folder):
        ended = _watched(platform, release.request(platform, spec, digest).metadata.name, Losses(folder / TALLY))
    _end(ended)


@cli.command()
@rollout_argument
@pass_platform
def watch(platform: Platform, rollout: str | None) -> None:
    """Watch a rollout (default: the latest) until it ends."""
    _end(_watched(platform, rollout_named(platform, rollout).metadata.name))


@cli.command()
@rollout_argument
@pass_platform
def history(platform: Platform, rollout: str | None) -> None:
    """Show what happened step by step, and why."""
    found = rollout_named(platform, rollout)
    click.echo(f"{found.metadata.name} of {found.spec.service}")
    for entry in found.status.history:
        click.echo(
            f"{entry.at:%Y-%m-%d %H:%M:%S}Z  {entry.phase:<12} {entry.traffic:>3} %  {words.sentence(entry.reason)}"
        )


def _switch(name: str, change: dict[str, bool], told: str, text: str) -> None:
    @cli.command(name=name, help=text)
    @rollout_argument
    @pass_platform
    def command(platform: Platform, rollout: str | None) -> None:
        found = rollout_named(platform, rollout)
        if found.status.phase.terminal:
            raise UserError(f"Rollout {found.metadata.name} has ended ({found.status.phase}); nothing was changed.")
        if name == "approve" and found.spec.approval is Approval.NONE and found.status.phase is not Phase.WAITING:
            raise UserError(f"Rollout {found.metadata.name} waits for no approval; nothing was changed.")
        platform.patch_spec(found.metadata.name, **change)
        click.echo(f"{found.metadata.name}: {told}")


_switch("pause", {"paused": True}, "paused; the judge keeps watching", "Keep traffic where it is.")
_switch("resume", {"paused": False}, "resumed", "Continue after a pause.")
_switch("approve", {"approved": True}, "approved", "Approve a rollout that is waiting for approval.")
_switch("promote", {"promote": True}, "promoting, outside the judge's guarantee", "Skip the rest of the plan.")
_switch("abort", {"abort": True}, "aborting, rolling back to stable", "Roll back: all traffic to stable.")


@cli.command()
@click.argument("fault", type=click.Choice(FAULTS))
@click.option("--service", default=None, help="Default: the only service.")
@click.option("--checks/--no-checks", default=True, help="Check at 0 % traffic, or let live traffic find the fault.")
@click.option("--traffic", type=click.FloatRange(0), default=100, show_default=True, help="Requests per second.")
@click.option(
    "--first-stage",
    type=click.IntRange(1, 99),
    default=5,
    show_default=True,
    help="Traffic of the first stage, in %.",
)
@click.option("--rate", type=click.FloatRange(0, 1), default=1, show_default=True, help="Fraction of requests hit.")
@click.pass_context
def drill(
    context: click.Context,
    fault: str,
    service: str | None,
    *,
    checks: bool,
    traffic: float,
    first_stage: int,
    rate: float,
) -> None:
    """Release a deliberately bad candidate and watch it roll back."""
    home = _home(context)
    platform = _existing(home)
    service = service or _only_service(platform)
    champion = platform.champion(service)
    if champion is None:
        raise UserError(f"Service {service} has no model yet; release one with `make run`.")
    client.up(home)
    stages = tuple(Stage(traffic=share, min_seconds=10) for share in sorted({first_stage, 25, 50}))
    spec = Spec(
        service=service,
        candidate=Candidate(
            storage_uri=champion.storage_uri,
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
    prefix = f"drill-{fault}"
    name, _ = release.attach(platform.rollouts(Which(name=prefix)), prefix, serving=False)
    folder = _runs() / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    with _traffic(platform, service, traffic, folder) as tally:
        rollout = release.create(platform, spec, name)
        ended = _watched(platform, rollout.metadata.name, Losses(folder / TALLY))
    exposed = tally()
    click.echo(
        f"requests served by the bad candidate: {ended.status.requests.candidate}; "
        f"failed in total: {exposed.get('failed', 0)} of {exposed.get('sent', 0)}"
    )
    if ended.status.phase is not Phase.ROLLED_BACK:
        raise SystemExit(1)


@cli.command(hidden=True)
@click.option("--service", required=True)
@click.option("--rate", type=_POSITIVE, default=100, show_default=True, help="Requests per second.")
@click.option("--seconds", type=_POSITIVE, default=None, help="Default: until stopped.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the counts, rewritten every second.")
@click.option("--end-with-parent", is_flag=True, help="Stop when standard input ends.")
@pass_platform
def load(
    platform: Platform, service: str, rate: float, seconds: float | None, out: Path | None, end_with_parent: bool
) -> None:
    """Send recorded requests on schedule and count every answer by revision and status."""
    from serin import load as load_generator
    from serin import parent

    if end_with_parent:
        parent.watch(lambda: os.kill(os.getpid(), signal.SIGTERM))
    champion = platform.champion(service)
    if champion is None or platform.address is None:
        raise UserError(f"Service {service} has no model yet; release one with `make run`.")
    records = model.samples(champion.model).records
    tally = asyncio.run(
        load_generator.run_to_file(platform.address, service, records, rate=rate, seconds=seconds, out=out)
    )
    click.echo(json.dumps(tally.document()))


@cli.command()
@click.pass_context
def doctor(context: click.Context) -> None:
    """Show what a cluster is missing for releases, with fixes."""
    from serin.platforms.kserve import doctor as examination
    from serin.platforms.kserve.client import KServe

    context.meta.setdefault("serin.platform", "kserve")
    platform = connected(context)
    if not isinstance(platform, KServe):
        raise UserError(f"{typed('doctor')} checks clusters; name one with --platform kserve:NAMESPACE.")
    reading = examination.read(platform.api, platform.namespace)
    found = examination.findings(reading, datetime.now(UTC))
    for each in found:
        click.echo(f"{each.verdict:<3}  {each.what}: {each.told}")
    if any(each.verdict is examination.Verdict.FIX for each in found):
        raise SystemExit(1)


for judge_command in judge_commands:
    cli.add_command(judge_command)
for name, command in cli.commands.items():
    command.short_help = (command.help or "").split("\n\n")[0]  # lists show it whole
    if name in ("status", "watch", "history", "explain", "doctor", *SWITCHES):
        on_cluster = copy.copy(command)
        on_cluster.params = [*command.params, *_on_cluster()]
        plugin.add_command(on_cluster)
    if name != "plan":
        command.params = [*command.params, *_local()]


def _existing(home: Path) -> Embedded:
    if not (home / "serin.db").exists():
        raise UserError(f"There is no platform in {home}; start one with {typed('up')} or `make run`.")
    return Embedded(home)


def _only_service(platform: Embedded) -> str:
    names = [service.name for service in platform.store.services()]
    if len(names) != 1:
        raise UserError(f"Choose a service with --service; there are {', '.join(names) or 'none'}.")
    return names[0]


def _plan(file: Path) -> object:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Plan {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Plan {file} is not YAML ({' '.join(str(error).split())}).") from error


def rate(traffic: str) -> float:
    """Requests per second, as --traffic says it; 0 for none."""
    if traffic == "none":
        return 0.0
    try:
        per_second = float(traffic)
    except ValueError:
        per_second = math.nan
    if not 0 <= per_second < math.inf:
        raise UserError(f"--traffic {traffic}: give requests per second, or none.")
    return per_second


def _watched(platform: Platform, name: str, losses: Losses | None = None) -> ModelRollout:
    """The rollout at its end, shown until then; what was seen last while the platform is away for a moment. `losses`
    of the traffic that is sent meanwhile are shown, too."""

    silence = view.Silence()

    def look() -> view.Look:
        rollout, now_s = rollout_named(platform, name), time.monotonic()
        lost = losses.recent(now_s) if losses is not None else None
        told = "; ".join(filter(None, (platform.problem(), lost, silence.lasting(rollout, now_s)))) or None
        return rollout, platform.windows(name, last=view.WINDOWS), told

    seen = look()
    seen_s = time.monotonic()

    def read() -> view.Look:
        nonlocal seen, seen_s
        try:
            seen = look()
            seen_s = time.monotonic()
        except TryAgain as error:
            if time.monotonic() - seen_s > AWAY_S:
                raise
            return *seen[:2], str(error)
        return seen

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
    out = (folder / TALLY).resolve()
    out.unlink(missing_ok=True)
    arguments = ("load", "--service", service, "--rate", str(rate), "--out", str(out), "--end-with-parent")
    with (folder / "load.log").open("wb") as log:
        process = subprocess.Popen(
            processes.python("serin.cli.main", "--home", str(platform.store.home), *arguments),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,  # not ours: whoever reads that waits until all who hold it are gone
        )
    try:
        while not out.exists() and process.poll() is None:  # it keeps its count from the first request on
            time.sleep(0.05)
        yield lambda: counts
    finally:
        process.terminate()
        process.communicate(timeout=30)
        counts.update(json.loads(out.read_text(encoding="utf-8")) if out.exists() else {})


def _end(rollout: ModelRollout) -> None:
    click.echo(f"{rollout.status.phase}: {words.sentence(rollout.status.reason)}")
    if rollout.status.phase is not Phase.PROMOTED:
        raise SystemExit(1)


def main() -> None:
    guarded(cli, "serin")


def kubectl() -> None:
    """`kubectl serin`: kubectl runs `kubectl-serin` from the PATH."""
    guarded(plugin, "kubectl serin")


def kubectl_complete() -> None:
    """What kubectl asks of `kubectl_complete-serin`: candidates, then the directive to offer no files."""
    *before, incomplete = sys.argv[1:] or [""]
    for item in ShellComplete(plugin, {}, "kubectl serin", "").get_completions(before, incomplete):
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(":4")


def guarded(command: click.Command, name: str | None = None) -> None:
    """Run a command; a user's mistake ends with one sentence and exit code 2, so do a file that may not be read or
    written and a disk that is full. Files it makes are for this user alone: they hold people's data."""
    os.umask(0o077)
    code = 130

    def terminate(*_: object) -> NoReturn:
        nonlocal code
        code = 128 + signal.SIGTERM
        raise KeyboardInterrupt  # what was started is ended on the way out

    signal.signal(signal.SIGTERM, terminate)
    try:
        command(prog_name=name, standalone_mode=False)
    except UserError as error:
        click.echo(f"serin: {error}", err=True)
        sys.exit(2)
    except TryAgain as error:
        click.echo(f"serin: {error}" + (f" Try again in {error.delay_s:.0f} s." if error.delay_s else ""), err=True)
        sys.exit(3)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        click.echo(f"serin: {error.filename or 'a file'}: {error.strerror}.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"interrupted; a running rollout continues: see {typed('status')}", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
