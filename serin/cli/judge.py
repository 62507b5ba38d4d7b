"""The judge's commands, added to `serin` by its command line."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import yaml
from pydantic import ValidationError

from serin.cli.target import connected, pass_platform, rollout_argument, rollout_named
from serin.errors import UserError
from serin.judge.cohorts import Cohort
from serin.judge.cohorts import windows as mature_windows
from serin.judge.decision import Action, Decision
from serin.judge.forecast import Forecast, Traffic, forecast
from serin.judge.judge import observe, start
from serin.judge.labels import METRIC, POLICY, Costs, cohorts
from serin.judge.policy import JudgeSpec, metric_name, policy_for
from serin.judge.replay import Step, Twins, read, replay, twins
from serin.judge.ruling import decide
from serin.judge.timeline import from_document
from serin.judge.window import Window
from serin.measure.export import read as read_export
from serin.plan import PROFILES, Document, Plan
from serin.platforms.ports import Platform, Which
from serin.report import words
from serin.rollout.document import Candidate, Counted, ModelRollout

_SEED: Final = 7


class PolicyFile(Document):
    """A YAML file with the parts of a ModelRollout's spec that the judge goes by."""

    plan: Plan | None = None
    judge: JudgeSpec = JudgeSpec()


_profile = click.option("--profile", type=click.Choice(list(PROFILES)), help="A predefined plan.")
_policy = click.option(
    "--policy", "policy_file", type=click.Path(path_type=Path), help="YAML file with `plan` and `judge`."
)
_stable = click.option("--stable", metavar="REVISION", help="Stable's revision in a Prometheus export.")
_candidate = click.option("--candidate", metavar="REVISION", help="The candidate's revision in a Prometheus export.")


@click.command()
@click.option("--rps", type=click.FloatRange(min=0.01), default=100, show_default=True, help="Requests per second.")
@click.option(
    "--error-rate", type=click.FloatRange(0, 0.5), default=0.01, show_default=True, help="Stable's error rate."
)
@click.option(
    "--latency-ms", type=click.FloatRange(min=0.1), default=80, show_default=True, help="Stable's median latency."
)
@_profile
@_policy
def plan(rps: float, error_rate: float, latency_ms: float, profile: str | None, policy_file: Path | None) -> None:
    """Forecast a rollout's duration and the exposure to a regression."""
    chosen, judge = _plan_and_judge(profile, policy_file)
    found = forecast(chosen, judge, Traffic(rps, error_rate, latency_ms), np.random.default_rng(_SEED))
    click.echo("\n".join(told_forecast(found, chosen)))


@click.command()
@rollout_argument
@pass_platform
def explain(platform: Platform, rollout: str | None) -> None:
    """Explain the decision on a rollout (default: the latest)."""
    click.echo("\n".join(told(rollout_named(platform, rollout), datetime.now(UTC))))


@click.command(name="replay")
@rollout_argument
@_profile
@_policy
@_stable
@_candidate
@click.pass_context
def replay_command(
    context: click.Context,
    rollout: str | None,
    profile: str | None,
    policy_file: Path | None,
    stable: str | None,
    candidate: str | None,
) -> None:
    """Judge a recorded rollout or a file under another policy.

    A file is a timeline (Parquet, CSV) or a Prometheus export (JSON, from query_range).
    """
    windows, own_plan, own_judge = _record(context, rollout, stable, candidate)
    chosen, judge = _plan_and_judge(profile, policy_file, own_plan, own_judge)
    click.echo("\n".join(told_steps(replay(windows, policy_for(chosen, judge)), windows)))


@click.command()
@rollout_argument
@_policy
@_stable
@_candidate
@click.pass_context
def aa(
    context: click.Context,
    rollout: str | None,
    policy_file: Path | None,
    stable: str | None,
    candidate: str | None,
) -> None:
    """Evaluate an A/A rollout: false rollbacks and the margins needed."""
    if not _is_file(rollout):
        _require_one_model(connected(context), rollout)
    windows, own_plan, own_judge = _record(context, rollout, stable, candidate)
    chosen, judge = _plan_and_judge(None, policy_file, own_plan, own_judge)
    found = twins(windows, policy_for(chosen, judge))
    click.echo("\n".join(told_twins(found)))


