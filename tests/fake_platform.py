"""A platform in memory, for driving `reconcile` through whatever the world may do to it."""

import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from serin.judge.window import ArmCounts, Window
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.rollout.document import Candidate, Check, Spec, Status
from serin.rollout.reconcile import (
    Action,
    CreateCandidate,
    Discard,
    Observation,
    Promote,
    Revision,
    RunChecks,
    SetSplit,
    reconcile,
)

START = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
STABLE, CANDIDATE = "churn-00001", "churn-00002"
PASSED = (Check(name="answers", passed=True, detail="0 of 200 requests without a valid answer"),)
FAILED = (Check(name="answers", passed=False, detail="21 of 21 requests without a valid answer"),)


def spec(**changes: object) -> Spec:
    return Spec(service="churn", candidate=Candidate(storage_uri="/models/churn-2"), **changes)


def arm(random: np.random.Generator, requests: int, errors: int = 0) -> ArmCounts:
    latencies = random.lognormal(math.log(0.004), 0.4, requests - errors)
    scores = random.beta(2, 5, requests - errors)
    return ArmCounts(
        requests=requests,
        events={"errors": errors, "rejected": 0},
        latency=counts(LATENCY_EDGES_S, latencies),
        score=counts(SCORE_EDGES, scores),
    )


def counts(edges: tuple[float, ...], values: np.ndarray) -> dict[int, int]:
    buckets, found = np.unique(np.searchsorted(edges, values), return_counts=True)
    return dict(zip(buckets.tolist(), found.tolist(), strict=True))


@dataclass
class World:
    """One service, one rollout. `split` is what the gateway has in force, `wanted` what it was asked for;
    `results` are what the checks will find, None while they do not end."""

    spec: Spec
    status: Status = field(default_factory=Status)
    now: datetime = START
    stable: Revision | None = field(default_factory=lambda: Revision(STABLE, ready=True))
    candidate: Revision | None = None
    split: int = 0
    wanted: int = 0
    results: tuple[Check, ...] | None = PASSED
    checked: bool = False
    starts: bool = True
    confirms: bool = True
    rate: float = 2000.0
    error_rate: float = 0.0
    windows: int = 0
    waits_for: str | None = None
    superseded_by: str | None = None
    foreign_change: str | None = None
    refusal: str | None = None

    def observe(self, *windows: Window) -> Observation:
        return Observation(
            stable=self.stable,
            candidate=self.candidate,
            split=self.split,
            windows=windows,
            checks=self.results if self.checked else None,
            refusal=self.refusal,
            waits_for=self.waits_for,
            superseded_by=self.superseded_by,
            foreign_change=self.foreign_change,
        )

    def traffic(self, seconds: float) -> Window | None:
        """What both arms answered meanwhile; None while there is nothing to compare."""
        if self.status.stage is None or self.candidate is None or self.stable is None:
            return None
        self.windows += 1
        random = np.random.default_rng(self.windows)
        requests = round(self.rate * seconds)
        ours = int(random.binomial(requests, self.split / 100))
        return Window(
            id=self.windows,
            start_s=self.now.timestamp() - seconds,
            end_s=self.now.timestamp(),
            stage=self.status.stage,
            share=self.split / 100,
            stable=arm(random, requests - ours),
            candidate=arm(random, ours, round(ours * self.error_rate)),
        )

    def decide(self, seconds: float = 1.0) -> tuple[Observation, Status, tuple[Action, ...]]:
        """Let time pass and reconcile once, without acting on it."""
        self.now += timedelta(seconds=seconds)
        window = self.traffic(seconds)
        seen = self.observe(*(() if window is None else (window,)))
        return seen, *reconcile(self.spec, self.status, seen, self.now)

    def tick(self, seconds: float = 1.0) -> Status:
        _, self.status, actions = self.decide(seconds)
        for action in actions:
            self.apply(action)
        self.settle()
        return self.status

    def until(self, *phases: str, ticks: int = 400, seconds: float = 1.0) -> Status:
        for _ in range(ticks):
            if self.tick(seconds).phase in phases:
                return self.status
        raise AssertionError(f"never {phases}: {self.status.phase}, {self.status.reason}\n{self.status.history}")

    def settle(self) -> None:
        """The gateway follows what it was asked for, processes come up."""
        if self.confirms:
            self.split = self.wanted
        if self.candidate is not None and self.starts and self.candidate.failure is None:
            self.candidate = replace(self.candidate, ready=True)

    def change(self, **changes: object) -> None:
        self.spec = self.spec.model_copy(update=changes)

    def apply(self, action: Action) -> None:
        """Only what names the revisions in place is done."""
        in_place = (self.stable and self.stable.name, self.candidate and self.candidate.name)
        match action:
            case CreateCandidate():
                self.candidate = self.candidate or Revision(CANDIDATE, ready=False)
            case RunChecks(candidate=candidate, stable=stable):
                assert (stable, candidate) == in_place
                self.checked = True
            case SetSplit(stable=stable, candidate=candidate, percent=percent):
                assert (stable, candidate) == in_place
                self.wanted = percent
            case Promote(candidate=candidate):
                if candidate == in_place[1]:
                    self.stable, self.candidate, self.wanted = self.candidate, None, 0
            case Discard(candidate=candidate):
                if candidate == in_place[1]:
                    self.candidate, self.wanted = None, 0
