"""The `ModelRollout` document (serin.dev/v1alpha1): the same on a cluster and in the embedded platform."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from serin.errors import UserError
from serin.judge import JudgeSpec
from serin.plan import PROFILES, Document, Plan, Stored

NAME: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""What KServe's webhook accepts as a name."""
NAMESPACE: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""What Kubernetes accepts as one of a namespace."""


class Phase(StrEnum):
    PENDING = "Pending"
    DARK = "Dark"
    CHECKING = "Checking"
    PROGRESSING = "Progressing"
    WAITING = "Waiting"
    BAKING = "Baking"
    PROMOTED = "Promoted"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        return self in (Phase.PROMOTED, Phase.ROLLED_BACK, Phase.FAILED)


class Approval(StrEnum):
    NONE = "none"
    BEFORE_TRAFFIC = "beforeTraffic"
    BEFORE_FULL = "beforeFull"


class Concurrency(StrEnum):
    """What a rollout does while an older one of the same service is under way."""

    QUEUE = "queue"
    SUPERSEDE = "supersede"


class EnvVar(Document):
    """A setting of the model server. What changes how its program itself is found or loaded (PATH, PYTHONPATH,
    LD_PRELOAD and the like) is none: those are for a whole `predictor`, by who may patch the service."""

    name: Annotated[str, Field(pattern=r"^(SERIN_[A-Z0-9_]+|(OMP|OPENBLAS|MKL)_NUM_THREADS|TZ|LOG_LEVEL)$")]
    value: str


class Candidate(Document):
    """A model, or (on a cluster) a whole `predictor` as an InferenceService has it.

    `digest` is checked before the model is loaded; `runtime` names the program that serves it.
    """

    storage_uri: str | None = None
    digest: str | None = None
    runtime: str = "serin-onnx"
    env: tuple[EnvVar, ...] = ()
    predictor: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.storage_uri is None) == (self.predictor is None):
            raise ValueError("give either storageUri or predictor")
        named = self.digest is not None or self.env or self.runtime != "serin-onnx"
        if self.predictor is not None and named:
            raise ValueError("digest, runtime and env cannot be combined with predictor; put them into it")
        if self.predictor is not None and "canaryTrafficPercent" in self.predictor:
            raise ValueError("predictor.canaryTrafficPercent is set by the rollout; leave it out")
        return self


class Spec(Document):
    """`plan` or `profile`, not both; neither means the profile "balanced".

    `promote` skips what is left of the plan, `abort` ends the rollout with traffic on stable, `approved`
    answers `approval`.
    """

    service: Annotated[str, Field(pattern=NAME, max_length=50)]
    candidate: Candidate
    plan: Plan | None = None
    profile: Literal["fast", "balanced", "careful"] | None = None
    judge: JudgeSpec = JudgeSpec()
    approval: Approval = Approval.NONE
    concurrency: Concurrency = Concurrency.QUEUE
    approved: bool = False
    paused: bool = False
    promote: bool = False
    abort: bool = False

    @model_validator(mode="after")
    def _one_plan(self) -> Self:
        if self.plan is not None and self.profile is not None:
            raise ValueError("spec: give plan or profile, not both")
        return self

    @property
    def effective_plan(self) -> Plan:
        return self.plan or PROFILES[self.profile or "balanced"]


class Check(Stored):
    """One check at 0 % traffic: the measured value and its bound."""

    name: str
    passed: bool
    detail: str


class Requests(Stored):
    stable: int = 0
    candidate: int = 0


class Ratio(Stored):
    """Anytime-valid confidence sequence for candidate / stable; None while unknown."""

    low: float | None = None
    high: float | None = None


class Counted(StrEnum):
    """What the counts of a rollout are of: `REQUESTS`, all of them, where a model server does not tell which were
    predictions."""

    PREDICTIONS = "predictions"
    REQUESTS = "requests"


class MetricEvidence(Stored):
    metric: str
    log10_e: float = Field(alias="log10E")
    judged: bool = True
    safe: bool
    ratio: Ratio
    requests: Requests


class HistoryEntry(Stored):
    at: datetime
    phase: Phase
    stage: int | None
    traffic: int
    reason: str


class Status(Stored):
    """`stage` is the index of the plan's stage, len(stages) in the bake, None before any traffic.

    `traffic` is the candidate's wanted percent; `stage_requests` are the answers while it was in force in this stage,
    `observed_traffic` the candidate's percent of them. `entered_at` is when the phase, or the stage with its pauses,
    began; `counted` what the counts are of, None before there are any; `would_roll_back_at`
    when the judge would have sent the candidate back, had it not been a dry run.
    `judge_state` is the judge's own document, gone at the end; `platform` the platform's.
    """

    phase: Phase = Phase.PENDING
    stage: int | None = None
    traffic: int = 0
    observed_traffic: float | None = None
    stable_revision: str | None = None
    candidate_revision: str | None = None
    evidence: tuple[MetricEvidence, ...] = ()
    log10_e: float = Field(0.0, alias="log10E")
    reason: str = "queued"
    alert: str | None = None
    needs_requests: int | None = None
    needs_seconds: float | None = None
    checks: tuple[Check, ...] = ()
    counted: Counted | None = None
    requests: Requests = Requests()
    stage_requests: Requests = Requests()
    errors: Requests = Requests()
    abandoned: Requests = Requests()
    """Of the errors: requests whose clients gave up before the answer came."""
    started_at: datetime | None = None
    entered_at: datetime | None = None
    finished_at: datetime | None = None
    would_roll_back_at: datetime | None = None
    policy_hash: str | None = None
    judge_state: dict[str, Any] | None = None
    platform: dict[str, Any] | None = None
    history: tuple[HistoryEntry, ...] = ()


class Metadata(Document):
    name: Annotated[str, Field(pattern=NAME, max_length=63)]
    namespace: Annotated[str, Field(pattern=NAMESPACE, max_length=63)] = "default"
    creation_timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))


class ModelRollout(Document):
    api_version: Literal["serin.dev/v1alpha1"] = "serin.dev/v1alpha1"
    kind: Literal["ModelRollout"] = "ModelRollout"
    metadata: Metadata
    spec: Spec
    status: Status = Status()


def parse(document: object) -> ModelRollout:
    """Raises `UserError` naming the offending field."""
    try:
        return ModelRollout.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise UserError(f"ModelRollout: {field}: {first['msg']}.") from error