@click.command()
@click.argument("labels_file", metavar="LABELS", type=click.Path(path_type=Path))
@click.option("--log", type=click.Path(path_type=Path), required=True, help="Directory of the prediction log.")
@click.option("--stable", metavar="REVISION", required=True, help="Stable's revision.")
@click.option("--candidate", metavar="REVISION", required=True, help="The candidate's revision.")
@click.option("--false-positive", type=click.FloatRange(0), default=1, show_default=True, help="Cost of one.")
@click.option("--false-negative", type=click.FloatRange(0), default=1, show_default=True, help="Cost of one.")
@click.option("--positive", metavar="DECISION", help="The positive decision; required if the costs differ.")
@click.option(
    "--cohort-hours", type=click.FloatRange(min=0.001), default=1, show_default=True, help="Length of a cohort."
)
@click.option(
    "--delay-hours",
    type=click.FloatRange(0),
    default=168,
    show_default=True,
    help="Time for almost all labels to arrive.",
)
def labels(
    labels_file: Path,
    log: Path,
    stable: str,
    candidate: str,
    false_positive: float,
    false_negative: float,
    positive: str | None,
    cohort_hours: float,
    delay_hours: float,
) -> None:
    """Judge by late labels whether the candidate decides worse.

    LABELS is a CSV or Parquet file with request_id and label. Exit code 1: the candidate is worse.
    """
    costs = Costs(false_positive, false_negative, positive)
    found = cohorts(log, labels_file, stable=stable, candidate=candidate, costs=costs, cohort_s=3600 * cohort_hours)
    now_s = datetime.now(UTC).timestamp()
    mature = list(mature_windows(found, METRIC, now_s, longest_delay_s=3600 * delay_hours))
    state = start(POLICY)
    for window in mature:
        state = observe(state, window)
    decision = decide(state, now_s)
    click.echo("\n".join(told_labels(found, mature, decision)))
    if decision.action is Action.ROLLBACK:
        raise SystemExit(1)


commands: Final[list[click.Command]] = [plan, explain, replay_command, aa, labels]


def told(rollout: ModelRollout, now: datetime) -> list[str]:
    """A rollout's decision in words."""
    status, judge = rollout.status, rollout.spec.judge
    lines = [
        f"{rollout.metadata.name} of {rollout.spec.service}: {words.headline(rollout)}.",
        words.sentence(status.reason),
    ]
    if status.would_roll_back_at is not None:
        lines.append(f"Dry run: it would have been rolled back at {status.would_roll_back_at:%H:%M:%S} UTC.")
    if status.alert:
        lines.append(f"Needs attention: {words.sentence(status.alert)}")
    if not status.evidence:
        return [*lines, "Nothing was judged: candidate and stable never shared traffic."]
    if status.counted is Counted.REQUESTS:
        lines.append(words.ALL_REQUESTS)
    lines += [
        "",
        f"Requests: {status.requests.candidate:,} on the candidate, {status.requests.stable:,} on stable; "
        f"{words.harm(status.log10_e, judge)}.",
        f"At most {100 * judge.alpha:g} % of harmless candidates are ever rolled back.",
        f"Intervals of candidate / stable, simultaneously valid at all times with probability {1 - judge.alpha:.3g}:",
    ]
    for each in status.evidence:
        state = words.metric_state(each, judge)
        interval = words.interval(each.ratio.low, each.ratio.high) if each.judged else ""
        lines.append(f"  {metric_name(each.metric):<14} {state:<11} {interval}".rstrip())
    missing = words.waits_for(rollout.spec, status, now)
    return [*lines, *(f"Waiting for {what}." for what in missing)]


def told_steps(steps: list[Step], windows: list[Window]) -> list[str]:
    begun_s = next((window.start_s for window in windows if window.stage >= 0), 0.0)
    lines = [
        f"{words.duration(step.at_s - begun_s):>11}  stage {step.stage + 1}  {step.action:<8}  "
        f"{step.candidate_requests:>9,} candidate requests  {step.reason}"
        for step in steps
    ]
    if not steps:
        return ["The record has no window with candidate traffic."]
    if steps[-1].action is not Action.ROLLBACK:
        lines.append("Never rolled back. Traffic is as recorded, even where a stage would have ended earlier.")
    return lines


def told_forecast(found: Forecast, plan: Plan) -> list[str]:
    lines = [
        f"Stage {k + 1}, {need.traffic} %: at least {words.duration(stage.min_seconds)}; the slowest metric is "
        f"{need.slowest}, about {need.requests:,.0f} requests or {words.duration(need.seconds)}."
        for k, (need, stage) in enumerate(zip(found.stages, plan.stages, strict=True))
    ]
    lines += [
        f"Cannot be judged at this request rate: {need.slowest} at {need.traffic} % needs "
        f"{words.duration(need.seconds)}, the deadline is {words.duration(plan.deadline_seconds)}."
        for need in found.stages
        if need.seconds > plan.deadline_seconds
    ]
    healthy = "not within the deadline" if found.healthy_s is None else f"in {words.duration(found.healthy_s)}"
    lines.append(f"A healthy candidate reaches the bake {healthy} (median of simulated rollouts).")
    if found.exposed is None or found.exposed_s is None:
        lines.append("At this request rate a candidate with 2 points more errors is usually not detected.")
    else:
        lines.append(
            f"A candidate with 2 points more errors is rolled back after {found.exposed:,} of its requests, "
            f"{words.duration(found.exposed_s)}."
        )
    return lines


