"""What a run's report tells besides its evaluation and its rollout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from components.config import Config
from components.evaluate.evaluation import Verdict
from components.preprocess.core import Summary
from components.preprocess.sources import SourceKind
from components.report.evaluation import readable
from serin.report import words
from serin.report.story import Fact
from serin.rollout.document import Phase

DRIFT_SHOWN: Final = 8
SOME_DRIFT: Final = 0.1
MUCH_DRIFT: Final = 0.25
"""Customary readings of the population stability index."""

_SOURCES: Final = {
    SourceKind.FILE: "from a file",
    SourceKind.DOWNLOAD: "downloaded",
    SourceKind.SYNTHETIC: "generated",
}


@dataclass(frozen=True, slots=True)
class DriftRow:
    column: str
    psi: str
    reading: str
    tone: str
    missing_before: str
    missing_now: str


@dataclass(frozen=True, slots=True)
class DataStory:
    """`drift` holds what stands out; `drift_told` says in a sentence what there is to say."""

    synthetic: bool
    told: str
    dropped: tuple[tuple[str, str], ...]
    drift: tuple[DriftRow, ...]
    drift_told: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunStory:
    tone: str
    headline: str
    reason: str
    facts: tuple[Fact, ...]
    data: DataStory
    timings: tuple[Fact, ...]
    identity: tuple[Fact, ...]


def tell(config: Config, result: Mapping[str, Any], summary: Summary, challenger: str | None) -> RunStory:
    """`result`: the run's result.json. `challenger`: the learner that was chosen, None if none was."""
    verdict = Verdict(result["verdict"]) if result["verdict"] else None
    phase = Phase(result["phase"]) if result["phase"] else None
    tone, headline = _headline(verdict, phase, readable(challenger) if challenger else "The challenger")
    return RunStory(
        tone=tone,
        headline=headline,
        reason=(words.sentence if phase else words.printable)(result["reason"] or ""),
        facts=_facts(result, summary),
        data=_data(config, summary),
        timings=tuple(
            Fact(name, words.duration(seconds))
            for name, seconds in result["timings_s"].items()
            if seconds is not None
        ),
        identity=tuple(
            Fact(name, str(value))
            for part in ("digests", "versions")
            for name, value in result[part].items()
            if value is not None
        ),
    )


def _headline(verdict: Verdict | None, phase: Phase | None, challenger: str) -> tuple[str, str]:
    """Tone and sentence."""
    if verdict is None:
        return "plain", "No verdict: nothing was released"
    if verdict is Verdict.HOLD:
        return "plain", "Hold: nothing was released"
    if verdict is Verdict.REJECT:
        return "bad", "Rejected: nothing was released"
    match phase:
        case Phase.PROMOTED:
            return "good", f"Released: {challenger} serves all traffic"
        case Phase.ROLLED_BACK | Phase.ROLLING_BACK:
            return "bad", f"Rolled back: {challenger} won on held-out rows, but not in the rollout"
        case Phase.FAILED:
            return "bad", f"Not released: the rollout of {challenger} could not start"
        case None:
            return "plain", f"Promote: {challenger} won, but there was no rollout"
        case _:
            return "plain", f"Promote: {challenger} won; its rollout is in progress"


def _facts(result: Mapping[str, Any], summary: Summary) -> tuple[Fact, ...]:
    requests = result["requests"]
    found = [
        Fact("rows of data", f"{summary.rows:,}", "synthetic" if summary.source is SourceKind.SYNTHETIC else ""),
        Fact("of which held out", f"{summary.test_rows:,}"),
    ]
    if requests["total"]:
        found += [
            Fact("requests sent by the run", f"{requests['total']:,}"),
            Fact("of which failed", f"{requests['failed']:,}"),
        ]
    return (*found, Fact("total time", words.duration(result["timings_s"]["total"])))


def _data(config: Config, summary: Summary) -> DataStory:
    return DataStory(
        synthetic=summary.source is SourceKind.SYNTHETIC,
        told=(
            f"{summary.rows:,} rows with {summary.columns} columns, {_SOURCES[summary.source]}: "
            f"{summary.train_rows:,} for training, {summary.test_rows:,} held out. {config.target} is "
            f"{summary.positive} in {100 * summary.positive_rate:.1f} % of the rows. "
            f"{words.count(len(summary.features), 'column')} served as features."
        ),
        dropped=tuple(summary.dropped.items()),
        drift=_drift(summary),
        drift_told=_told_drift(summary),
        notes=summary.notes,
    )


def _drift(summary: Summary) -> tuple[DriftRow, ...]:
    return tuple(
        DriftRow(
            column=each.column,
            psi=f"{each.psi:.3f}",
            reading="large" if each.psi > MUCH_DRIFT else "moderate",
            tone="bad" if each.psi > MUCH_DRIFT else "candidate",
            missing_before=f"{100 * each.missing_before:.1f} %",
            missing_now=f"{100 * each.missing_now:.1f} %",
        )
        for each in summary.drift[:DRIFT_SHOWN]
        if each.psi >= SOME_DRIFT
    )


def _told_drift(summary: Summary) -> str:
    if not summary.drift:
        return "There is no champion to compare the data with."
    moved = sum(each.psi >= SOME_DRIFT for each in summary.drift)
    most = max(summary.drift, key=lambda each: each.psi)
    if moved == 0:
        return (
            f"No column has drifted from the champion's training rows: the largest population stability index is "
            f"{most.psi:.3f} ({most.column}), below {SOME_DRIFT}."
        )
    return (
        f"{words.count(moved, 'column')} drifted from the champion's training rows, by the population stability "
        f"index (PSI): moderate from {SOME_DRIFT}, large above {MUCH_DRIFT}."
    )
