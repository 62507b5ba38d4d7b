"""From model directories and held-out rows to an evaluation; missing evidence never promotes."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from components import dataset
from components.config import Learner
from components.evaluate.core import _values, choose, evaluate
from components.evaluate.evaluation import Evaluation, Verdict
from components.train import record, scoring
from components.train.core import train
from serin import model
from serin.errors import UserError

CONFIG = datasets.config()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datasets.write(datasets.orders(1500, 1), tmp_path_factory.mktemp("data") / "test")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, held_out: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    learned = datasets.write(datasets.orders(1500, 0), root / "rows")
    learners: tuple[Learner, ...] = ("rule", "logistic", "xgboost")
    for learner in learners:
        train(CONFIG, learner, train=learned, test=held_out, out=root / learner)
    return {learner: root / learner for learner in learners}


def changed(source: Path, target: Path, file: Path, **values: object) -> Path:
    """A sealed copy of a model directory with other values in one of its JSON files."""
    shutil.copytree(source, target)
    document = json.loads((target / file).read_text(encoding="utf-8"))
    (target / file).write_text(json.dumps(document | values), encoding="utf-8")
    model.seal(target)
    return target


def test_the_full_model_is_promoted_over_the_rule(models: dict[str, Path], held_out: Path) -> None:
    evaluation = evaluate(CONFIG, [models["logistic"], models["xgboost"]], models["rule"], held_out)
    assert evaluation.verdict is Verdict.PROMOTE
    assert evaluation.reason.endswith("passes all guards.")
    assert evaluation.challenger and evaluation.champion
    assert evaluation.challenger.metrics.log_loss < evaluation.champion.metrics.log_loss
    assert evaluation.champion.digest == model.digest(models["rule"])
    assert [c.learner for c in evaluation.candidates] == ["logistic", "xgboost"]
    assert {c.name for c in evaluation.checks} >= {"log_loss", "cost", "selection_gap[region]"}
    assert {(s.column, s.value) for s in evaluation.slices} == {
        *(("region", value) for value in ("north", "south")),
        *(("size", value) for value in ("S", "M", "L", "missing")),
    }


def test_the_rule_is_rejected_against_the_full_model(models: dict[str, Path], held_out: Path) -> None:
    assert evaluate(CONFIG, [models["rule"]], models["logistic"], held_out).verdict is Verdict.REJECT


def test_evaluation_is_plain_json(models: dict[str, Path], held_out: Path) -> None:
    evaluation = evaluate(CONFIG, [models["xgboost"]], models["rule"], held_out)
    text = evaluation.model_dump_json()
    json.loads(text, parse_constant=pytest.fail)
    assert Evaluation.model_validate_json(text) == evaluation
    assert evaluation.challenger
    curves = evaluation.challenger.curves
    assert 100 < len(curves.roc) <= 200
    assert sum(curves.scores) == sum(rows for rows, _, _ in curves.calibration) == 1500


def test_the_same_model_holds(models: dict[str, Path], held_out: Path) -> None:
    evaluation = evaluate(CONFIG, [models["logistic"]], models["logistic"], held_out)
    assert evaluation.verdict is Verdict.HOLD
    assert "nothing to release" in evaluation.reason


def test_first_model_must_beat_the_base_rate(models: dict[str, Path], held_out: Path, tmp_path: Path) -> None:
    evaluation = evaluate(CONFIG, [models["rule"]], None, held_out)
    assert evaluation.verdict is Verdict.PROMOTE
    assert evaluation.reason.startswith("First model: rule is better than the base rate")
    assert evaluation.champion
    assert (evaluation.champion.learner, evaluation.champion.digest) == ("base rate", None)
    assert [c.name for c in evaluation.checks] == ["log_loss"]

    rows = dataset.read_rows(held_out)
    rows["returned"] = np.random.default_rng(0).permutation(rows["returned"])
    noise = datasets.write(rows, tmp_path / "test")
    assert evaluate(CONFIG, [models["rule"]], None, noise).verdict is Verdict.HOLD


def test_challenger_is_chosen_out_of_fold(models: dict[str, Path], tmp_path: Path) -> None:
    worst = min(models.values(), key=lambda root: -record.read(root).log_loss)
    flattered = changed(worst, tmp_path / "flattered", record.TRAINING_FILE, log_loss=0.01)
    assert choose(list(models.values())) != worst
    assert choose([*models.values(), flattered]) == flattered


def test_a_champion_is_scored_though_a_column_has_changed_its_type(
    models: dict[str, Path], held_out: Path, tmp_path: Path
) -> None:
    rows = dataset.read_rows(held_out)
    as_text = rows.assign(f0=rows["f0"].map("{:03.0f}".format, na_action="ignore").fillna(""))
    learned = datasets.orders(800, 0)
    learned = learned.assign(f0=learned["f0"].map("{:03.0f}".format, na_action="ignore").fillna(""))
    sides = datasets.write(learned, tmp_path / "train"), datasets.write(as_text, tmp_path / "test")
    train(CONFIG, "logistic", train=sides[0], test=sides[1], out=tmp_path / "new")
    evaluation = evaluate(CONFIG, [tmp_path / "new"], models["logistic"], sides[1])
    before = evaluate(CONFIG, [models["xgboost"]], models["logistic"], held_out)
    assert evaluation.champion
    assert before.champion
    assert evaluation.champion.metrics == before.champion.metrics
    assert any(note.startswith("The type of `f0` has changed") for note in evaluation.notes)
    assert before.notes == ()


class TestMissingEvidenceHolds:
    def hold(self, champion: Path | None, test: Path, models: dict[str, Path]) -> Evaluation:
        evaluation = evaluate(CONFIG, [models["xgboost"]], champion, test)
        assert evaluation.verdict is Verdict.HOLD
        assert evaluation.reason.startswith("Evidence is missing: ")
        assert evaluation.differences == evaluation.checks == ()
        return evaluation

    def test_few_rows(self, models: dict[str, Path], tmp_path: Path) -> None:
        few = datasets.write(datasets.orders(199, 1), tmp_path)
        assert "199 test rows" in self.hold(models["rule"], few, models).reason
        assert "199 test rows" in self.hold(None, few, models).reason

    def test_one_class(self, models: dict[str, Path], tmp_path: Path) -> None:
        same = datasets.write(datasets.orders(300, 1).assign(returned=0), tmp_path)
        evaluation = self.hold(models["rule"], same, models)
        assert "same label" in evaluation.reason
        assert evaluation.challenger
        assert evaluation.challenger.metrics.auc is None

    def test_champion_needs_a_column_that_is_gone(
        self, models: dict[str, Path], held_out: Path, tmp_path: Path
    ) -> None:
        rows = dataset.read_rows(held_out).rename(columns={"size": "größe"})
        without = datasets.write(rows, tmp_path / "test")
        learned = datasets.write(datasets.orders(300, 0).rename(columns={"size": "größe"}), tmp_path / "train")
        train(CONFIG, "rule", train=learned, test=without, out=tmp_path / "new")
        evaluation = evaluate(CONFIG, [tmp_path / "new"], models["rule"], without)
        assert evaluation.verdict is Verdict.HOLD
        assert "'size' is missing" in evaluation.reason
        assert evaluation.champion is None
        assert evaluation.challenger

    def test_champion_was_tampered_with(self, models: dict[str, Path], held_out: Path, tmp_path: Path) -> None:
        shutil.copytree(models["rule"], tmp_path / "champion")
        (tmp_path / "champion/meta/card.md").write_text("better than it was")
        assert "card.md" in self.hold(tmp_path / "champion", held_out, models).reason

    def test_champion_predicts_something_else(self, models: dict[str, Path], held_out: Path, tmp_path: Path) -> None:
        other = changed(models["rule"], tmp_path / "champion", model.SIGNATURE_FILE, positive="no", negative="yes")
        assert "predicts returned = no" in self.hold(other, held_out, models).reason

    @pytest.mark.parametrize("broken", ["champion", "challenger"])
    def test_scores_that_are_no_numbers(
        self, broken: str, models: dict[str, Path], held_out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = models["rule" if broken == "champion" else "xgboost"]
        real = scoring.score

        def score(scored: Path, rows: pd.DataFrame) -> np.ndarray:
            scores = real(scored, rows)
            if scored == root:
                scores[7] = np.nan
            return scores

        monkeypatch.setattr(scoring, "score", score)
        evaluation = self.hold(models["rule"], held_out, models)
        assert f"the {broken} has no score for 1 of 1500" in evaluation.reason
        assert getattr(evaluation, broken) is None


def test_a_candidate_that_was_tampered_with_is_an_error(
    models: dict[str, Path], held_out: Path, tmp_path: Path
) -> None:
    shutil.copytree(models["rule"], tmp_path / "candidate")
    (tmp_path / "candidate/model/model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.onnx does not match"):
        evaluate(CONFIG, [tmp_path / "candidate"], None, held_out)


def test_small_protected_groups_are_noted(models: dict[str, Path], held_out: Path, tmp_path: Path) -> None:
    rows = dataset.read_rows(held_out)
    rows.loc[:40, "region"] = "islands"
    islands = datasets.write(rows, tmp_path)
    evaluation = evaluate(CONFIG, [models["xgboost"]], models["rule"], islands)
    assert evaluation.verdict is Verdict.PROMOTE
    assert evaluation.notes == ("region = islands has too few rows (41) to be checked.",)


class TestValues:
    def test_strings(self) -> None:
        assert {k: v.sum() for k, v in _values(pd.Series(["a", "", "b", "a"])).items()} == {
            "a": 2,
            "b": 1,
            "missing": 1,
        }

    def test_few_numbers(self) -> None:
        values = _values(pd.Series([0.0, 1.0, 1.0, np.nan]))
        assert {k: v.sum() for k, v in values.items()} == {"0": 1, "1": 2, "missing": 1}

    def test_many_numbers_fall_into_quarters(self) -> None:
        values = _values(pd.Series([*np.arange(100.0), np.nan]))
        assert {k: int(v.sum()) for k, v in values.items()} == {
            "up to 24.75": 25,
            "24.75 to 49.5": 25,
            "49.5 to 74.25": 25,
            "above 74.25": 25,
            "missing": 1,
        }
