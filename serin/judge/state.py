"""The judge's memory: everything it has learned from the windows so far, as one small document."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serin.errors import UserError
from serin.judge.book import Book
from serin.judge.policy import Policy, StagePolicy
from serin.judge.primitive import Floats
from serin.judge.reference import Reference

VERSION: Final = 4
SILENT: Final = 20
"""Answers without a latency (a score) after which a revision is taken to measure none."""
BEFORE: Final = -1
"""The stage of windows from before the rollout."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """`book` follows from the rest. `stage` is -1 before the first stage. `harm`, `claims`: the wealth of each bet;
    `cash`: the part of each harm process's wealth that still waits. `stage_counts`, `earlier_counts`: counts per
    category, [candidate, both arms], of this stage and of those before; `compared`: the same per configured share of
    traffic, for the categories confidence sequences are about. `peak`, `split_peak`: the largest evidence so far;
    `blamed`: the metric behind it. `silent`: good answers since a latency, a score was last reported, [candidate,
    stable].
    """

    policy: Policy
    book: Book
    last_id: int
    stage: int
    stage_start_s: float
    invested_until_s: float | None
    cash: float
    harm: Floats
    claims: Floats
    latency: Reference
    score: Reference
    stage_counts: Floats
    earlier_counts: Floats
    compared: Mapping[float, Floats]
    peak: float
    blamed: str | None
    split_peak: float
    silent: Floats

    def dump(self) -> dict[str, Any]:
        """A versioned JSON document of at most 32 kB; `load` gives back a state that goes on identically."""
        return {
            "version": VERSION,
            "policy": self.policy.model_dump(mode="json"),
            "last_id": self.last_id,
            "stage": self.stage,
            "stage_start_s": self.stage_start_s,
            "invested_until_s": self.invested_until_s,
            "cash": self.cash,
            "harm": self.harm.tolist(),
            "claims": self.claims.tolist(),
            "latency": self.latency.dump(),
            "score": self.score.dump(),
            "stage_counts": self.stage_counts.tolist(),
            "earlier_counts": self.earlier_counts.tolist(),
            "compared": {str(share): counts.tolist() for share, counts in self.compared.items()},
            "peak": self.peak,
            "blamed": self.blamed,
            "split_peak": self.split_peak,
            "silent": self.silent.tolist(),
        }


def load(document: dict[str, Any]) -> State:
    """Raises `UserError` if the document is from another version."""
    if document.get("version") != VERSION:
        found = document.get("version")
        raise UserError(f"The judge's state has version {found}, this serin reads {VERSION}; start a new rollout.")
    try:
        return _loaded(document)
    except (KeyError, TypeError, ValueError) as error:  # pydantic's errors are of the last kind
        raise UserError("The judge's state is from another version of serin; start a new rollout.") from error


def _loaded(document: dict[str, Any]) -> State:
    policy = Policy.model_validate(document["policy"])
    latencies, score_values = Reference.load(document["latency"]), Reference.load(document["score"])
    margin = stage_policy(policy, document["stage"]).margin
    book = Book.of(policy, margin, latencies, score_values)
    shapes = np.shape(document["harm"]), np.shape(document["stage_counts"]), np.shape(document["silent"])
    if shapes != (book.harm.prior.shape, (2, book.categories.count), (2, 2)):
        raise ValueError("bets or categories are others")
    return State(
        policy=policy,
        book=book,
        last_id=document["last_id"],
        stage=document["stage"],
        stage_start_s=document["stage_start_s"],
        invested_until_s=document["invested_until_s"],
        cash=document["cash"],
        harm=np.array(document["harm"], dtype=np.float64),
        claims=np.array(document["claims"], dtype=np.float64),
        latency=latencies,
        score=score_values,
        stage_counts=np.array(document["stage_counts"], dtype=np.float64),
        earlier_counts=np.array(document["earlier_counts"], dtype=np.float64),
        compared={float(share): np.array(counts, dtype=np.float64) for share, counts in document["compared"].items()},
        peak=document["peak"],
        blamed=document["blamed"],
        split_peak=document["split_peak"],
        silent=np.array(document["silent"], dtype=np.float64),
    )


def stage_policy(policy: Policy, stage: int) -> StagePolicy:
    """The last stage of the policy stands for all later ones."""
    return policy.stages[min(max(stage, 0), len(policy.stages) - 1)]
