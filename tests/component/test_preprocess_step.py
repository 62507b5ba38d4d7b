import json
import os
from pathlib import Path

import pytest
from kfp import dsl

from components.config import Config
from components.dataset import read_rows, read_schema
from components.preprocess.component import preprocess
from components.preprocess.generator import snapshot
from components.preprocess.sources import sha256_of
from components.shell import MARK, NOTE


def config(**changes: object) -> str:
    churn = {"service": "churn", "data": {"source": "x.csv"}, "target": "Churn", "positive": "Yes"}
    return Config.model_validate({**churn, "ids": ["customerID"], **changes}).model_dump_json()


def customers(directory: Path) -> Path:
    """The Telco file where it is at hand, else synthetic customers."""
    if telco := os.environ.get("SERIN_DATA"):
        return Path(telco)
    path = directory / "customers of today.csv"
    snapshot(7, 2000).to_csv(path, index=False)
    return path


def step(directory: Path, data: Path, *, settings: str = config(), sha256: str = "") -> Path:
    """Run the step as KFP does; return the summary's path."""
    preprocess.python_func(
        config=settings,
        data=str(data),
        data_source="file",
        data_sha256=sha256,
        champion="",
        champion_digest="",
        train_data=dsl.Dataset(uri=str(directory / "train")),
        test_data=dsl.Dataset(uri=str(directory / "test")),
        summary=dsl.Artifact(uri=str(directory / "summary.json")),
    )
    return directory / "summary.json"


def test_the_step_says_what_it_left_out_and_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = snapshot(7, 600).assign(same="x", also="y", charge=lambda rows: rows["MonthlyCharges"].astype(str))
    rows.loc[[1, 5], "charge"] = "?"
    rows.to_csv(tmp_path / "odd.csv", index=False)
    step(tmp_path, tmp_path / "odd.csv")
    said = [line.removeprefix(NOTE) for line in capsys.readouterr().out.splitlines() if line.startswith(NOTE)]
    assert "Left out `same`, `also`: has only one value." in said
    assert any(
        line.startswith("`charge` is a number except in 2 rows (`?`), which count as missing") for line in said
    )


def test_the_step_writes_two_datasets_and_a_summary(tmp_path: Path) -> None:
    data = customers(tmp_path)
    summary = json.loads(step(tmp_path, data, sha256=sha256_of(data)).read_text())
    train, test = read_rows(tmp_path / "train"), read_rows(tmp_path / "test")
    assert (summary["train_rows"], summary["test_rows"]) == (len(train), len(test))
    assert summary["source"] == "file"
    assert summary["sha256"] == sha256_of(data)
    assert summary["dropped"] == {}
    assert 0.2 < summary["positive_rate"] < 0.33
    dtypes = {column.name: column.dtype for column in read_schema(tmp_path / "test").features}
    assert len(dtypes) == 19
    assert [name for name, dtype in dtypes.items() if dtype == "number"] == [
        "SeniorCitizen",
        "tenure",
        "MonthlyCharges",
        "TotalCharges",
    ]
    assert 0 < train["TotalCharges"].isna().sum() < 50


@pytest.mark.parametrize(
    ("settings", "sha256", "message"),
    [(config(target="churn"), "", "did you mean 'Churn'?"), (config(), "0" * 64, f"expected {'0' * 64}")],
)
def test_a_users_mistake_is_one_marked_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, sha256: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        step(tmp_path, customers(tmp_path), settings=settings, sha256=sha256)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(MARK)
    assert message in line
    assert not (tmp_path / "train").exists()
