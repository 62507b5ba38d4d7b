"""What another policy would have said to recorded windows, and which margins two arms with the same model need."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from serin.errors import UserError
from serin.judge.decision import Action
from serin.judge.judge import observe, start
from serin.judge.policy import LATENCY, SCORES, Policy
from serin.judge.ruling import decide
from serin.judge.state import BEFORE
from serin.judge.timeline import from_document
from serin.judge.window import Window

_LATENCY_MARGINS: Final = (1.0, 1.05, 1.10, 1.16, 1.22, 1.28, 1.35, 1.5, 2.0)
_SCORE_TOLERANCES: Final = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
_SHORTEST: Final = 40
_MOST: Final = 50
"""Windows of a rollout cut from a record, and rollouts."""


@dataclass(frozen=True, slots=True)
class Step:
    """The policy's first answer of its kind in a recorded stage. `at_s` is UTC epoch seconds; `candidate_requests`
    are those up to then."""

    at_s: float
    stage: int
    action: Action
    reason: str
    candidate_requests: int


def replay(windows: Sequence[Window], policy: Policy) -> list[Step]:
    """Judge recorded windows under another policy, up to a rollback.

    Traffic stays as it was recorded: a step "advance" says when the stage could have ended, not what would have
    happened in a next stage that began earlier.
    """
    return list(_steps(windows, policy))


def _steps(windows: Sequence[Window], policy: Policy) -> Iterator[Step]:
    state, candidate = start(policy), 0
    said: set[tuple[int, Action]] = set()
    for window in windows:
        state = observe(state, window)
        if window.stage == BEFORE:
            continue
        candidate += window.candidate.requests
        decision = decide(state, window.end_s)
        if (window.stage, decision.action) not in said:
            said.add((window.stage, decision.action))
            yield Step(window.end_s, window.stage, decision.action, decision.reason, candidate)
        if decision.action is Action.ROLLBACK:
            return


def read(file: Path) -> list[Window]:
    """Windows from a timeline in Parquet or CSV, one row each: id, startS, endS, stage, share, and per arm requests,
    events, latency, score, as "stable.requests" and so on; the last three are JSON objects. A number column
    "stable.errors" (or another event's name) may stand for `events`. Raises `UserError`.
    """
    import duckdb

    with duckdb.connect() as connection:
        try:
            reader = connection.read_parquet if file.suffix == ".parquet" else connection.read_csv
            table = reader(str(file))
            rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise UserError(f"Timeline {file} cannot be read as Parquet or CSV ({first}).") from error
    if not rows:
        raise UserError(f"Timeline {file} has no rows.")
    return [_window(file, number, row) for number, row in enumerate(rows, start=1)]


def _window(file: Path, number: int, row: Mapping[str, Any]) -> Window:
    try:
        return from_document(_document(row))
    except ValueError as error:
        raise UserError(f"Timeline {file}, row {number}: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"Timeline {file} is not one of serin's: column {error} is missing or wrong.") from error


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: row[name] for name in ("id", "startS", "endS", "stage", "share")}
    return plain | {arm: _arm(row, arm) for arm in ("stable", "candidate")}


def _arm(row: Mapping[str, Any], arm: str) -> dict[str, Any]:
    known = {"requests", "events", "latency", "score"}
    own = {name.removeprefix(f"{arm}."): value for name, value in row.items() if name.startswith(f"{arm}.")}
    single = {name: count for name, count in own.items() if name not in known and count is not None}
    histograms = {name: json.loads(own.get(name) or "{}") for name in ("latency", "score")}
    events = json.loads(own["events"]) if own.get("events") else single
    return {"requests": own["requests"], "events": events, **histograms}


@dataclass(frozen=True, slots=True)
class Twins:
    """`rolled_back` of the `rollouts` the record was cut into went back, though both arms have the same model.
    `latency_margin`, `score_tolerance`: the smallest of those tried under which the whole record speaks against harm;
    None if there is none or nothing was measured."""

    rollouts: int
    rolled_back: int
    latency_margin: float | None
    score_tolerance: float | None


def twins(windows: Sequence[Window], policy: Policy) -> Twins:
    """An A/A test: `windows` come from a rollout whose candidate is the same model as stable."""
    before = [window for window in windows if window.stage == BEFORE]
    after = [window for window in windows if window.stage != BEFORE]
    if len(after) < _SHORTEST:
        raise UserError(f"An A/A test needs at least {_SHORTEST} windows with traffic; the record has {len(after)}.")
    rollouts = min(len(after) // _SHORTEST, _MOST)
    size = len(after) // rollouts
    ends = [replay([*before, *after[k * size : (k + 1) * size]], policy)[-1].action for k in range(rollouts)]
    return Twins(
        rollouts,
        ends.count(Action.ROLLBACK),
        next((m for m in _LATENCY_MARGINS if _quiet(windows, _with(policy, LATENCY, margin=m), LATENCY)), None),
        next((t for t in _SCORE_TOLERANCES if _quiet(windows, _with(policy, SCORES, tolerance=t), SCORES)), None),
    )


def _with(policy: Policy, metric: str, **change: float) -> Policy:
    return policy.model_copy(update={metric: getattr(policy, metric).model_copy(update=change)})


def _quiet(windows: Sequence[Window], policy: Policy, metric: str) -> bool:
    """The metric was measured, and bets on its harm lost."""
    state = start(policy)
    for window in windows:
        state = observe(state, window)
    evidence = {each.metric: each.log10_e for each in decide(state, windows[-1].end_s).evidence}
    return evidence[metric] < 0
