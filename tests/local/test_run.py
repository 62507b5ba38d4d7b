"""`make run` as a user has it: real kfp.local, real Envoy, real model servers, on a small generated table."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from private import readable_by_others

from components.preprocess.generator import snapshot
from serin.platforms.embedded import client
from serin.platforms.embedded.client import Embedded
from serin.platforms.embedded.processes import belonging_to

pytestmark = [pytest.mark.xdist_group("embedded"), pytest.mark.timeout(300)]

QUICK = {
    "service": "churn",
    "data": {"source": "customers.csv"},
    "target": "Churn",
    "positive": "Yes",
    "ids": ["customerID"],
    "protected": ["gender"],
    "costs": {"false_positive": 1, "false_negative": 5},
    "training": {"learners": ["logistic", "xgboost"], "trials": 2, "budget_s": 30},
    "split": {"test": 0.4},
    "gate": {"resamples": 400, "cost_margin": 0.2},
    "release": {
        "stages": [{"traffic": 50, "minSeconds": 1, "margin": 5}],
        "bake": {"traffic": 99, "seconds": 1},
        "deadlineSeconds": 120,
        "onInconclusive": "rollback",
    },
}


class Place:
    """A folder with a config, data, and a platform of its own, in a path with a space."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / ".serin"
        self.tmp = root / "tmp"
        self.tmp.mkdir()
        self.env = {**os.environ, "SERIN_HOME": str(self.home), "SERIN_PORT": "0", "TMPDIR": str(self.tmp)}
        self.env["SERIN_RUNS"] = str(root / "runs")
        self.env.pop("SERIN_DATA", None)

    def configure(self, **changes: object) -> None:
        (self.root / "config.yaml").write_text(yaml.safe_dump({**QUICK, **changes}), encoding="utf-8")

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.run", "--config", "config.yaml", *options]
        return subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=240)

    def result(self) -> dict[str, object]:
        return json.loads((self.root / "runs" / "latest" / "result.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("a run"))
    snapshot(11, 5000).to_csv(place.root / "customers.csv", index=False)
    place.configure()
    yield place
    client.down(place.home)
    assert list(belonging_to(place.home)) == []


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Another platform, for services of other tables."""
    place = Place(tmp_path_factory.mktemp("other tables"))
    yield place
    client.down(place.home)


def test_the_story_from_a_table_to_a_promoted_canary(place: Place) -> None:
    done = place.run("--traffic", "300")
    assert done.returncode == 0, done.stdout + done.stderr
    result = place.result()
    assert (result["verdict"], result["phase"]) == ("promote", "Promoted"), done.stdout
    assert result["requests"]["failed"] == 0
    assert result["requests"]["total"] > result["requests"]["candidate"] > 0
    assert result["data"] == {"source": "file", "sha256": result["data"]["sha256"], "rows": 5000}
    assert result["metrics"]["challenger"]["log_loss"] < result["metrics"]["champion"]["log_loss"]

    platform = Embedded(place.home)
    rollouts = platform.rollouts()
    assert [each.status.phase for each in rollouts] == ["Promoted", "Promoted"]
    champion = platform.champion("churn")
    assert champion is not None
    assert champion.digest == result["digests"]["challenger"]

    folder = place.root / "runs" / "latest"
    report = (folder / "report.html").read_text()
    assert "Promoted" in report
    assert not re.search(r'(?:src|href)="http', report)
    assert (folder / "rollout" / "timeline.parquet").stat().st_size > 0

    others = [path for part in ("runs", ".serin", ".cache") if (place.root / part).exists()
              for path in readable_by_others(place.root / part)]  # fmt: skip
    assert others == []
    assert [path.name for path in place.tmp.iterdir()] == [], "a step left something behind"
    assert not list((place.root / "runs").glob("*/*/tmp-*"))

    curl = next(line for line in done.stdout.splitlines() if line.startswith("try it"))
    words = shlex.split(curl.removeprefix("try it"))
    request = urllib.request.Request(words[2], data=words[4].encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.loads(response.read())
    assert response.headers["x-serin-model-digest"] == champion.digest
    assert 0 <= answer["predictions"][0]["probability"] <= 1


def test_a_second_run_on_the_same_data_holds(place: Place) -> None:
    before = len(Embedded(place.home).rollouts())
    done = place.run("--traffic", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    result = place.result()
    assert (result["verdict"], result["phase"]) == ("hold", None)
    assert str(result["reason"]) in done.stdout
    assert len(Embedded(place.home).rollouts()) == before


def test_the_learners_are_tried_where_no_single_column_beats_the_base_rate(elsewhere: Place) -> None:
    """Two readings share a large error, and their difference decides."""
    rng = np.random.default_rng(5)
    error, apart = 12 * rng.normal(size=3000), rng.normal(size=3000)
    event = (rng.random(3000) < 1 / (1 + np.exp(-2 * apart))).astype(int)
    rows = pd.DataFrame({"id": range(3000), "before": error, "after": error + apart, "event": event})
    rows = rows.assign(before=rows["before"].astype(object).where(rows["id"] != 9, "?"), batch="b")
    rows.to_csv(elsewhere.root / "pair.csv", index=False)
    pair = {"data": {"source": "pair.csv"}, "target": "event", "positive": 1, "ids": ["id"], "protected": []}
    elsewhere.configure(**pair, service="pair", training={"learners": ["logistic"], "trials": 1, "budget_s": 30})
    done = elsewhere.run("--traffic", "none")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("Left out `batch`: has only one value.", "`before` is a number except in 1 row (`?`), which count"):
        assert done.stdout.count(line) == 1
    report = (elsewhere.root / "runs" / "latest" / "report.html").read_text()
    assert '<td class="name">batch</td><td>has only one value</td>' in report
    assert "`before` is a number except in 1 row (`?`), which count" in report
    assert "The rule was not released: First model: rule is not clearly better than the base rate" in done.stdout
    assert (elsewhere.result()["verdict"], elsewhere.result()["phase"]) == ("promote", "Promoted")
    assert Embedded(elsewhere.home).champion("pair") is not None


def test_a_run_that_leaves_nothing_serving_says_so(elsewhere: Place) -> None:
    rng = np.random.default_rng(6)
    rows = pd.DataFrame({"id": range(1000), "x": rng.random(1000), "event": rng.integers(0, 2, 1000)})
    rows.to_csv(elsewhere.root / "noise.csv", index=False)
    noise = {"data": {"source": "noise.csv"}, "target": "event", "positive": 1, "ids": ["id"], "protected": []}
    elsewhere.configure(**noise, service="noise", training={"learners": ["logistic"], "trials": 1, "budget_s": 30})
    done = elsewhere.run("--traffic", "none")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "service   none: no model has been released yet" in done.stdout
    assert elsewhere.result()["verdict"] == "hold"
    assert (elsewhere.root / "runs" / "latest" / "report.html").exists()


BAD_TABLES = {
    "wrong delimiter": (lambda frame: frame.to_csv(index=False, sep=";"), ";"),
    "leaks the target": (
        lambda frame: frame.assign(left=frame["Churn"].eq("Yes") * 1).to_csv(index=False),
        "left",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_data_ends_with_one_sentence_and_changes_nothing(place: Place, case: str) -> None:
    make, named = BAD_TABLES[case]
    frame: pd.DataFrame = snapshot(12, 600)
    (place.root / "bad.csv").write_text(make(frame), encoding="utf-8")
    before = [(each.metadata.name, each.status.phase) for each in Embedded(place.home).rollouts()]
    place.configure(data={"source": "bad.csv"})
    done = place.run("--traffic", "none")
    place.configure()
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("serin: ")
    assert named in message
    assert "Traceback" not in done.stdout + done.stderr
    assert [(each.metadata.name, each.status.phase) for each in Embedded(place.home).rollouts()] == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"targett": "x"}, "targett"),
        ({"release": "warp"}, "warp"),
        ({"data": {"source": "nowhere.csv"}}, "nowhere.csv"),
    ],
)
def test_a_bad_config_ends_with_one_sentence(place: Place, change: dict[str, object], named: str) -> None:
    place.configure(**change)
    done = place.run("--traffic", "none")
    place.configure()
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


ROOT = Path(__file__).parents[2]
NOT_HERE = {
    "make test": "this is it",
    "make down": "the last of all: see the end of the test",
}


def documented() -> list[str]:
    """Every command of the README and the docs, in order, each once."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)]
    return list(dict.fromkeys(line for block in blocks for line in block.splitlines() if line.strip()))


def of_the_user() -> list[tuple[Path, str]]:
    """What commands leave in the checkout when they are not told another place, and where its links point."""
    found = [path for name in ("runs", ".serin", ".cache") for path in (ROOT / name, *(ROOT / name).glob("*"))]
    return [(path, str(path.resolve())) for path in found if path.exists() or path.is_symlink()]


def test_every_command_of_the_docs_works(place: Place) -> None:
    """In the order a reader meets them; `make run` is a reader's second one here."""
    place.configure()
    env = {**place.env, "CONFIG": str(place.root / "config.yaml"), "TRAFFIC": "200"}
    commands = documented()
    assert "make run" in commands
    assert set(NOT_HERE) <= set(commands)
    before = of_the_user()
    for command in [*(each for each in commands if each not in NOT_HERE), "make down"]:
        done = subprocess.run(
            shlex.split(command), cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert of_the_user() == before
    assert list(belonging_to(place.home)) == []


def test_the_readme_names_every_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)) - {"help"}
    readme = (ROOT / "README.md").read_text()
    assert {target for target in targets if target not in readme} == set()
