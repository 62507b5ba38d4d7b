"""The prediction log on a real S3 server."""

import http.server
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import obstore
import predictor_models as models
import pytest
from obstore.store import S3Store
from predictor_process import DEADLINE_S, predict, running
from s3_server import s3_server

from predictor.columns import Layout, from_records
from predictor.log import Entry, Fields, PredictionLog
from predictor.sinks import sink

LAYOUT = Layout.of(models.SIGNATURE.features)
BATCH = from_records(LAYOUT, [{"tenure": 5}, {}])
ENTRY = Entry("r1", 1_700_000_000.5, BATCH, np.array([0.75, 0.25], np.float32), 50)
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of an S3 server with one bucket, "logs"."""
    with s3_server("logs") as address:
        yield address


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are put together."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)


def log_to(target: str) -> PredictionLog:
    names = {"model": "churn", "revision": "churn-00001", "digest": "sha256:1"}
    return PredictionLog(sink(target, Fields(LAYOUT), models.SIGNATURE, **names), write_s=HOUR_S)


def logged(target: str, folder: Path) -> duckdb.DuckDBPyRelation:
    """The one file under `target`."""
    store = S3Store.from_url(target, client_options={"allow_http": True})
    (name,) = (entry["path"] for page in obstore.list(store) for entry in page)
    assert name.endswith(".parquet")
    copy = folder / name
    copy.write_bytes(obstore.get(store, name).bytes())
    return duckdb.read_parquet(str(copy))


def test_files_lie_under_the_prefix(address: str, temporary: Path, tmp_path: Path, monkeypatch) -> None:
    use(address, monkeypatch)
    log = log_to("s3://logs/churn/a b")
    log.add(ENTRY)
    log.close()
    assert log.rows == {"written": 2, "failed": 0, "dropped": 0}
    rows = logged("s3://logs/churn/a b", tmp_path).project(
        "request_id, row, revision, digest, score, features.tenure"
    )
    assert rows.order("row").fetchall() == [
        ("r1", 0, "churn-00001", "sha256:1", 0.75, 5.0),
        ("r1", 1, "churn-00001", "sha256:1", 0.25, None),
    ]
    assert not list(temporary.iterdir())


def test_what_the_store_refuses_is_counted(address: str, temporary: Path, monkeypatch) -> None:
    use(address, monkeypatch)
    log = log_to("s3://no-such-bucket/churn")
    log.add(ENTRY)
    log.close()
    assert log.rows == {"written": 0, "failed": 2, "dropped": 0}
    assert not list(temporary.iterdir())


@pytest.fixture
def stumbling() -> Iterator[tuple[str, list[int]]]:
    """A store that is overloaded when it is first asked, and its answers."""
    answers: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            answers.append(200 if answers else 503)
            self.send_response(answers[-1])
            self.send_header("etag", '"1"')
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


def test_an_overloaded_store_is_asked_again(stumbling: tuple[str, list[int]], monkeypatch) -> None:
    address, answers = stumbling
    use(address, monkeypatch)
    log = log_to("s3://logs/churn")
    log.add(ENTRY)
    log.close()
    assert (log.rows["written"], answers) == (2, [503, 200])


def test_a_drained_server_has_written_its_log(address: str, tmp_path: Path, monkeypatch) -> None:
    use(address, monkeypatch)
    models.write(tmp_path / "model")
    with running(tmp_path / "model", "--log", "s3://logs/served") as (process, port):
        for _ in range(3):
            predict(port)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert (
        logged("s3://logs/served", tmp_path).project("revision, features.tenure").fetchall()
        == [("churn-00001", 5.0)] * 3
    )
