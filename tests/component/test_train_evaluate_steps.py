"""The train and evaluate steps with real artifacts, on the data of the Telco config."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.config import Config, load
from components.evaluate.component import evaluate
from components.evaluate.evaluation import Evaluation
from components.preprocess.core import preprocess
from components.preprocess.generator import snapshot
from components.preprocess.sources import SourceKind
from components.shell import MARK
from components.train.component import train
from serin import model

LEARNERS = ("rule", "logistic", "hist_gradient_boosting")


@pytest.fixture(scope="module")
def config() -> Config:
    telco = load(Path(__file__).parents[2] / "pipelines/configs/telco.yaml")
    return telco.model_copy(update={"training": telco.training.model_copy(update={"trials": 1})})


@pytest.fixture(scope="module")
def data(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dsl.Dataset]:
    root = tmp_path_factory.mktemp("data")
    if "SERIN_DATA" in os.environ:
        source = Path(os.environ["SERIN_DATA"])
    else:
        source = root / "churn.csv"
        snapshot(seed=7, customers=7043).to_csv(source, index=False)
    preprocess(config, source, source_kind=SourceKind.FILE, champion=None, train=root / "train", test=root / "test")
    return {f"{side}_data": dsl.Dataset(uri=str(root / side)) for side in ("train", "test")}


@pytest.fixture(scope="module")
def models(
    config: Config, data: dict[str, dsl.Dataset], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dsl.Model]:
    made = {}
    for learner in LEARNERS:
        root = tmp_path_factory.mktemp(learner)
        made[learner], metrics = dsl.Model(uri=str(root / "model")), dsl.Metrics(uri=str(root / "metrics"))
        train.python_func(
            config=config.model_dump_json(), learner=learner, **data, model=made[learner], metrics=metrics
        )
        assert metrics.metadata.keys() == {"log_loss", "auc", "cost", "trials", "seconds"}
        assert made[learner].metadata["digest"] == model.digest(root / "model")
    return made


def run(
    config: Config, data: dict[str, dsl.Dataset], models: list[dsl.Model], champion: str, out: Path
) -> tuple[str, Evaluation, dict[str, Any]]:
    outputs = {
        "challenger": dsl.Model(uri=str(out / "challenger")),
        "evaluation": dsl.Artifact(uri=str(out / "evaluation")),
        "metrics": dsl.Metrics(uri=str(out / "metrics")),
        "roc": dsl.ClassificationMetrics(uri=str(out / "roc")),
        "data": dsl.Artifact(uri=str(out / "data")),
        "report": dsl.HTML(uri=str(out / "report")),
        "card": dsl.Markdown(uri=str(out / "card")),
    }
    summary = dsl.Artifact(uri=str(out / "summary"))
    Path(summary.path).write_text("{}", encoding="utf-8")
    word = evaluate.python_func(
        config=config.model_dump_json(),
        champion=champion,
        champion_digest="",
        summary=summary,
        test_data=data["test_data"],
        models=models,
        **outputs,
    )
    written = Evaluation.model_validate_json((out / "evaluation").read_text(encoding="utf-8"))
    return word, written, outputs


def test_the_best_model_is_promoted_over_the_rule_and_then_nothing_is(
    config: Config, data: dict[str, dsl.Dataset], models: dict[str, dsl.Model], tmp_path: Path
) -> None:
    full = [models["logistic"], models["hist_gradient_boosting"]]
    (tmp_path / "first").mkdir()
    word, evaluation, outputs = run(config, data, full, models["rule"].path, tmp_path / "first")
    assert word == evaluation.verdict == "promote", evaluation.reason
    assert evaluation.challenger
    assert evaluation.challenger.digest == model.digest(Path(outputs["challenger"].path))
    model.verify(Path(outputs["challenger"].path))
    assert outputs["metrics"].metadata["challenger_log_loss"] == evaluation.challenger.metrics.log_loss
    assert len(outputs["roc"].metadata["confidenceMetrics"]) <= 200
    assert "Verdict: promote" in Path(outputs["report"].path).read_text(encoding="utf-8")
    assert Path(outputs["card"].path).read_text(encoding="utf-8").startswith("#")
    json.dumps([artifact.metadata for artifact in outputs.values()], allow_nan=False)

    (tmp_path / "second").mkdir()
    word, evaluation, _ = run(config, data, full, outputs["challenger"].path, tmp_path / "second")
    assert word == evaluation.verdict == "hold", evaluation.reason
    (tmp_path / "third").mkdir()
    word, evaluation, _ = run(config, data, [models["logistic"]], outputs["challenger"].path, tmp_path / "third")
    assert word == evaluation.verdict == "hold", evaluation.reason


def test_the_rule_is_a_first_model(
    config: Config, data: dict[str, dsl.Dataset], models: dict[str, dsl.Model], tmp_path: Path
) -> None:
    word, evaluation, _ = run(config, data, [models["rule"]], "", tmp_path)
    assert word == "promote"
    assert evaluation.reason.startswith("First model")


def test_what_the_user_has_to_fix_ends_the_step_with_2(
    config: Config, data: dict[str, dsl.Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = config.model_copy(update={"split": config.split.model_copy(update={"group": "household"})})
    with pytest.raises(SystemExit) as end:
        train.python_func(
            config=gone.model_dump_json(),
            learner="logistic",
            **data,
            model=dsl.Model(uri=str(tmp_path / "model")),
            metrics=dsl.Metrics(uri=str(tmp_path / "metrics")),
        )
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(MARK + "Config split.group: column 'household'")
