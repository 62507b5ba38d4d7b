"""`serin labels`: the prediction log, as the real sink writes it, joined with labels that came later."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import predictor_models as models
import pytest
from click.testing import CliRunner

from predictor.columns import Layout, from_records
from predictor.log import Entry, Fields
from predictor.sinks import sink
from serin.cli.main import cli
from serin.errors import UserError
from serin.judge.cohorts import Labels
from serin.judge.labels import Costs, cohorts

LAYOUT = Layout.of(models.SIGNATURE.features)
HOUR_S = 3600.0
START_S = 1_700_000_000 // HOUR_S * HOUR_S
STABLE, CANDIDATE = "churn-00001", "churn-00002"


def write(log: Path, revision: str, requests: Sequence[tuple[str, float, Sequence[float]]]) -> None:
    """`requests`: id, hours after the start, scores. A score of 0.5 or more is the decision Yes."""
    entries = [
        Entry(name, START_S + hours * HOUR_S, from_records(LAYOUT, [{}] * len(scores)), np.float32(scores), 50)
        for name, hours, scores in requests
    ]
    sink(str(log), Fields(LAYOUT), models.SIGNATURE, model="churn", revision=revision, digest="").write(entries)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "a log"
    write(folder, STABLE, [("a", 0.1, [0.9, 0.1]), ("b", 0.2, [0.9]), ("c", 1.5, [0.2])])
    write(folder, CANDIDATE, [("d", 0.3, [0.1]), ("e", 1.6, [0.8])])
    write(folder, "churn-00003", [("f", 0.3, [0.1])])
    return folder


def labelled(folder: Path, *lines: str) -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join(["request_id,row,label", *lines]), encoding="utf-8")
    return file


def found(log: Path, labels: Path, costs: Costs = Costs()) -> list[tuple[int, Labels, Labels]]:  # noqa: B008
    both = cohorts(log, labels, stable=STABLE, candidate=CANDIDATE, costs=costs, cohort_s=HOUR_S)
    first = both[0].id
    assert both[0].start_s == START_S
    return [(each.id - first, each.stable, each.candidate) for each in both]


def test_each_decision_meets_its_own_label(log: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path, "a,0,No", "a,1,No", "c,0,Yes", "d,0,Yes", "f,0,Yes", "nobody,0,Yes")
    assert found(log, labels) == [
        (0, Labels(3, 2, 1.0), Labels(1, 1, 1.0)),
        (1, Labels(1, 1, 1.0), Labels(1, 0, 0.0)),
    ]


def test_costs_are_parts_of_the_largest(log: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path, "a,0,No", "a,1,No", "c,0,Yes", "d,0,Yes")
    costs = Costs(false_positive=1, false_negative=5, positive="Yes")
    assert [(stable.harm, candidate.harm) for _, stable, candidate in found(log, labels, costs)] == [
        (pytest.approx(0.2), 1.0),
        (1.0, 0.0),
    ]


@pytest.mark.parametrize(
    ("lines", "candidate", "said"),
    [
        (["a,0,No", "a,0,Yes"], CANDIDATE, "request a, row 0 has 2 labels"),
        (["a,0,No"], "churn-00009", "has no requests of churn-00009"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    log: Path, tmp_path: Path, lines: list[str], candidate: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        cohorts(
            log,
            labelled(tmp_path, *lines),
            stable=STABLE,
            candidate=candidate,
            costs=Costs(),
            cohort_s=HOUR_S,
        )


def test_files_that_are_something_else_are_refused(log: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.csv"
    with pytest.raises(UserError, match="cannot be read"):
        found(log, nothing)
    nothing.write_text("name,value\nx,1\n")
    with pytest.raises(UserError, match="has no column request_id, label"):
        found(log, nothing)
    with pytest.raises(UserError, match="is not a directory"):
        found(nothing, nothing)


def test_costs_that_differ_need_the_positive_decision() -> None:
    with pytest.raises(UserError, match="--positive"):
        Costs(1, 5)


@pytest.mark.parametrize(("wrong_every", "exit_code"), [(10, 0), (2, 1)])
def test_the_command_tells_a_worse_candidate(tmp_path: Path, wrong_every: int, exit_code: int) -> None:
    log, lines = tmp_path / "log", []
    for revision, every in ((STABLE, 10), (CANDIDATE, wrong_every)):
        requests = [(f"{revision}-{n}", n / 100, [0.9]) for n in range(400)]
        write(log, revision, requests)
        lines += [f"{name},0,{'No' if n % every == 0 else 'Yes'}" for n, (name, *_) in enumerate(requests)]
    labels = labelled(tmp_path, *lines)
    command = ["labels", str(labels), "--log", str(log), "--stable", STABLE, "--candidate", CANDIDATE]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == exit_code, done.output
    assert "Judged: 4 of 4 cohorts" in done.output
    assert "400 labelled decisions, mean cost 10.00 % of the maximum" in done.output
    assert ("wrong decisions" in done.output.replace("_", " ")) == bool(exit_code) or exit_code == 0
