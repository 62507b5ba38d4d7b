"""What the judge is told before the first window, and keeps to until the end."""

import hashlib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from serin.plan import PROFILES, Document, Plan

Positive = Annotated[float, Field(gt=0)]
LabelText = Annotated[str, Field(max_length=60)]
Level = Annotated[float, Field(gt=0, lt=0.5)]

ERRORS: Final = "errors"
REJECTED: Final = "rejected"
LATENCY: Final = "latency"
SCORES: Final = "scores"
SPLIT: Final = "split"
BUILT_IN: Final = 2
"""So many of the events are counted at the gateway: errors and rejected requests."""


def metric_name(metric: str) -> str:
    """The metric as people read it; documents and settings keep its key."""
    return "client errors" if metric == REJECTED else metric


class Source(Document):
    """Where a metric's events are counted: `counter`, a Prometheus counter at `/metrics` of the model server, named
    as it stands there, summed over the label sets that have all of `labels`."""

    counter: Annotated[str, Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$", max_length=100)]
    labels: Annotated[Mapping[LabelText, LabelText], Field(max_length=4)] = Field(default_factory=dict)


class EventMetric(Document):
    """A kind of harmful event, counted per request in `ArmCounts.events`.

    Harm means: the candidate's rate is above `margin` times stable's *and* above `floor`.
    A candidate is safe at a stage's margin once its rate is shown to be below margin × max(stable's rate,
    `acceptable_rate`): a larger `acceptable_rate` lets a service with few events promote after fewer requests, but
    regressions below it are not found.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    weight: Positive
    margin: Annotated[float, Field(ge=1)] = 1.05
    floor: Annotated[float, Field(gt=0, lt=0.01)] = 0.001
    acceptable_rate: Annotated[float, Field(gt=0, lt=0.2)] = 0.0025
    source: Source | None = None
    """Needed by a rollout for each of `judge.metrics`. Errors and rejected requests are the gateway's to count."""


class LatencyMetric(Document):
    """Harm means: the candidate is more than `margin` times *and* more than `tolerance_ms` slower anywhere in the
    distribution. The tolerance allows for colder caches, which matter if a service answers in a millisecond: with
    5 % of the traffic even the same model is slower than with 95 %.

    The margin counts in whole buckets of `serin.model.histograms`, factors of 1.0508; 1.10 is two buckets.
    """

    weight: Positive = 0.24
    margin: Annotated[float, Field(ge=1, le=4)] = 1.10
    tolerance_ms: Annotated[float, Field(ge=0)] = 2.0


class Scores(StrEnum):
    """What a candidate's scores are compared with."""

    SAME = "same"
    """Stable's: the same model retrained, or in a new runtime."""
    DIFFERENT = "different"
    """Nothing: another kind of model, that is meant to score differently. They are recorded, not judged."""


class ScoreMetric(Document):
    """Harm means: scores shifted by more than `tolerance`, or concentrated in one decile of stable's.

    `tolerance` counts in whole buckets of 0.01. 0 is the strict mode: the same model in a new runtime.
    """

    weight: Positive = 0.22
    tolerance: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    expected: Scores = Scores.SAME


class JudgeSpec(Document):
    """The part `spec.judge` of a ModelRollout. Weights are relative: they are divided by their sum."""

    alpha: Level = 0.01
    """Bound on the probability of ever rolling back a harmless candidate."""
    beta: Level = 0.05
    """Bound, per stage, on the probability of accepting a candidate that is worse than the stage's margin."""
    split_alpha: Level = 0.001
    """Bound on the probability of a false alarm about the split of traffic; a budget of its own."""
    errors: EventMetric = EventMetric(name=ERRORS, weight=0.53)
    rejected: EventMetric = EventMetric(name=REJECTED, weight=0.01, floor=0.002, acceptable_rate=0.01)
    latency: LatencyMetric = LatencyMetric()
    scores: ScoreMetric = ScoreMetric()
    metrics: Annotated[tuple[EventMetric, ...], Field(max_length=8)] = ()
    """Further metrics, declared by the user."""
    require: tuple[str, ...] = ()
    """Metrics that must be judged: without their counts the candidate never advances."""
    suspicion: Annotated[float, Field(ge=1, le=20)] = 3.0
    """No stage is passed while the combined evidence of harm is at or above this e-value."""
    doubt: Annotated[float, Field(gt=0, le=1)] = 0.3
    patience: Annotated[float, Field(ge=1)] = 5.0
    """A stage lasts up to `patience` times its minimum while the bets on a metric's harm still hold the part `doubt`
    of the wealth put into them."""
    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of the wealth bet from the first request on; the rest waits for harm that begins later."""
    restart_s: Positive = 2400.0
    """Time in which the waiting wealth falls to 1/e as it is put into fresh bets."""
    dry_run: bool = False
    """Only say what would be done: never roll back, advance by time alone. What is not the judge's (the candidate
    dies, its checks fail, somebody aborts) still sends it back."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [metric.name for metric in self.event_metrics]
        if names[:2] != [ERRORS, REJECTED] or len(set(names) | {LATENCY, SCORES, SPLIT}) != len(names) + 3:
            raise ValueError(f"judge.metrics: names must be unique and not those of built-in metrics, got {names}")
        if self.errors.source is not None or self.rejected.source is not None:
            raise ValueError("judge.errors and judge.rejected are counted at the gateway and have no source")
        unknown = set(self.require) - {*names, LATENCY, SCORES}
        if unknown:
            raise ValueError(f"judge.require: no metric is called {sorted(unknown)[0]!r}")
        return self

    @property
    def event_metrics(self) -> tuple[EventMetric, ...]:
        return (self.errors, self.rejected, *self.metrics)

    @property
    def sources(self) -> dict[str, Source]:
        """Of the declared metrics, by name."""
        return {metric.name: metric.source for metric in self.metrics if metric.source is not None}

    @property
    def without_source(self) -> tuple[str, ...]:
        """Declared metrics that nobody counts during a rollout; windows made later may have their counts."""
        return tuple(metric.name for metric in self.metrics if metric.source is None)

    @property
    def shares(self) -> dict[str, float]:
        """The weight of every metric in the combined evidence; they sum to 1."""
        weights = {metric.name: metric.weight for metric in self.event_metrics}
        weights |= {LATENCY: self.latency.weight}
        weights |= {SCORES: self.scores.weight if self.scores.expected is Scores.SAME else 0.0}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


class StagePolicy(Document):
    """`margin`: the relative risk that must be rejected before the stage is passed; None: time alone passes it."""

    min_s: Annotated[float, Field(ge=0)]
    margin: Annotated[float, Field(gt=1)] | None


def _stages(plan: Plan) -> Iterator[StagePolicy]:
    for stage in plan.stages:
        yield StagePolicy(min_s=stage.min_seconds, margin=stage.margin)
    # Next to almost no stable traffic a margin would take hours to reject; the last stage has rejected it.
    yield StagePolicy(min_s=plan.bake.seconds, margin=None)


class Policy(JudgeSpec):
    """Everything the judge's decisions depend on besides the windows. The last stage is the bake."""

    stages: Annotated[tuple[StagePolicy, ...], Field(min_length=1)] = tuple(_stages(PROFILES["fast"]))

    def hash(self) -> str:
        """Names what was asked for: frozen in the rollout's status when it starts. Defaults are left out: another
        version may have other ones, and the judge keeps to those in its state."""
        return "sha256:" + hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def policy_for(plan: Plan, judge: JudgeSpec) -> Policy:
    return Policy(stages=tuple(_stages(plan)), **{name: getattr(judge, name) for name in JudgeSpec.model_fields})
