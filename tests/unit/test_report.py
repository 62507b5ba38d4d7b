"""The pages: complete, self-contained, true to their figures, and deaf to hostile names."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
import rollouts
from hypothesis import given
from hypothesis import strategies as st
from rollouts import Behaviour, Frame

from components.config import Config, Costs, Data
from components.evaluate.evaluation import (
    Candidate,
    Check,
    Curves,
    Difference,
    Evaluation,
    Metrics,
    Side,
    Slice,
    Verdict,
)
from components.preprocess.core import Summary
from components.preprocess.profile import Drift
from components.preprocess.sources import SourceKind
from components.report import evaluation_html, run_html
from serin.report.charts import Axis, Plot, nice_top, time_ticks
from serin.report.page import rollout_html
from serin.report.story import tell
from serin.rollout.document import Check as RolloutCheck
from serin.rollout.document import MetricEvidence, ModelRollout, Phase, Ratio, Requests, Status

HOSTILE = "<script>alert('x')</script>&\"'"
VOID = {"meta", "br", "path", "img"}


class Page(HTMLParser):
    """Checks nesting while it collects the words a reader sees, element by element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data)


def read(html: str) -> Page:
    """Parses a page that must load nothing, run nothing and hold finite numbers only."""
    page = Page(html)
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    assert not {name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")}
    assert "url(" not in html and "@import" not in html and "://" not in html.replace("file://", "")
    drawn = [value for name, value in page.attributes if name in ("d", "style")]
    assert not re.search(r"nan|inf|None|e[-+]\d", " ".join(drawn))
    return page


@pytest.fixture(scope="module")
def promoted() -> Frame:
    return rollouts.last(rollouts.rollout())


@pytest.fixture(scope="module")
def rolled_back() -> Frame:
    return rollouts.last(rollouts.rollout(), candidate=Behaviour(errors=0.5))


def test_a_rollout_page_tells_how_it_ended_and_with_what_exposure(promoted, rolled_back):
    for frame, said in ((promoted, "Promoted after"), (rolled_back, "Rolled back after")):
        status = frame.rollout.status
        page = read(rollout_html(frame.rollout, frame.windows))
        assert said in page.text and "churn-2" in page.text
        assert f"{status.requests.candidate:,}" in page.texts and f"{status.errors.candidate:,}" in page.texts
        for entry in status.history:
            assert entry.reason.rstrip(".")[1:] in page.text
        for check in status.checks:
            assert check.detail in page.text
        assert "Traffic to the candidate" in page.text and "Evidence of harm" in page.text


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("dressed", [True, False])
def test_every_phase_has_a_page_with_and_without_windows(phase, dressed, promoted):
    status = promoted.rollout.status.model_copy(update={"phase": phase}) if dressed else Status(phase=phase)
    page = read(rollout_html(promoted.rollout.model_copy(update={"status": status}), []))
    assert "no charts over time" in page.text
    assert page.text.startswith("churn · rollout churn-2")


def test_every_moment_of_a_rollout_has_a_page():
    frames = list(rollouts.run(rollouts.rollout(), candidate=Behaviour(errors=0.03), rate=60))
    for frame in frames[:: max(1, len(frames) // 10)]:
        read(rollout_html(frame.rollout, frame.windows))


def test_a_first_model_has_no_baseline_and_the_page_says_so():
    frame = rollouts.last(rollouts.rollout(), stable=None)
    assert "no baseline to compare with" in read(rollout_html(frame.rollout, frame.windows)).text


def test_the_drawn_evidence_ends_where_the_judges_did(rolled_back):
    story = tell(rolled_back.rollout, rolled_back.windows)
    chart = next(chart for chart in story.charts if chart.title.startswith("Evidence"))
    line = next(mark for mark in chart.marks if mark.shape == "line")
    last_y = float(re.findall(r" ([\d.]+)(?=L|h)", line.path)[-1])
    limit_y = next(note.at for note in chart.notes if note.text == "roll back")
    assert rolled_back.rollout.status.log10_e >= 2 and last_y <= limit_y
    heights = [float(y) for y in re.findall(r" ([\d.]+)(?=L|h)", line.path)]
    assert heights[0] == 100 and len(heights) > 1


def test_wanted_traffic_is_drawn_from_the_history(promoted):
    chart = next(chart for chart in tell(promoted.rollout, promoted.windows).charts if chart.wide)
    for stage in (5, 25, 50):
        assert f" {100 - stage}L" in next(mark for mark in chart.marks if mark.shape == "line").path
    assert [span.text for span in chart.spans][-3:] == ["50 %", "bake 99 %", "100 %"]


def test_names_of_short_spans_are_left_out_whole(promoted):
    """A strut before each name makes one that does not fit wrap, out of sight; its text stays as the span's title."""
    html = rollout_html(promoted.rollout, promoted.windows)
    spans = re.findall(r'title="([^"]*)"><i></i><b>([^<]*)</b></span>', html)
    assert ("bake 99 %", "bake 99 %") in spans and all(title == name for title, name in spans)
    style = re.search(r"\.spans span \{(.*?)\}", html, re.DOTALL)[1]
    assert "flex-wrap: wrap" in style and "overflow: hidden" in style and "padding" not in style


def test_on_a_phone_every_cell_says_what_it_is(promoted):
    """Columns have no headings there: rows are blocks, so that nothing scrolls sideways."""
    html = run_html(
        CONFIG,
        result=result(),
        data=summary(drift=(Drift(column="c", psi=0.31, missing_before=0.01, missing_now=0.2),)).model_dump(
            mode="json"
        ),
        evaluation=evaluation().model_dump(mode="json"),
        rollout=promoted.rollout,
        windows=promoted.windows,
    )
    assert "overflow-x" not in html
    tables = [table for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL) if "<thead>" in table]
    assert len(tables) == 8
    for table in tables:
        for row in re.findall(r"<tr.*?</tr>", table.split("</thead>")[1], re.DOTALL):
            _, *cells = re.findall(r"<td([^>]*)>([^<]*)", row)
            assert cells
            for attributes, text in cells:
                assert "data-of=" in attributes or text in ("", "challenger"), row


def test_ratios_are_shown_in_words_and_on_the_axis(promoted):
    def of(metric: str, low: float | None, high: float | None, log10_e: float = 0.0) -> MetricEvidence:
        requests = Requests(stable=10, candidate=10)
        return MetricEvidence(
            metric=metric, log10_e=log10_e, safe=True, ratio=Ratio(low=low, high=high), requests=requests
        )

    evidence = (
        of("errors", 0.5, 2.0),
        of("latency", None, 1.31),
        of("rejected", 4.2, None, 4),
        of("scores", None, None),
    )
    status = promoted.rollout.status.model_copy(update={"evidence": evidence})
    rollout = promoted.rollout.model_copy(update={"status": status})
    page = read(rollout_html(rollout, promoted.windows))
    assert "0.5 to 2 × stable" in page.text and "at most 1.31 × stable" in page.text
    assert "at least 4.2 × stable" in page.text
    rows = {row.name: row for row in tell(rollout, []).metrics}
    assert rows["errors"].low + rows["errors"].high == pytest.approx(100)
    assert (rows["latency"].low, rows["client errors"].high) == (0, 100)
    assert rows["scores"].low == rows["scores"].high and rows["client errors"].remark == "harm"


def test_hostile_words_stay_words(promoted):
    status = promoted.rollout.status.model_copy(
        update={
            "reason": HOSTILE,
            "alert": HOSTILE,
            "stable_revision": HOSTILE,
            "candidate_revision": HOSTILE,
            "checks": (RolloutCheck(name=HOSTILE, passed=False, detail=HOSTILE),),
            "history": tuple(
                entry.model_copy(update={"reason": HOSTILE}) for entry in promoted.rollout.status.history
            ),
        }
    )
    page = read(rollout_html(promoted.rollout.model_copy(update={"status": status}), promoted.windows))
    assert page.text.count("alert('x')") >= 6 + len(status.history)


# runs and evaluations


def figures(log_loss: float, **others: Any) -> Metrics:
    known = {"brier": 0.13, "auc": 0.84, "calibration_error": 0.02, "cost": 0.43}
    return Metrics(log_loss=log_loss, **{**known, "selection_rate": 0.5, "true_positive_rate": 0.87, **others})


def side(learner: str, log_loss: float, digest: str | None) -> Side:
    curves = Curves(
        roc=((0.0, 0.0, 1.0), (0.2, 0.7, 0.6), (1.0, 1.0, 0.01)),
        calibration=((50, 0.05, 0.04), (50, 0.3, 0.35), (50, 0.7, 0.62)),
        scores=tuple(3 if k < 50 else 1 for k in range(100)),
    )
    return Side(learner=learner, digest=digest, threshold=0.17, metrics=figures(log_loss), curves=curves)


def evaluation(verdict: Verdict = Verdict.PROMOTE, **update: Any) -> Evaluation:
    return Evaluation(
        verdict=verdict,
        reason="xgboost is better than the champion (rule), and passes all guards.",
        rows=1384,
        events=377,
        level=0.95,
        resamples=2000,
        candidates=(
            Candidate(learner="logistic", digest="sha256:aa", log_loss=0.4175, auc=0.8435, cost=0.4222),
            Candidate(learner="xgboost", digest="sha256:bb", log_loss=0.4125, auc=0.8471, cost=0.4234),
        ),
        challenger=side("xgboost", 0.41607, "sha256:bb"),
        champion=side("rule", 0.4882, "sha256:cc"),
        differences=(
            Difference(metric="log_loss", value=-0.07218, low=-0.08892, high=-0.05505),
            Difference(metric="cost", value=0.03902, low=-0.02382, high=0.08578),
            Difference(metric=f"log_loss[gender={HOSTILE}]", value=0.01, low=-0.03, high=0.05),
        ),
        checks=(
            Check(name="log_loss", value=-0.05505, bound=0, direction="<", passed=True, broken=False),
            Check(name="cost", value=0.08578, bound=0.02377, direction="<=", passed=False, broken=False),
            Check(
                name=f"log_loss[gender={HOSTILE}]", value=-0.03, bound=0.02, direction="<=", passed=True, broken=False
            ),
        ),
        slices=tuple(
            Slice(
                column=column,
                value=HOSTILE,
                rows=668,
                events=183,
                protected=column == "gender",
                challenger=figures(0.4087, true_positive_rate=None),
                champion=figures(0.4803),
            )
            for column in ("gender", "Contract")
        ),
        notes=("gender = x has too few rows (12) to be checked.",),
    ).model_copy(update=update)


def summary(**update: Any) -> Summary:
    return Summary(
        source=SourceKind.FILE,
        sha256="16" * 32,
        rows=7043,
        train_rows=5659,
        test_rows=1384,
        columns=21,
        features=("tenure", "Contract"),
        dropped={HOSTILE: "has only one value"},
        positive="Yes",
        negative="No",
        positive_rate=0.26537,
        drift=(),
        notes=("12 rows are odd.",),
    ).model_copy(update=update)


CONFIG = Config(
    service="churn",
    data=Data(source="data.csv"),
    target="Churn",
    positive="Yes",
    costs=Costs(false_positive=1, false_negative=5),
)


def result(verdict: str | None = "promote", phase: str | None = "Promoted", **update: Any) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "phase": phase,
        "reason": "healthy at 99 % for 60 s",
        "data": {"source": "file", "sha256": "16" * 32, "rows": 7043},
        "requests": {"total": 20412, "failed": 3, "candidate": 6120},
        "metrics": {"champion": {}, "challenger": {}},
        "timings_s": {"total": 61.2, "pipeline": 14.1, "rollout": 45.0},
        "digests": {"data": "sha256:dd", "champion": None, "challenger": "sha256:bb"},
        "versions": {"python": "3.11.7", "kserve": "0.21.0"},
    } | update


def run(
    *,
    told: dict[str, Any] | None = None,
    data: Summary | None = None,
    judged: Evaluation | None = None,
    rollout: ModelRollout | None = None,
    windows: list[dict[str, Any]] | None = None,
) -> Page:
    html = run_html(
        CONFIG,
        result=told or result(),
        data=(data or summary()).model_dump(mode="json"),
        evaluation=judged.model_dump(mode="json") if judged else None,
        rollout=rollout,
        windows=windows or [],
    )
    return read(html)


def test_a_run_page_shows_the_figures_it_was_given(promoted):
    page = run(judged=evaluation(), rollout=promoted.rollout, windows=promoted.windows)
    assert "Released: XGBoost serves all traffic." in page.text and "Healthy at 99 % for 60 s." in page.text
    for shown in ("20,412", "7,043", "1,384", "0.4125", "0.4161", "0.4882", "0.4087", "61 s"):
        assert shown in page.text
    assert "−0.0722 (−0.0889 to −0.0551)" in page.text and "upper end is below 0" in page.text
    assert "upper end is at most +0.0238" in page.text and "lower end is at most +0.0200" in page.text
    assert "A false positive costs 1, a false negative 5." in page.text and "430 per 1,000" in page.text
    assert "26.5 %" in page.text and "has only one value" in page.text and "12 rows are odd." in page.text
    assert "sha256:bb" in page.text and "0.21.0" in page.text
    assert "SYNTHETIC" not in page.text.upper()
    assert promoted.rollout.status.candidate_revision in page.text


@pytest.mark.parametrize(
    ("verdict", "phase", "said"),
    [
        ("promote", "RolledBack", "Rolled back: XGBoost won on held-out rows, but not in the rollout."),
        ("promote", "Failed", "Not released: the rollout of XGBoost could not start."),
        ("promote", "Waiting", "Promote: XGBoost won; its rollout is in progress."),
        ("promote", None, "Promote: XGBoost won, but there was no rollout."),
        ("hold", None, "Hold: nothing was released."),
        ("reject", None, "Rejected: nothing was released."),
    ],
)
def test_the_headline_is_the_end_of_the_run(verdict, phase, said):
    page = run(told=result(verdict, phase), judged=evaluation(Verdict(verdict)))
    assert said in page.text and "There was no rollout" in page.text


def test_a_run_without_an_evaluation_says_so():
    page = run(told=result(None, None))
    assert "No verdict: nothing was released." in page.text and "There is no evaluation" in page.text


def test_a_run_without_a_comparison_shows_what_there_is():
    missing = evaluation(Verdict.HOLD, challenger=None, champion=None, differences=(), checks=(), slices=())
    page = run(told=result("hold", None), judged=missing)
    assert "not scored" in page.text and "0.4125" in page.text


def test_synthetic_data_are_announced_loudly():
    page = run(data=summary(source=SourceKind.SYNTHETIC), judged=evaluation())
    assert "The data are synthetic." in page.text and ", generated" in page.text


def test_drift_is_told_only_where_there_is_some():
    def drifted(*psi: float) -> Summary:
        return summary(
            drift=tuple(Drift(column=f"c{k}", psi=p, missing_before=0.01, missing_now=0.2) for k, p in enumerate(psi))
        )

    assert "stability index is 0.020 (c0)" in run(data=drifted(0.02, 0.001)).text
    page = run(data=drifted(0.31, 0.12, 0.02))
    assert "2 columns drifted" in page.text and {"large", "moderate"} <= set(page.texts)
    assert "c2" not in page.texts and "20.0 %" in page.text
    assert "no champion to compare" in run(data=drifted()).text


@pytest.mark.parametrize("verdict", Verdict)
def test_an_evaluation_has_a_page_of_its_own(verdict):
    page = read(evaluation_html(evaluation(verdict).model_dump(mode="json")))
    assert f"Verdict: {verdict}." in page.text and "0.4161" in page.text
    assert page.text.count("alert('x')") == 3


def test_a_champion_of_one_score_only_can_be_drawn():
    base = side("base rate", 0.57, None)
    flat = base.model_copy(
        update={
            "metrics": figures(0.57, auc=0.5, true_positive_rate=None),
            "curves": Curves(roc=(), calibration=((10, 0.0, 0.0),), scores=(10, *[0] * 99)),
        }
    )
    read(evaluation_html(evaluation(champion=flat).model_dump(mode="json")))


# charts


@given(st.floats(1e-9, 1e9))
def test_the_top_of_an_axis_is_round_and_not_far_above(value):
    top = nice_top(value)
    assert value * (1 - 1e-6) <= top <= 2.5 * value
    digits = f"{top:.0e}" if not f"{top:.1e}".startswith("2.5") else "2"
    assert digits[0] in "125"


@given(st.floats(0.5, 1e6))
def test_time_ticks_are_few_rising_and_distinct(seconds):
    ticks = time_ticks(Axis(0, seconds))
    assert 1 <= len(ticks) <= 13
    assert len({tick.text for tick in ticks}) == len(ticks)
    assert all(before.at < after.at for before, after in pairwise(ticks))


def test_points_are_placed_in_percent_and_clipped():
    plot = Plot(Axis(0, 10), Axis(1, 100, log=True))
    assert plot.line([(0, 1), (5, 10), (20, 1000)], "ink").path == "M0 100L50 50L100 0h0"
    assert plot.steps([(0, 1), (10, 100)], "ink").path == "M0 100L100 100L100 0h0"
    assert plot.area([(0, 10)], "ink").path == "M0 100L0 50L0 100h0Z"
