"""How a rollout proceeds: stages of traffic, their minimum times and margins."""

from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class Document(BaseModel):
    """Base of everything that is stored or sent: frozen, strict about unknown fields, camelCase outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Stored(Document):
    """Part of a status. What another version of serin added to it is passed over."""

    model_config = ConfigDict(extra="ignore")


class OnInconclusive(StrEnum):
    HOLD = "hold"
    ROLLBACK = "rollback"
    PROMOTE = "promote"


class Checks(StrEnum):
    """What a candidate must pass at 0 % traffic."""

    FULL = "full"
    OWN = "own"
    """Its own samples alone: for a change of the signature that the clients know of."""
    NONE = "none"


class Stage(Document):
    """`margin` is the harm that must be ruled out before the next stage: a relative risk above 1."""

    traffic: Annotated[int, Field(ge=1, le=99)]
    min_seconds: Annotated[float, Field(ge=0)] = 60
    margin: Annotated[float, Field(gt=1)] = 2.0


class Bake(Document):
    """The last stage: almost all traffic on the candidate while stable stays warm for an instant rollback."""

    traffic: Annotated[int, Field(ge=1, le=99)] = 99
    seconds: Annotated[float, Field(ge=0)] = 60


class Plan(Document):
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=20)]
    bake: Bake = Bake()
    deadline_seconds: Annotated[float, Field(gt=0)] = 7200
    start_seconds: Annotated[float, Field(gt=0)] = 300
    """How long a candidate may take to become ready."""
    on_inconclusive: OnInconclusive = OnInconclusive.HOLD
    checks: Checks = Checks.FULL

    @model_validator(mode="after")
    def _rising(self) -> Self:
        shares = [stage.traffic for stage in self.stages]
        if shares != sorted(set(shares)):
            raise ValueError(f"plan.stages: traffic must increase from stage to stage, got {shares}")
        return self


def _stages(min_seconds: float, margins: tuple[float, float, float]) -> tuple[Stage, ...]:
    shares = (5, 25, 50)
    return tuple(
        Stage(traffic=share, min_seconds=min_seconds, margin=margin)
        for share, margin in zip(shares, margins, strict=True)
    )


PROFILES: Final[dict[str, Plan]] = {
    "fast": Plan(stages=_stages(60, (5, 3, 2)), bake=Bake(seconds=60)),
    "balanced": Plan(stages=_stages(120, (3, 2, 1.5)), bake=Bake(seconds=300)),
    "careful": Plan(stages=_stages(300, (2, 1.5, 1.3)), bake=Bake(seconds=600)),
}
"""Margins and times of knowledge measured in `benchmarks/judge.py`."""
