"""The server as the process that a platform starts and stops."""

import contextlib
import http.client
import json
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import grpc
import onnx
import predictor_models as models
import psutil
import pytest
from predictor_process import DEADLINE_S, await_ready, command, free_port, predict, request, running
from private import readable_by_others
from unfinished_call import UnfinishedCall

from benchmarks.predictor_fuzz import fuzz
from serin.model import seal


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("model")
    models.write(root)
    return root


def refused(root: Path, *more: str) -> str:
    result = subprocess.run(
        command(root, free_port(), *more), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_serves_on_loopback_and_drains(root: Path) -> None:
    """Clients that keep sending through SIGTERM get an answer to every request the server took."""
    with running(root) as (process, port):
        assert not reachable(port, not_loopback())
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        failures: list[object] = []
        stopped = threading.Event()
        senders = [threading.Thread(target=send_until_refused, args=(port, failures, stopped)) for _ in range(4)]
        for sender in senders:
            sender.start()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        kept.request("GET", "/v2/health/ready")
        answer = kept.getresponse()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        stopped.set()
        for sender in senders:
            sender.join()
        assert process.wait(DEADLINE_S) == 0
        assert failures == []


def send_until_refused(port: int, failures: list[object], stopped: threading.Event) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)  # opens again after "close"
    while not stopped.is_set():
        try:
            connection.request("POST", "/v1/models/churn:predict", b'{"instances":[{"tenure":5}]}')
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                failures.append(answer.status)
        except OSError as error:
            failures.append(error)
    connection.close()


def not_loopback() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks the routing table for the own address
        except OSError:  # without another address nobody could reach a server that is not on loopback
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def reachable(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_malformed_requests_are_never_the_servers_fault(root: Path) -> None:
    faults: list[tuple[bytes, bytes]] = []
    with running(root) as (process, port):
        outcomes = fuzz(
            port, count=1500, seed=3, model="churn", records=models.RECORDS, failed=lambda *pair: faults.append(pair)
        )
        assert faults == []
        assert {"200", "400", "404", "405", "415"} <= outcomes.keys()
        assert process.poll() is None and predict(port)[0] == 200


def test_a_large_batch_answers_as_its_rows_do(root: Path) -> None:
    records = [dict(models.RECORDS[i % 3]) for i in range(2000)]
    with running(root) as (_, port):
        status, answer = request(
            port, "POST", "/v1/models/churn:predict", json.dumps({"instances": records}).encode()
        )
    expected = [models.score(record) for record in records]
    assert status == 200
    assert [row["probability"] for row in answer["predictions"]] == pytest.approx(expected, abs=1e-6)


def test_a_drained_server_has_written_its_log(root: Path, tmp_path: Path) -> None:
    with running(root, "--log", str(tmp_path / "log"), "--log-exclude", "Contract") as (process, port):
        for _ in range(3):
            predict(port)
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    assert readable_by_others(tmp_path / "log") == []
    rows = duckdb.read_parquet(f"{tmp_path}/log/*.parquet")
    assert rows.project("revision, features").fetchall() == [("churn-00001", {"tenure": 5.0, "Montant dû": None})] * 3


GUARDED = """
import os, resource, runpy, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the first byte written to a file kills
def guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir", "os.rename", "os.remove"):
        os.write(2, f"{event} {arguments}".encode()); os._exit(9)
sys.addaudithook(guard)
sys.argv[0] = "predictor"
runpy.run_module("predictor", run_name="__main__")
"""


def test_writes_no_file_and_calls_nobody(root: Path) -> None:
    port = free_port()
    guarded = [sys.executable, "-B", "-c", GUARDED, *command(root, port)[3:]]
    with subprocess.Popen(guarded) as process:
        try:
            await_ready(process, port)
            assert predict(port)[0] == 200
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def test_refuses_another_digest(root: Path) -> None:
    assert "digest is sha256:" in refused(root, "--digest", "sha256:0")


def test_refuses_a_changed_file(tmp_path: Path) -> None:
    models.write(tmp_path)
    (tmp_path / "meta" / "card.md").write_text("other", encoding="utf-8")
    assert "meta/card.md does not match its digest" in refused(tmp_path)


def test_refuses_an_opset_it_cannot_run(tmp_path: Path) -> None:
    model = models.onnx_model()
    model.opset_import[0].version = 999
    models.write(tmp_path, model=model)
    assert "cannot load model/model.onnx" in refused(tmp_path)


def test_refuses_a_model_that_is_not_the_signatures(tmp_path: Path) -> None:
    model = models.onnx_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [None, 1]))
    models.write(tmp_path, model=model)
    assert "input 'extra' is unknown in the signature" in refused(tmp_path)