def told_twins(found: Twins) -> list[str]:
    margin = "none of those tried" if found.latency_margin is None else f"{found.latency_margin:g}"
    tolerance = "none of those tried" if found.score_tolerance is None else f"{found.score_tolerance:g}"
    return [
        f"Rolled back: {found.rolled_back} of {words.count(found.rollouts, 'section')} of the record.",
        f"Smallest latency margin without evidence of harm: {margin}.",
        f"Smallest score tolerance without evidence of harm: {tolerance}.",
    ]


def told_labels(found: list[Cohort], mature: list[Window], decision: Decision) -> list[str]:
    lines = [f"Judged: {len(mature)} of {words.count(len(found), 'cohort')}; the others are waiting for labels."]
    for name in ("stable", "candidate"):
        arms = [getattr(window, name) for window in mature]
        labelled, harm = sum(arm.requests for arm in arms), sum(arm.events[METRIC] for arm in arms)
        cost = f"mean cost {100 * harm / labelled:.2f} % of the maximum" if labelled else "cost unknown"
        lines.append(f"  {name:<9}  {labelled:>9,} labelled decisions, {cost}")
    return [*lines, words.sentence(decision.reason)]


def _plan_and_judge(
    profile: str | None, policy_file: Path | None, plan: Plan = PROFILES["balanced"], judge: JudgeSpec | None = None
) -> tuple[Plan, JudgeSpec]:
    """What the options say, over what is given."""
    judge = judge or JudgeSpec()
    if policy_file is not None:
        wanted = _policy_of(policy_file)
        plan = wanted.plan or plan
        judge = wanted.judge
    return PROFILES[profile] if profile else plan, judge


def _policy_of(file: Path) -> PolicyFile:
    try:
        document: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        return PolicyFile.model_validate(document)
    except OSError as error:
        raise UserError(f"Policy {file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Policy {file} is not YAML ({' '.join(str(error).split())}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise UserError(f"Policy {file}: {field}: {first['msg']}.") from error


def _is_file(rollout: str | None) -> bool:
    return rollout is not None and Path(rollout).suffix in (".json", ".parquet", ".csv")


def _require_one_model(platform: Platform, name: str | None) -> None:
    """Raises `UserError` when the rollout's two revisions are not known to have the same model."""
    rollout = rollout_named(platform, name)
    stable = rollout.status.stable_revision
    earlier = platform.rollouts(Which(service=rollout.spec.service))
    brought = [each for each in earlier if stable is not None and each.status.candidate_revision == stable]
    if not brought:
        raise UserError(
            f"An A/A test needs the same model twice; no rollout is left that says which one was stable in "
            f"{rollout.metadata.name}. Give its timeline.parquet instead if you know that it was the same."
        )
    if not _same_model(brought[-1].spec.candidate, rollout.spec.candidate):
        raise UserError(
            f"An A/A test needs the same model twice; in {rollout.metadata.name} the candidate is another model than "
            f"stable, which {brought[-1].metadata.name} released."
        )


def _same_model(one: Candidate, other: Candidate) -> bool:
    if one.digest is not None and other.digest is not None:
        return one.digest == other.digest
    return (one.storage_uri, one.predictor) == (other.storage_uri, other.predictor)


def _record(
    context: click.Context, rollout: str | None, stable: str | None, candidate: str | None
) -> tuple[list[Window], Plan, JudgeSpec]:
    """The windows of a rollout, or of a file, and the policy it was judged by (the defaults for a file)."""
    if rollout is not None and Path(rollout).suffix == ".json":
        if stable is None or candidate is None:
            raise UserError("A Prometheus export needs --stable and --candidate to name the two revisions.")
        return read_export(Path(rollout), stable, candidate), PROFILES["balanced"], JudgeSpec()
    if rollout is not None and Path(rollout).suffix in (".parquet", ".csv"):
        return read(Path(rollout)), PROFILES["balanced"], JudgeSpec()
    platform = connected(context)
    found = rollout_named(platform, rollout)
    windows = platform.windows(found.metadata.name)
    return [from_document(window) for window in windows], found.spec.effective_plan, found.spec.judge
