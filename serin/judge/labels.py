"""Labels that came later, joined with the prediction log: did the candidate's decisions cost more than stable's?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from serin.errors import UserError
from serin.judge.cohorts import Cohort, Labels
from serin.judge.policy import EventMetric, JudgeSpec, Policy, policy_for
from serin.plan import PROFILES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

METRIC: Final = "wrong_decisions"
POLICY: Final[Policy] = policy_for(PROFILES["fast"], JudgeSpec(metrics=(EventMetric(name=METRIC, weight=10.0),)))
"""A state of its own, with almost all of the wealth on what the labels say."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a wrong decision costs, in any unit. `positive` is the decision that a false positive is one of; None when
    both cost the same."""

    false_positive: float = 1.0
    false_negative: float = 1.0
    positive: str | None = None

    def __post_init__(self) -> None:
        if self.positive is None and self.false_positive != self.false_negative:
            raise UserError("Different costs require the positive decision; give it with --positive.")
        if min(self.false_positive, self.false_negative) < 0 or self.largest == 0:
            raise UserError("Costs must not be negative, and at least one must be above 0.")

    @property
    def largest(self) -> float:
        return max(self.false_positive, self.false_negative)


def cohorts(log: Path, labels: Path, *, stable: str, candidate: str, costs: Costs, cohort_s: float) -> list[Cohort]:
    """Cohorts of the requests in the prediction log, by the time of the request.

    `log`: a directory of the predictor's Parquet files. `labels`: CSV or Parquet with the columns request_id, label
    (as decisions are written) and, where a request has several records, row. Harm is the cost over the largest cost.
    Raises `UserError` for files that are something else, unknown revisions, and labels given twice.
    """
    rows = _counts(log, labels, (stable, candidate), costs, cohort_s)
    by_arm = {
        (cohort, revision): Labels(requests, labelled, harm) for cohort, revision, requests, labelled, harm in rows
    }
    for revision in sorted({stable, candidate} - {revision for _, revision in by_arm}):
        raise UserError(f"Prediction log {log} has no requests of {revision}; correct --stable or --candidate.")
    nothing = Labels(0, 0, 0.0)
    return [
        Cohort(
            id=number,
            start_s=number * cohort_s,
            end_s=(number + 1) * cohort_s,
            stage=0,
            stable=by_arm.get((number, stable), nothing),
            candidate=by_arm.get((number, candidate), nothing),
        )
        for number in sorted({number for number, _ in by_arm})
    ]


def _counts(
    log: Path, labels: Path, revisions: Sequence[str], costs: Costs, cohort_s: float
) -> list[tuple[int, str, int, int, float]]:
    """(cohort, revision, requests, labelled ones, their harm)."""
    import duckdb

    if not log.is_dir():
        raise UserError(f"Prediction log {log} is not a directory; give the directory of the predictor's --log.")
    with duckdb.connect() as connection:
        logged = _table(connection, "Prediction log", f"{log}/*.parquet", "parquet")
        given = _table(connection, "Labels", str(labels), "parquet" if labels.suffix == ".parquet" else "csv")
        _needs(f"Prediction log {log}", logged, ("request_id", "row", "time", "revision", "decision"))
        _needs(f"Labels {labels}", given, ("request_id", "label"))
        row = "row" if "row" in given.columns else "0"
        given = given.project(f"request_id::VARCHAR AS request_id, ({row})::BIGINT AS row, label::VARCHAR AS label")
        often = given.aggregate("request_id, row, count(*) AS times").filter("times > 1").order("ALL").limit(1)
        for name, place, times in often.fetchall():
            raise UserError(f"Labels {labels}: request {name}, row {place} has {times} labels; keep one.")
        connection.register("logged", logged)
        connection.register("given", given)
        counts: list[tuple[int, str, int, int, float]] = connection.execute(
            _COUNTS, _arguments(revisions, costs, cohort_s)
        ).fetchall()
    return counts


_COUNTS: Final = """
WITH judged AS (
    SELECT
        floor(epoch(time) / $cohort_s)::BIGINT AS cohort, revision, label,
        CASE WHEN label IS NULL OR label = decision THEN 0.0
             WHEN decision = $positive THEN $false_positive ELSE $false_negative END AS harm
    FROM logged LEFT JOIN given USING (request_id, row)
    WHERE revision IN ($stable, $candidate)
)
SELECT cohort, revision, count(*), count(label), sum(harm) FROM judged GROUP BY ALL ORDER BY ALL
"""


def _arguments(revisions: Sequence[str], costs: Costs, cohort_s: float) -> dict[str, Any]:
    stable, candidate = revisions
    return {
        "stable": stable,
        "candidate": candidate,
        "cohort_s": cohort_s,
        "positive": costs.positive or "",
        "false_positive": costs.false_positive / costs.largest,
        "false_negative": costs.false_negative / costs.largest,
    }


def _table(connection: DuckDBPyConnection, what: str, path: str, kind: str) -> DuckDBPyRelation:
    import duckdb

    try:
        return connection.read_parquet(path) if kind == "parquet" else connection.read_csv(path)
    except duckdb.Error as error:
        raise UserError(f"{what} {path} cannot be read as {kind} ({str(error).splitlines()[0]}).") from error


def _needs(what: str, table: DuckDBPyRelation, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{what} has no column {', '.join(missing)}; it has {', '.join(table.columns)}.")