def test_refuses_a_model_that_scores_otherwise_than_in_training(tmp_path: Path) -> None:
    models.write(tmp_path, scores=(0.1, 0.2, 0.3))
    assert "meta/samples.json differ by" in refused(tmp_path)


def test_refuses_an_explanation_that_does_not_add_up(tmp_path: Path) -> None:
    models.write(tmp_path, explanation=models.EXPLANATION.model_copy(update={"intercept": 0.1}))
    assert "sums of contributions differ by" in refused(tmp_path)


def test_refuses_a_file_it_cannot_read(tmp_path: Path) -> None:
    models.write(tmp_path)
    (tmp_path / "meta" / "signature.json").write_text('{"version": 2}', encoding="utf-8")
    seal(tmp_path)
    assert "not readable by this version (Signature: Input should be 1)" in refused(tmp_path)


def test_refuses_a_model_without_its_signature(tmp_path: Path) -> None:
    models.write(tmp_path)
    (tmp_path / "meta" / "signature.json").unlink()
    seal(tmp_path)
    assert "meta/signature.json cannot be read (No such file or directory)" in refused(tmp_path)


def test_refuses_an_explanation_of_another_model(tmp_path: Path) -> None:
    explanation = models.EXPLANATION
    column = explanation.columns[0].model_copy(update={"feature": "age"})
    models.write(tmp_path, explanation=explanation.model_copy(update={"columns": (column, *explanation.columns[1:])}))
    assert "meta/explanation.json explains ['age']" in refused(tmp_path)


def test_websockets_are_not_spoken(root: Path) -> None:
    with running(root) as (_, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}  # fmt: skip
        connection.request("GET", "/x", headers=upgrade)
        assert connection.getresponse().status == 404


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_refuses_what_is_no_port(root: Path, port: str) -> None:
    assert "--http-port" in refused(root, f"--http-port={port}")


def test_refuses_a_port_in_use(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}" in refused(root, "--http-port", port)


def test_drill_errors(root: Path) -> None:
    with running(root, "--fault", "errors", module="predictor.drill") as (_, port):
        assert predict(port)[0] == 500
        assert request(port, "GET", "/metrics/serin.json")[1]["requests"] == {"500": 1}


def test_drill_rate_and_fault_from_the_environment(root: Path) -> None:
    with running(root, module="predictor.drill", SERIN_FAULT="errors", SERIN_FAULT_RATE="0.5") as (_, port):
        assert {predict(port)[0] for _ in range(60)} == {200, 500}


def test_drill_latency_is_in_the_histogram(root: Path) -> None:
    with running(root, "--fault", "latency", module="predictor.drill") as (_, port):
        assert predict(port)[0] == 200
        (bucket,) = request(port, "GET", "/metrics/serin.json")[1]["latency"]
        assert int(bucket) >= 147  # above 0.14 s


def test_drill_scores(root: Path) -> None:
    with running(root, "--fault", "scores", module="predictor.drill") as (_, port):
        assert predict(port)[1]["predictions"][0]["probability"] == pytest.approx(0.97)


