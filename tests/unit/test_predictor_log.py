"""The prediction log: what is written, what is left out, and that it never stands in a request's way."""

import http.server
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import predictor_models as models
import pytest

from predictor.columns import Layout, from_records
from predictor.log import CAPACITY_BYTES, Entry, Fields, PredictionLog
from predictor.sinks import ParquetFiles, sink
from serin.errors import UserError

LAYOUT = Layout.of(models.SIGNATURE.features)
NAMES = {"model": "churn", "revision": "churn-00001", "digest": "sha256:1'"}
HOUR_S = 3600.0


def entry(request_id: str, *records: object, scores: Sequence[float]) -> Entry:
    return Entry(request_id, 1_700_000_000.5, from_records(LAYOUT, records), np.array(scores, np.float32), 50)


ENTRIES = (
    entry("r1", {"tenure": 5, "Contract": "One year"}, {}, scores=[0.75, 0.25]),
    entry("r2", {"Montant dû": 1.5, "Contract": "it's"}, scores=[0.5]),
)


def logged(directory: Path) -> list[tuple[object, ...]]:
    """The rows, their time in epoch seconds."""
    rows = duckdb.read_parquet(f"{directory}/*.parquet").order("request_id, row")
    return rows.project("* REPLACE (epoch(time) AS time)").fetchall()


def test_parquet_holds_every_row(tmp_path: Path) -> None:
    log = PredictionLog(sink(str(tmp_path / "log"), Fields(LAYOUT), models.SIGNATURE, **NAMES), write_s=HOUR_S)
    for each in ENTRIES:
        log.add(each)
    log.close()
    assert log.rows == {"written": 3, "failed": 0, "dropped": 0}
    rows = logged(tmp_path / "log")
    assert [(row[0], row[1], row[3], row[4], row[5], row[6]) for row in rows] == [
        ("r1", 0, "churn-00001", "sha256:1'", 0.75, "Yes"),
        ("r1", 1, "churn-00001", "sha256:1'", 0.25, "No"),
        ("r2", 0, "churn-00001", "sha256:1'", 0.5, "Yes"),
    ]
    assert rows[0][2] == 1_700_000_000.5
    assert [row[7] for row in rows] == [
        {"tenure": 5.0, "Montant dû": None, "Contract": "One year"},
        {"tenure": None, "Montant dû": None, "Contract": None},
        {"tenure": None, "Montant dû": 1.5, "Contract": "it's"},
    ]
    assert not list((tmp_path / "log").glob(".*"))


def test_fields_can_be_left_out_or_hashed(tmp_path: Path) -> None:
    fields = Fields(LAYOUT, frozenset({"Montant dû"}), frozenset({"Contract", "tenure"}), b"secret")
    sink(str(tmp_path), fields, models.SIGNATURE, **NAMES).write(ENTRIES)
    first, empty, other = (row[7] for row in logged(tmp_path))
    assert set(first) == {"tenure", "Contract"} and set(empty.values()) == {None}
    assert len(first["Contract"]) == 32 and first["Contract"] != other["Contract"]
    same, another_key = (
        Fields(LAYOUT, hashed=fields.hashed, key=b"secret"),
        Fields(LAYOUT, hashed=fields.hashed, key=b"2"),
    )
    assert same.columns(ENTRIES[0].batch)["Contract"][0] == first["Contract"]
    both = Fields(LAYOUT, frozenset({"Contract"}), frozenset({"Contract"}), b"secret")
    assert "Contract" not in both.columns(ENTRIES[0].batch)
    assert another_key.columns(ENTRIES[0].batch)["Contract"][0] != first["Contract"]


def test_everything_can_be_left_out(tmp_path: Path) -> None:
    sink(str(tmp_path), Fields(LAYOUT, LAYOUT.names), models.SIGNATURE, **NAMES).write(ENTRIES)
    assert {row[7] for row in logged(tmp_path)} == {None}


