"""Ask for a rollout and follow it to its end."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydantic import ValidationError

from components import storage
from components.config import Config, Store
from serin import model, release
from serin.errors import TryAgain, UserError
from serin.judge import JudgeSpec, ScoreMetric, Scores
from serin.plan import PROFILES, Plan
from serin.platforms.ports import Champion, Platform
from serin.rollout.document import Candidate, ModelRollout, Phase, Spec, Status
from serin.text import duration

POLL_S: Final = 0.5
GRACE_S: Final = 120.0
"""Time beyond the plan's own deadlines before following ends with an error."""


def plan_of(config: Config) -> Plan:
    """The config's `release` as a plan. Raises `UserError` naming the offending key."""
    if isinstance(config.release, str):
        if config.release not in PROFILES:
            raise UserError(f"Config: release: there is no profile {config.release}; use {', '.join(PROFILES)}.")
        return PROFILES[config.release]
    try:
        return Plan.model_validate(config.release)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("release", *first["loc"]))
        raise UserError(f"Config: {key}: {first['msg']}.") from error


def address(config: Config, platform: str, model_folder: Path, artifact: str) -> str:
    """Where `platform` (as in `serin.platforms.connect`) finds the model in `model_folder`, an artifact whose URI is
    `artifact`. A cluster reads an artifact where it is if that is in an object store; if not, the model is copied
    into the config's store first."""
    if not platform.startswith("kserve:"):
        return str(model_folder)
    if storage.in_object_store(artifact):
        return storage.canonical(artifact)
    return storage.store_model(model_folder, needed_store(config), config.service)


def needed_store(config: Config) -> Store:
    if config.store is None:
        raise UserError(
            "Config: store: a cluster cannot read this machine's folders; set store.uri, or SERIN_MODEL_STORE, to "
            "s3://BUCKET/PREFIX or pvc://CLAIM/PATH."
        )
    return config.store


def deploy(
    config: Config,
    platform: Platform,
    model_folder: Path,
    storage_uri: str,
    *,
    compared_with: str,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ModelRollout:
    """Release the model in `model_folder`, which `platform` finds at `storage_uri`; return the rollout at its
    terminal phase.

    `compared_with`: where the champion lies that the verdict was about, "" for none. Raises `UserError` when another
    model serves by now.

    Re-attaches to a rollout of the same model that is under way, so the step may be killed and run again at any
    moment. Raises `TryAgain` when the plan's deadlines are over and the rollout is not, or is left to a person.
    """
    model.verify(model_folder)
    digest = model.digest(model_folder)
    plan = plan_of(config)
    champion = platform.champion(config.service)
    if (
        champion is not None
        and champion.digest != digest
        and champion.storage_uri not in (compared_with, storage_uri)
    ):
        raise UserError(
            f"The challenger was compared with {compared_with or 'no champion'}, but {config.service} now serves "
            f"another model ({champion.storage_uri}); run the pipeline again."
        )
    spec = Spec(
        service=config.service,
        candidate=Candidate(storage_uri=storage_uri, digest=digest),
        plan=plan,
        judge=JudgeSpec(scores=ScoreMetric(expected=expected_scores(champion, model_folder, config.store))),
    )
    rollout = release.request(platform, spec, digest)
    tell(f"rollout {rollout.metadata.name}")
    limit_s = plan.deadline_seconds + 2 * plan.start_seconds + plan.bake.seconds + GRACE_S
    begun = now()
    told: object = None
    while not rollout.status.phase.terminal:
        if (now() - begun).total_seconds() > limit_s:
            raise TryAgain(
                f"rollout {rollout.metadata.name} is still {rollout.status.phase} after {duration(limit_s)}"
                f" ({rollout.status.reason}); see `serin status`",
                delay_s=60,
            )
        sleep(POLL_S)
        try:
            found = platform.find(rollout.metadata.name)
            problem = platform.problem()
        except TryAgain as error:
            found, problem = rollout, str(error)
        if found is None:
            raise UserError(f"Rollout {rollout.metadata.name} was deleted while in progress; run the pipeline again.")
        rollout = found
        if _undecided(rollout, now()):
            why = f"({rollout.status.reason}); promote or abort it"
            raise TryAgain(f"rollout {rollout.metadata.name} waits for a decision {why}", delay_s=0)
        line = _line(rollout.status, problem)
        if line != told:
            tell(line)
            told = line
    return rollout


def _undecided(rollout: ModelRollout, now: datetime) -> bool:
    """The plan's deadline is over, and only a person can end the rollout."""
    status, limit_s = rollout.status, rollout.spec.effective_plan.deadline_seconds
    since = status.started_at
    return status.phase is Phase.WAITING and since is not None and (now - since).total_seconds() > limit_s


def _line(status: Status, problem: str | None) -> str:
    if problem is not None:
        return problem
    stage = "" if status.stage is None else f" stage {status.stage + 1} at {status.traffic} %"
    return f"{status.phase}{stage}: {_words(status)}"


def _words(status: Status) -> str:
    """The reason, without the figures that change from second to second."""
    return status.history[-1].reason if status.history and status.phase is not Phase.PENDING else status.reason


def expected_scores(champion: Champion | None, model_folder: Path, store: Store | None = None) -> Scores:
    """Whether the candidate should score as the champion does: yes for the same learner on newer data, no for another
    learner, which `evaluate` has found better just because it scores differently. Nor can it be expected of one that
    can no longer be read."""
    if champion is None:
        return Scores.SAME
    with TemporaryDirectory() as scratch:
        serving = storage.champion(champion.storage_uri, champion.digest or "", Path(scratch), store)
        same = serving is not None and model.signature(serving).learner == model.signature(model_folder).learner
    return Scores.SAME if same else Scores.DIFFERENT


def timeline(rollout: ModelRollout) -> dict[str, Any]:
    """The rollout as JSON, without the judge's inner state."""
    return rollout.model_copy(update={"status": rollout.status.model_copy(update={"judge_state": None})}).model_dump(
        mode="json", by_alias=True
    )
