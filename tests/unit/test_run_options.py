"""What `make run` is told about where to run and how much to send."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from components import config
from components.preprocess.sources import Source, SourceKind
from pipelines import run
from pipelines.progress import Progress
from pipelines.run import Outcome, Run, newest, place_of, rate_of, result_of
from serin.errors import UserError
from serin.platforms.embedded.store import Store
from serin.report.story import tell
from serin.rollout.document import Candidate, Metadata, ModelRollout, Requests, Spec, Status


def test_a_cluster_gets_no_requests_unless_asked() -> None:
    assert rate_of(None, "embedded") > 0
    assert rate_of(None, "kserve:serving") == 0
    assert rate_of("25", "kserve") == 25
    assert rate_of("none", "embedded") == 0
    for nonsense in ("many", "-5", "nan", "inf"):
        with pytest.raises(UserError, match=nonsense):
            rate_of(nonsense, "embedded")


def test_a_namespace_not_named_is_that_of_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = {"cluster": "c", "user": "u", "namespace": "mine"}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(kubeconfig), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert place_of("kserve", tmp_path) == "kserve:mine"
    assert place_of("kserve:serving", tmp_path) == "kserve:serving"
    with pytest.raises(UserError, match="PLATFORM=cloud"):
        place_of("cloud", tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe\x00", "is not YAML"),
        (b"", "must be a mapping"),
        (b"service: churn\ndata: {source: a.csv, format: csv}", r"data\.format: unknown key"),
        (b"service: churn\ndata: {source: a.csv}\npositive: 1", "target: Field required"),
    ],
)
def test_a_config_that_cannot_be_ends_in_one_sentence(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=told):
        config.load(file)


def test_a_run_shows_what_was_under_way_to_its_end_and_then_its_own() -> None:
    def rollout(name: str, service: str = "churn") -> ModelRollout:
        return ModelRollout(
            metadata=Metadata(name=name), spec=Spec(service=service, candidate=Candidate(storage_uri="/m"))
        )

    there = [rollout("ended"), rollout("under-way"), rollout("other", "fraud")]
    assert newest(there[:1], "churn", {"ended"}) is None
    assert newest(there, "churn", {"ended"}) is there[1]
    ours = rollout("ours")
    assert newest([*there, ours], "churn", {"ended"}) is ours


def test_the_candidates_requests_are_those_that_the_rollouts_report_shows() -> None:
    rollout = ModelRollout(
        metadata=Metadata(name="churn-2"),
        spec=Spec(service="churn", candidate=Candidate(storage_uri="/m")),
        status=Status(candidate_revision="churn-00002", requests=Requests(stable=900, candidate=1234)),
    )
    tally = {"sent": 5000, "answered": 5000, "answers": [{"revision": "churn-00002", "count": 3000}]}
    outcome = Outcome({}, {}, rollout, None, pipeline_s=1, rollout_s=1, tally=tally)
    source = Source(Path("churn.csv"), SourceKind.FILE, sha256="", bytes=0)
    assert result_of(outcome, source, None, 2)["requests"]["candidate"] == 1234
    shown = {fact.label: fact.value for fact in tell(rollout, []).facts}
    assert shown["requests answered by the candidate"] == "1,234"


class Ended:
    """A pipeline that is over, and left this evaluation."""

    log = ""
    succeeded = True

    def __init__(self, evaluation: Path) -> None:
        self.progress = Progress()
        self._evaluation = evaluation

    def running(self) -> bool:
        return False

    def artifact(self, _: str, name: str) -> Path | None:
        return self._evaluation if name == "evaluation" else None

    def data(self, _: Source) -> str:
        return "churn.csv"

    @contextmanager
    def start(self, *_: object) -> Iterator["Ended"]:
        yield self


@pytest.mark.parametrize(("verdict", "told"), [("hold", False), ("promote", True)])
def test_a_rollout_under_way_is_the_runs_own_only_if_it_released(verdict: str, told: bool, tmp_path: Path) -> None:
    spec = Spec(service="churn", candidate=Candidate(storage_uri="/models/2"))
    store = Store(tmp_path / "home")
    store.create_rollout(ModelRollout(metadata=Metadata(name="churn-1"), spec=spec))
    store.close()
    settings = config.Config(service="churn", data=config.Data(source="churn.csv"), target="churn", positive="Yes")
    source = Source(tmp_path / "churn.csv", SourceKind.FILE, sha256="", bytes=0)
    (tmp_path / "evaluation").write_text(json.dumps({"verdict": verdict}), encoding="utf-8")
    run = Run(settings, source, f"embedded:{tmp_path / 'home'}", Ended(tmp_path / "evaluation"), tmp_path, 0)
    assert (run.execute((), "main", "Train, evaluate, release").rollout is not None) is told


def test_a_run_that_failed_says_why_in_its_folder(tmp_path, monkeypatch):
    def fails(*_: object, folder: Path, **__: object) -> None:
        folder.mkdir(parents=True)
        raise UserError("column 'x' is not there")

    monkeypatch.setattr(run, "_story", fails)
    table = tmp_path / "table.csv"
    source = Source(table, SourceKind.FILE, "0" * 64, 0)
    with pytest.raises(UserError):
        run.story(None, source, "embedded:x", None, runs=tmp_path / "runs", rate=0)
    (file,) = (tmp_path / "runs").glob("*/result.json")
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["verdict"], result["phase"]) == (None, None)
    assert result["reason"] == "Column 'x' is not there."
