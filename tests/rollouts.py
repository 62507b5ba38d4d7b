"""Whole rollouts in memory: the real `reconcile` and the real judge, over simulated traffic and a fake clock."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from serin.judge.window import ArmCounts, Window
from serin.measure.windows import to_document
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.plan import Bake, Checks, Plan, Stage
from serin.rollout.document import Candidate, Check, Metadata, ModelRollout, Spec
from serin.rollout.reconcile import Discard, Observation, Promote, Revision, SetSplit, reconcile

START = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
TICK_S = 0.5
SHORT = Plan(
    stages=(
        Stage(traffic=5, min_seconds=10, margin=5),
        Stage(traffic=25, min_seconds=10, margin=3),
        Stage(traffic=50, min_seconds=10, margin=2),
    ),
    bake=Bake(traffic=99, seconds=10),
    deadline_seconds=600,
)
GOOD_CHECKS = (
    Check(name="answers", passed=True, detail="0 of 200 requests without a valid answer (stable: 0 of 200)"),
    Check(name="parity", passed=True, detail="served scores match those in training (largest difference 6e-08)"),
    Check(name="latency", passed=True, detail="median 3.1 ms, stable 3.0 ms"),
)


@dataclass(frozen=True)
class Behaviour:
    """How a revision answers: error rate, how many times slower than 4 ms, centre of the logits of its scores."""

    errors: float = 0.0
    slower: float = 1.0
    logit: float = -1.0


@dataclass(frozen=True)
class Frame:
    """What a reader of the store sees at one moment."""

    rollout: ModelRollout
    windows: list[dict[str, Any]]
    now: datetime


def rollout(name: str = "churn-2", *, plan: Plan = SHORT, **spec: Any) -> ModelRollout:
    return ModelRollout(
        metadata=Metadata(name=name, creation_timestamp=START),
        spec=Spec(
            service="churn",
            candidate=Candidate(storage_uri="file:///models/churn-2", digest="sha256:" + "ab" * 32),
            plan=plan,
            **spec,
        ),
    )


def run(
    wanted: ModelRollout,
    *,
    stable: Behaviour | None = Behaviour(errors=0.002),
    candidate: Behaviour = Behaviour(errors=0.002),
    checks: tuple[Check, ...] = GOOD_CHECKS,
    rate: float = 200,
    limit_s: float = 600,
    seed: int = 7,
) -> Iterator[Frame]:
    """One frame per tick until the rollout has ended. `stable` None: the first model of the service."""
    random = np.random.default_rng(seed)
    now, split, windows = START, 0, []
    seen = Observation(stable=Revision("churn-00001", ready=True) if stable else None)
    while now < START + timedelta(seconds=limit_s):
        window = None
        if wanted.status.stage is not None and seen.candidate is not None and stable is not None and split:
            window = _window(random, wanted, now, split, stable, candidate, rate)
        status, actions = reconcile(
            wanted.spec, wanted.status, replace(seen, split=split, windows=(window,) if window else ()), now
        )
        wanted = wanted.model_copy(update={"status": status})
        if window:
            windows.append(to_document(window))
        yield Frame(wanted, list(windows), now)
        if status.phase.terminal:
            return
        for action in actions:
            if isinstance(action, SetSplit):
                split = action.percent
            elif isinstance(action, Promote):
                seen, split = replace(seen, stable=seen.candidate, candidate=None), 0
            elif isinstance(action, Discard):
                seen, split = replace(seen, candidate=None), 0
        if seen.candidate is None and status.phase == "Dark":
            seen = replace(seen, candidate=Revision("churn-00002", ready=now > START + timedelta(seconds=2)))
        elif status.phase == "Dark":
            seen = replace(seen, candidate=Revision("churn-00002", ready=True))
        elif status.phase == "Checking":
            seen = replace(seen, checks=checks)
        now += timedelta(seconds=TICK_S)


def last(wanted: ModelRollout, **behaviour: Any) -> Frame:
    *_, frame = run(wanted, **behaviour)
    return frame


def _window(
    random: np.random.Generator,
    wanted: ModelRollout,
    now: datetime,
    split: int,
    stable: Behaviour,
    candidate: Behaviour,
    rate: float,
) -> Window:
    requests = int(random.poisson(rate * TICK_S))
    routed = int(random.binomial(requests, split / 100))
    return Window(
        id=round((now - START).total_seconds() / TICK_S),
        start_s=now.timestamp() - TICK_S,
        end_s=now.timestamp(),
        stage=wanted.status.stage or 0,
        share=split / 100,
        stable=_answers(random, requests - routed, stable),
        candidate=_answers(random, routed, candidate),
    )


def _answers(random: np.random.Generator, requests: int, behaviour: Behaviour) -> ArmCounts:
    errors = int(random.binomial(requests, behaviour.errors))
    latencies = random.lognormal(math.log(0.004 * behaviour.slower), 0.4, requests - errors)
    scores = 1 / (1 + np.exp(-random.normal(behaviour.logit, 1.2, requests - errors)))
    return ArmCounts(
        requests=requests,
        events={"errors": errors, "rejected": 0},
        latency=_counts(LATENCY_EDGES_S, latencies),
        score=_counts(SCORE_EDGES, scores),
    )


def _counts(edges: tuple[float, ...], values: np.ndarray) -> dict[int, int]:
    buckets, counts = np.unique(np.searchsorted(edges, values, side="left"), return_counts=True)
    return dict(zip(buckets.tolist(), counts.tolist(), strict=True))


NO_CHECKS = SHORT.model_copy(update={"checks": Checks.NONE})
