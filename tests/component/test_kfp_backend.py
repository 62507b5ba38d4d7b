"""The KFP side of `make cluster-run`: the real client and a real S3 server, a backend that answers from a list."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from components import storage
from components.config import Store
from components.preprocess.sources import Source, SourceKind, sha256_of
from components.shell import MARK
from pipelines import cluster
from pipelines.cluster import NAME, Kfp
from serin.errors import TryAgain, UserError

IMAGE = "dev.local/serin/pipeline:1111"
STORE = Store(uri="minio://bucket/kfp")
ARTIFACTS = f"s3://bucket/kfp/runs/{NAME}/run-1"


@dataclass
class Backend:
    """What it was sent, and the runs it shows one after another."""

    runs: list[dict[str, object]]
    versions: list[str] = field(default_factory=list)
    submitted: list[dict[str, object]] = field(default_factory=list)
    refuses: int = 0

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> dict[str, object]:
        match method, path.removeprefix("/apis/v2beta1/").split("/"):
            case "GET", ["pipelines"]:
                return {"pipelines": [{"pipeline_id": "p"}] if self.versions else []}
            case "POST", ["pipelines", "upload"]:
                self.versions.append(NAME)
                return {"pipeline_id": "p"}
            case "GET", ["pipelines", "p", "versions"]:
                wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
                return {"pipeline_versions": [{"pipeline_version_id": v} for v in self.versions if v == wanted]}
            case "POST", ["pipelines", "upload_version"]:
                self.versions.append(query["name"][0])
                return {"pipeline_id": "p", "pipeline_version_id": query["name"][0]}
            case "POST", ["runs"]:
                self.submitted.append(json.loads(body))
                return {"run_id": "run-1"}
            case "GET", ["runs", "run-1"]:
                return self.runs.pop(0) if len(self.runs) > 1 else self.runs[0]
            case _, ["experiments", *_]:
                return {"experiment_id": "e", "display_name": "serin", "experiments": []}
        return {}


@pytest.fixture
def backend() -> Iterator[tuple[Backend, str]]:
    state = Backend([{"run_id": "run-1", "state": "SUCCEEDED"}])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = state.answer(self.command, parts.path, parse_qs(parts.query), body)
            content = json.dumps(answer).encode()
            self.send_response(state.refuses or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield state, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "POLL_S", 0.0)


def task(name: str, state: str) -> dict[str, object]:
    return {"display_name": name, "state": state}


def put(address: str, name: str, text: str, folder: Path) -> None:
    (folder / "put").write_text(text, encoding="utf-8")
    storage.put(folder / "put", address, name)


@pytest.mark.usefixtures("s3")
def test_a_run_is_submitted_followed_and_its_artifacts_fetched(backend: tuple[Backend, str], tmp_path: Path) -> None:
    state, endpoint = backend
    state.runs = [
        {"run_id": "run-1", "state": "RUNNING", "run_details": {"task_details": [task("preprocess", "RUNNING")]}},
        {"run_id": "run-1", "state": "SUCCEEDED", "run_details": {"task_details": [task("preprocess", "SUCCEEDED")]}},
    ]
    put(ARTIFACTS, "evaluate/7/challenger/model/model.onnx", "model", tmp_path)
    put(ARTIFACTS, "evaluate/7/evaluation", "{}", tmp_path)
    told: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    with Kfp(endpoint, IMAGE, STORE).start({"learners": ["rule"]}, folder, told.append) as execution:
        while execution.running():
            pass
    assert execution.succeeded
    assert [line.split(" in ")[0] for line in told[1:]] == ["preprocess …", "preprocess done"]
    assert told[0].endswith("/#/runs/details/run-1")
    evaluation, challenger = (
        execution.artifact("evaluate", "evaluation"),
        execution.artifact("evaluate", "challenger"),
    )
    assert evaluation is not None
    assert evaluation.read_text() == "{}"
    assert challenger is not None
    assert (challenger / "model" / "model.onnx").read_text() == "model"
    assert execution.artifact("deploy", "rollout") is None
    (run,) = state.submitted
    assert run["runtime_config"] == {"parameters": {"learners": ["rule"]}, "pipeline_root": "minio://bucket/kfp/runs"}
    assert run["pipeline_version_reference"] == {"pipeline_id": "p", "pipeline_version_id": state.versions[-1]}


@pytest.mark.usefixtures("s3")
def test_the_same_file_is_uploaded_once_and_one_for_another_image_again(
    backend: tuple[Backend, str], tmp_path: Path
) -> None:
    state, endpoint = backend
    for number, image in enumerate((IMAGE, IMAGE, "dev.local/serin/pipeline:2222")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Kfp(endpoint, image, STORE).start({}, folder, lambda _: None):
            pass
    used = [run["pipeline_version_reference"]["pipeline_version_id"] for run in state.submitted]
    assert used[0] == used[1] != used[2]
    assert state.versions == [NAME, used[0], used[2]]


@pytest.mark.usefixtures("s3")
def test_a_users_mistake_is_found_in_the_log_of_the_step(backend: tuple[Backend, str], tmp_path: Path) -> None:
    state, endpoint = backend
    state.runs = [
        {"run_id": "run-1", "state": "FAILED", "run_details": {"task_details": [task("preprocess", "FAILED")]}}
    ]
    put(ARTIFACTS, "preprocess/1/executor-logs-0", f"starting\n{MARK}Column 'churn' is not there.\n", tmp_path)
    with Kfp(endpoint, IMAGE, STORE).start({}, tmp_path, lambda _: None) as execution:
        while execution.running():
            pass
    assert not execution.succeeded
    assert execution.progress.mistake == "Column 'churn' is not there."


@pytest.mark.usefixtures("s3")
def test_a_table_is_copied_into_the_store_under_its_digest(backend: tuple[Backend, str], tmp_path: Path) -> None:
    table = tmp_path / "customers.csv"
    table.write_text("a\n1\n", encoding="utf-8")
    source = Source(table, SourceKind.FILE, sha256_of(table), table.stat().st_size)
    address = Kfp(backend[1], IMAGE, STORE).data(source)
    folder, _, name = address.rpartition("/")
    assert (folder, name) == ("s3://bucket/kfp/data", f"{source.sha256[:16]}-customers.csv")
    assert storage.names(folder) == [name]


def test_a_backend_that_is_away_or_refuses_is_named(backend: tuple[Backend, str], tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match=r"http://127\.0\.0\.1:9"):
        Kfp("http://127.0.0.1:9", IMAGE, STORE)
    state, endpoint = backend
    kfp = Kfp(endpoint, IMAGE, STORE)
    state.refuses = 403
    with pytest.raises(UserError, match="403"), kfp.start({}, tmp_path, lambda _: None):
        pass