def test_drill_crash(root: Path) -> None:
    with running(root, "--fault", "crash", module="predictor.drill") as (process, port):
        assert predict(port)[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            for _ in range(100):
                predict(port)
        assert process.wait(DEADLINE_S) == 1


def test_on_a_unix_socket_it_serves_its_user_alone_and_takes_over_what_a_killed_server_left(
    root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "server"
    for _ in range(2):
        with subprocess.Popen(command(root, 0, "--unix-socket", str(path))) as process:
            try:
                deadline_s = time.monotonic() + DEADLINE_S
                while answer_on(path) != 200:
                    assert process.poll() is None and time.monotonic() < deadline_s, "the server does not start"
                    time.sleep(0.05)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert psutil.Process(process.pid).connections("inet") == []
            finally:
                process.kill()
    path.unlink()
    path.write_text("a file of the user's")
    assert "Address already in use" in refused(root, "--unix-socket", str(path))
    assert path.read_text() == "a file of the user's"
    assert "too long" in refused(root, "--unix-socket", str(tmp_path / ("x" * 108)))


def answer_on(path: Path) -> int | None:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return None
        connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return int(connection.recv(4096).split()[1])


def test_unfinished_bodies_take_no_more_than_their_budget(root: Path) -> None:
    """Health and small requests are answered meanwhile, and a large body that comes in one go, too."""
    head = b"POST /v1/models/churn:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 7340032\r\n\r\n"
    with running(root) as (process, port), contextlib.ExitStack() as held:
        before_mb = psutil.Process(process.pid).memory_info().rss / 2**20
        for _ in range(60):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            with contextlib.suppress(ConnectionError):  # made room for the next one
                connection.sendall(head + b" " * (7_340_032 - 1))
        grown_mb = psutil.Process(process.pid).memory_info().rss / 2**20 - before_mb
        assert request(port, "GET", "/v2/health/ready")[0] == 200
        assert predict(port)[0] == 200
        assert request(port, "POST", "/v1/models/churn:predict", b'{"instances":[{}]}' + b" " * 7_000_000)[0] == 200
        refused = sum(each.startswith("4") for each in request(port, "GET", "/metrics/serin.json")[1]["requests"])
    assert refused and grown_mb < 150


def test_unfinished_grpc_messages_take_no_more_than_their_budget(root: Path) -> None:
    grpc_port = free_port()
    with running(root, "--grpc-port", str(grpc_port)) as (process, port), contextlib.ExitStack() as held:
        before_mb = psutil.Process(process.pid).memory_info().rss / 2**20
        calls = [held.enter_context(contextlib.closing(UnfinishedCall(grpc_port, 7_340_032))) for _ in range(60)]
        senders = [threading.Thread(target=call.send, args=(5,)) for call in calls]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        grown_mb = psutil.Process(process.pid).memory_info().rss / 2**20 - before_mb
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            ready = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
            assert ready(b"", timeout=10) == b"\x08\x01"
        assert predict(port)[0] == 200
    assert any(call.missing_bytes == 0 for call in calls) and grown_mb < 200


def test_bodies_that_grow_when_they_are_parsed_are_parsed_one_at_a_time(root: Path) -> None:
    body = b'{"instances":[' + b",".join([b"[]"] * 2_700_000) + b"]}"

    def ask(port: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=200)) as connection:
            connection.request("POST", "/v1/models/churn:predict", body)
            connection.getresponse().read()

    with running(root) as (process, port):
        asked = [threading.Thread(target=ask, args=(port,)) for _ in range(6)]
        for each in asked:
            each.start()
        most_mb = 0.0
        while any(each.is_alive() for each in asked):
            most_mb = max(most_mb, psutil.Process(process.pid).memory_info().rss / 2**20)
            time.sleep(0.01)
        assert request(port, "GET", "/metrics/serin.json")[1]["requests"] == {"400": 6}
    assert most_mb < 450


def test_a_thousand_bad_requests_are_no_thousand_lines(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grpc_port = free_port()
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    forged = b"GET /\x1b[2J%0aforged HTTP/1.1\r\nX-Request-Id: a\nb\r\nConnection: close\r\n\r\n"
    with running(root, "--grpc-port", str(grpc_port), "--fault", "errors", module="predictor.drill") as (_, port):
        for _ in range(1000):
            for target, sent in ((port, b"rubbish\r\n\r\n"), (port, upgrade), (port, forged), (grpc_port, forged)):
                with (
                    contextlib.suppress(ConnectionError),
                    socket.create_connection(("127.0.0.1", target), timeout=10) as connection,
                ):
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for _ in range(1000):
                with pytest.raises(grpc.RpcError):
                    infer(b"\xff")
        for _ in range(100):
            assert predict(port)[0] == 500
    lines = capfd.readouterr().err.splitlines()
    assert 10 < len(lines) < 1000 and all(line.isprintable() for line in lines), lines[:50]