@pytest.mark.parametrize(
    ("excluded", "hashed", "key", "named"),
    [
        ({"x"}, set(), b"", "'x' is not a feature"),
        (set(), {"x"}, b"k", "'x'"),
        (set(), {"tenure"}, b"", "SERIN_LOG_KEY"),
    ],
)
def test_bad_fields_are_refused(excluded: set[str], hashed: set[str], key: bytes, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Fields(LAYOUT, frozenset(excluded), frozenset(hashed), key)


@pytest.mark.parametrize(
    ("target", "environment", "named"),
    [
        ("/proc/log", {}, "/proc/log cannot be created"),
        ("gs://bucket/log", {}, "neither a directory, an s3:// prefix nor an http address"),
        ("http://", {}, "not an address of the form"),
        ("http://[::1", {}, "not an address of the form"),
        ("http://host:99999/log", {}, "not an address of the form"),
        ("http://user:secret@host/log", {}, "not an address of the form"),
        ("s3://bucket/log", {}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/log", {"AWS_ACCESS_KEY_ID": "k"}, "Missing SecretAccessKey"),
        ("s3://", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, "Unable to recognise URL"),
    ],
)
def test_bad_targets_are_refused(
    target: str, environment: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^Prediction log: .*{named}") as refusal:
        sink(target, Fields(LAYOUT), models.SIGNATURE, **NAMES)
    assert "\n" not in str(refusal.value)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(file: Path, name: str) -> None:
        assert file.stat().st_size > 0
        raise OSError("disk full")

    names = {name: NAMES[name] for name in ("revision", "digest")}
    with pytest.raises(OSError, match="disk full"):
        ParquetFiles(tmp_path, refuse, Fields(LAYOUT), models.SIGNATURE, **names).write(ENTRIES)
    assert not list(tmp_path.iterdir())


class Stuck:
    """Takes nothing until told to, then fails once."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.written: list[Entry] = []

    def write(self, entries: Sequence[Entry]) -> None:
        if not self.entered.is_set():
            self.entered.set()
            self.go.wait(10)
            raise OSError("disk full")
        self.written += entries


def test_a_stuck_sink_loses_rows_and_nothing_else() -> None:
    stuck = Stuck()
    log = PredictionLog(stuck, capacity_rows=3, write_s=0.01)
    log.add(ENTRIES[0])
    assert stuck.entered.wait(10)
    for each in (*ENTRIES, ENTRIES[1]):  # room for the first two of them
        log.add(each)
    stuck.go.set()
    log.close()
    assert log.rows == {"failed": 2, "dropped": 1, "written": 3}
    assert stuck.written == list(ENTRIES)


def test_the_buffer_is_bounded_in_bytes() -> None:
    stuck = Stuck()
    log = PredictionLog(stuck, write_s=0.01)
    log.add(ENTRIES[0])
    assert stuck.entered.wait(10)
    large = replace(ENTRIES[1], size_bytes=CAPACITY_BYTES // 3)
    for _ in range(5):
        log.add(large)
    stuck.go.set()
    log.close()
    assert log.rows == {"failed": 2, "written": 3, "dropped": 2}


def test_rows_not_written_at_the_end_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Those being written, those that wait, and those that come later."""
    stuck = Stuck()
    log = PredictionLog(stuck, write_s=0.01)
    log.add(ENTRIES[0])
    assert stuck.entered.wait(10)
    log.add(ENTRIES[1])
    log.close(timeout_s=0.05)
    log.add(ENTRIES[1])
    assert log.rows == {"written": 0, "failed": 0, "dropped": 4}
    assert "3 rows of the prediction log are lost" in caplog.text
    stuck.go.set()
    log._thread.join(10)
    assert log.rows == {"written": 0, "failed": 0, "dropped": 4}  # each once


@pytest.fixture
def events() -> Iterator[tuple[str, list[tuple[dict[str, str], object]]]]:
    received: list[tuple[dict[str, str], object]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((dict(self.headers), json.loads(body)))
            refused = self.path == "/broken" or (self.path == "/full" and len(received) > 2)
            self.send_response(500 if refused else 202)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def test_cloud_events_are_kserves(events: tuple[str, list[tuple[dict[str, str], object]]]) -> None:
    address, received = events
    sink(f"{address}/log?x=1", Fields(LAYOUT), models.SIGNATURE, **NAMES).write(ENTRIES[:1])
    (request_headers, request), (response_headers, response) = received
    assert request == {
        "instances": [
            {"tenure": 5.0, "Montant dû": None, "Contract": "One year"},
            {"tenure": None, "Montant dû": None, "Contract": None},
        ]
    }
    assert response == {
        "predictions": [{"probability": 0.75, "decision": "Yes"}, {"probability": 0.25, "decision": "No"}]
    }
    assert request_headers["ce-type"] == "org.kubeflow.serving.inference.request"
    assert response_headers["ce-type"] == "org.kubeflow.serving.inference.response"
    for headers in (request_headers, response_headers):
        assert (headers["ce-id"], headers["ce-specversion"], headers["ce-revision"]) == ("r1", "1.0", "churn-00001")
        assert headers["ce-time"] == "2023-11-14T22:13:20.500000+00:00"


def test_a_sink_that_refuses_events_is_counted(events: tuple[str, list[tuple[dict[str, str], object]]]) -> None:
    address, received = events
    for path, written, failed in (("broken", 0, 3), ("full", 2, 1)):
        received.clear()
        log = PredictionLog(sink(f"{address}/{path}", Fields(LAYOUT), models.SIGNATURE, **NAMES), write_s=HOUR_S)
        for each in ENTRIES:
            log.add(each)
        log.close()
        assert log.rows == {"written": written, "failed": failed, "dropped": 0}
