"""The predictor against the stock servers, with one model, the same requests and one machine: `make bench-predictor`.

The model is an XGBoost pipeline over raw Telco records (the data set the config names; SERIN_DATA points to a
local copy). The peers run it as scikit-learn pipeline, from a throw-away environment that is removed again. One
server runs at a time; servers and load generator share the machine, each server is held to one native thread.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import joblib
import psutil

from benchmarks.common import Row, report
from benchmarks.predictor_fuzz import fuzz
from benchmarks.predictor_load import Load, closed_loop, open_loop, post
from components import config, dataset
from components.preprocess import core as preprocessing
from components.preprocess import sources
from components.train import core as training
from components.train import features
from components.train.learners import RECIPES
from serin.model import Samples, samples, signature

ROOT: Final = Path(__file__).parents[1]
CLIENTS: Final = 8
WARM_S: Final = 1.5
RUN_S: Final = 5.0
ROUNDS: Final = 2
START_S: Final = 60.0
STARTS: Final = 5
FUZZ: Final = 100_000
SOAK: Final = 1_000_000
SHARE_OF_MAXIMUM: Final = 0.6

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Server:
    """How to start a server on a port, and what it takes for a request."""

    name: str
    command: Callable[[int], list[str]]
    request: Callable[[Records], bytes]
    env: dict[str, str]


# ---- the model, twice


def train(scratch: Path) -> tuple[Path, Path]:
    """The model directory, and the same pipeline for scikit-learn."""
    path = ROOT / "pipelines/configs/telco.yaml"
    settings = config.load(path)
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"trials": 1})})
    source = sources.resolve(settings, config_path=path, cache=scratch, environ=os.environ)
    train, test, model, pipeline = (scratch / name for name in ("train", "test", "model", "pipeline.joblib"))
    preprocessing.preprocess(settings, source.path, source_kind=source.kind, champion=None, train=train, test=test)
    training.train(settings, "xgboost", train=train, test=test, out=model)
    schema, rows = dataset.read_schema(train), dataset.read_rows(train)
    columns = features.of_schema(schema)
    inputs = features.frame(rows, columns).rename(columns={column.input: column.name for column in columns})
    recipe = RECIPES["xgboost"]
    joblib.dump(recipe.build(recipe.first, inputs, settings.training.seed).fit(inputs, rows[schema.target]), pipeline)
    return model, pipeline


def full_records(held_out: Samples) -> Records:
    """Those without missing values: not every peer takes them."""
    return [record for record in held_out.records if None not in record.values()]


# ---- the servers


def serin(model: Path, *more: str) -> Server:
    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "predictor", "--model-name", "churn", "--model-dir", str(model),
                "--revision", "churn-00001", "--http-port", str(port), *more]  # fmt: skip

    return Server("serin", command, instances, {})


def instances(records: Records) -> bytes:
    return post("/v1/models/churn:predict", json.dumps({"instances": records}).encode())


def peers(scratch: Path, pipeline: Path, dtypes: dict[str, str]) -> list[Server]:
    """The stock servers. MLServer and BentoML come from PyPI, into an environment below `scratch`."""
    environment = scratch / "peers"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    requirements = Path(__file__).with_name("requirements-peers.txt")
    python = str(environment / "bin" / "python")
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "-r", str(requirements)], check=True)
    mlserver = scratch / "mlserver"
    mlserver.mkdir()
    (mlserver / "model-settings.json").write_text(
        json.dumps({"name": "churn", "implementation": "mlserver_sklearn.SKLearnModel",
                    "parameters": {"uri": str(pipeline), "content_type": "pd"}}))  # fmt: skip

    def mlserver_command(port: int) -> list[str]:
        settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(),
                    "parallel_workers": 0, "debug": False}  # fmt: skip
        (mlserver / "settings.json").write_text(json.dumps(settings))
        return [str(environment / "bin" / "mlserver"), "start", str(mlserver)]

    def bentoml_command(port: int) -> list[str]:
        service = "benchmarks.predictor_peer_bentoml:Churn"
        return [python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]

    bentoml_env = {
        "SERIN_PEER_MODEL": str(pipeline),
        "BENTOML_DO_NOT_TRACK": "1",
        "BENTOML_HOME": str(scratch / "bentoml"),
        "PYTHONPATH": str(ROOT),
    }
    return [
        Server("kserve sklearn server", partial(kserve_command, str(pipeline)), lists, {}),
        Server("MLServer", mlserver_command, lambda records: tensors(records, dtypes), {}),
        Server(
            "BentoML", bentoml_command, lambda r: post("/predict", json.dumps({"records": r}).encode()), bentoml_env
        ),
    ]


def kserve_command(model: str, port: int) -> list[str]:
    return [sys.executable, "-m", "benchmarks.predictor_peer_kserve", str(port), model]


def lists(records: Records) -> bytes:
    """Named columns as KServe's own codec wants them."""
    return instances([{name: [record[name] for record in records] for name in records[0]}])


def tensors(records: Records, dtypes: dict[str, str]) -> bytes:
    kinds = {"number": {"datatype": "FP32"}, "string": {"datatype": "BYTES", "parameters": {"content_type": "str"}}}
    inputs = [
        {"name": name, "shape": [len(records), 1], "data": [record[name] for record in records]} | kinds[dtypes[name]]
        for name in records[0]
    ]
    document = {"inputs": inputs, "outputs": [{"name": "predict_proba"}]}
    return post("/v2/models/churn/infer", json.dumps(document).encode())


@dataclass(frozen=True)
class Running:
    port: int
    pid: int
    ready_s: float

    def memory_mb(self) -> float:
        """Resident, of the process and all its children."""
        process = psutil.Process(self.pid)
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(server: Server, first: bytes) -> Iterator[Running]:
    """Started, and ready: it has answered `first` with 200."""
    port = free_port()
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | server.env
    with tempfile.TemporaryFile() as output:
        started_s = time.perf_counter()
        process = subprocess.Popen(
            server.command(port), env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not answers(port, first):
                if process.poll() is not None or time.perf_counter() - started_s > START_S:
                    output.seek(0)
                    raise RuntimeError(
                        f"{server.name} does not start: {output.read()[-2000:].decode(errors='replace')}"
                    )
                time.sleep(0.01)
            yield Running(port, process.pid, time.perf_counter() - started_s)
        finally:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for member in family:  # killing the group would spare workers that made one of their own
                member.kill()
            process.wait()


def answers(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request)
            return b" 200 " in connection.recv(200)[:20]
    except OSError:
        return False


# ---- what is measured


def bodies(server: Server, records: Records, rows: int) -> list[bytes]:
    starts = range(0, len(records) - rows + 1, rows)
    return [server.request(records[start : start + rows]) for start in starts]


def throughput(server: Server, records: Records, *, rows: int, clients: int) -> Load:
    """The best of `ROUNDS` closed-loop runs."""
    requests = bodies(server, records, rows)
    with running(server, requests[0]) as started:
        closed_loop(started.port, requests, connections=clients, seconds=WARM_S)
        loads = [closed_loop(started.port, requests, connections=clients, seconds=RUN_S) for _ in range(ROUNDS)]
    return max(loads, key=lambda load: load.rate)


def p99_ms(server: Server, records: Records, rate: float) -> float:
    """Of `ROUNDS` open-loop runs at `rate` requests per second, the better."""
    requests = bodies(server, records, 1)
    with running(server, requests[0]) as started:
        closed_loop(started.port, requests, connections=CLIENTS, seconds=WARM_S)
        loads = [open_loop(started.port, requests, rate=rate, seconds=RUN_S) for _ in range(ROUNDS)]
    return min(load.percentile_ms(99) for load in loads)


def throughput_rows(serin: Server, constant: Server, stock: list[Server], records: Records) -> list[Row]:
    rows = []
    one_row = {}
    for server in (serin, constant, *stock):
        for size in (1, 32):
            load = throughput(server, records, rows=size, clients=CLIENTS)
            what = f"{server.name}: {size} row{'s' * (size > 1)}, {CLIENTS} clients"
            rows.append(Row(what, load.rate, "requests/s"))
            if size == 1:
                one_row[server.name] = load.rate
    best = max(one_row[server.name] for server in stock)
    rows.append(Row("throughput vs the best stock peer", one_row["serin"] / best, "x", ">= 10"))
    rows.append(
        Row("throughput vs a constant kserve model", one_row["serin"] / one_row[constant.name], "x", ">= 0.8")
    )
    return rows + latency_rows(serin, [(server, one_row[server.name]) for server in stock], records)


def latency_rows(serin: Server, maxima: list[tuple[Server, float]], records: Records) -> list[Row]:
    """Each peer at 60 % of its own maximum, and serin at the rate of the peer with the lowest p99."""
    rows, measured = [], []
    for peer, maximum in maxima:
        rate = SHARE_OF_MAXIMUM * maximum
        p99 = p99_ms(peer, records, rate)
        measured.append((p99, rate))
        rows.append(Row(f"{peer.name}: p99 at {rate:.0f} requests/s, 60 % of its maximum", p99, "ms"))
    best, rate = min(measured)
    own = p99_ms(serin, records, rate)
    rows.append(Row(f"serin: p99 at {rate:.0f} requests/s", own, "ms"))
    rows.append(Row("p99 vs the best stock peer at 60 % of the peer's maximum", own / best, "x", "<= 0.2"))
    return rows


def start_rows(server: Server, records: Records) -> list[Row]:
    requests = bodies(server, records, 1)
    ready_s, memory_mb = [], []
    for _ in range(STARTS):
        with running(server, requests[0]) as started:
            closed_loop(started.port, requests, connections=CLIENTS, seconds=WARM_S)
            ready_s.append(started.ready_s)
            memory_mb.append(started.memory_mb())
    return [
        Row(f"start to first answer, median of {STARTS}", statistics.median(ready_s), "s", "<= 1.5"),
        Row("resident memory under load", max(memory_mb), "MB", "<= 150"),
    ]


def log_rows(model: Path, records: Records, scratch: Path) -> list[Row]:
    """With prediction log and metrics read 4 times a second, and without: in turns, so that both meet the same
    neighbours."""
    plain, logging = serin(model), serin(model, "--log", str(scratch / "log"))
    requests = bodies(plain, records, 1)
    off, on = [], []
    with running(plain, requests[0]) as without, running(logging, requests[0]) as with_log:
        for _ in range(8):
            off.append(closed_loop(without.port, requests, connections=CLIENTS, seconds=2.5).rate)
            with polled(with_log.port):
                on.append(closed_loop(with_log.port, requests, connections=CLIENTS, seconds=2.5).rate)
        memory_mb = with_log.memory_mb()
    ratios = [with_ / without_ for with_, without_ in zip(on[1:], off[1:], strict=True)]
    return [
        Row("throughput with prediction log and metrics vs without", statistics.median(ratios), "x", ">= 0.9"),
        Row("resident memory with the prediction log", memory_mb, "MB"),
    ]


@contextmanager
def polled(port: int) -> Iterator[None]:
    """Both metrics endpoints read as a supervisor and a Prometheus read them."""
    loop = (
        "import sys, time, urllib.request\n"
        "while True:\n"
        "    for i in range(20):\n"
        "        urllib.request.urlopen(sys.argv[1] + '/metrics/serin.json').read(); time.sleep(0.25)\n"
        "    urllib.request.urlopen(sys.argv[1] + '/metrics').read()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", loop, f"http://127.0.0.1:{port}"])
    try:
        time.sleep(0.5)  # its own start is no part of the measurement
        yield
    finally:
        process.kill()
        process.wait()


def fuzz_rows(server: Server, records: Records, every: Records) -> list[Row]:
    """Malformed requests, then a million good ones, on one process."""
    requests = bodies(server, records, 1)
    examples: list[str] = []

    def failed(request: bytes, answer: bytes) -> None:
        if len(examples) < 5:
            examples.append(f"{request[:1000]!r} -> {answer[:300]!r}")

    with running(server, requests[0]) as started:
        fuzz(started.port, count=FUZZ // 10, seed=0, model="churn", records=every, failed=failed)
        before_mb = started.memory_mb()
        outcomes = fuzz(started.port, count=FUZZ, seed=1, model="churn", records=every, failed=failed)
        fuzzed_mb = started.memory_mb()
        sent, slices_mb = 0, []
        while sent < SOAK:
            sent += sum(closed_loop(started.port, requests, connections=CLIENTS, seconds=10).statuses.values())
            slices_mb.append(started.memory_mb())
        alive = httpx.get(f"http://127.0.0.1:{started.port}/v2/health/ready").status_code == 200
    for example in examples:
        print("fuzz:", example, file=sys.stderr)
    bad = sum(count for outcome, count in outcomes.items() if outcome.startswith("5") or outcome == "none")
    return [
        Row(f"malformed requests answered 5xx or not at all, of {outcomes.total()}", bad, "requests", "== 0"),
        Row("server alive afterwards", float(alive), "", "== 1"),
        Row("memory growth over the malformed requests", fuzzed_mb - before_mb, "MB", "<= 3"),
        Row(f"memory growth over {sent} good requests", slices_mb[-1] - slices_mb[0], "MB", "<= 3"),
    ]


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        model, pipeline = train(scratch)
        every = samples(model).records
        records = full_records(samples(model))
        dtypes = {feature.name: feature.dtype for feature in signature(model).features}
        constant = Server("kserve constant model", partial(kserve_command, "constant"), instances, {})
        server = serin(model)
        rows = start_rows(server, records)
        rows += throughput_rows(server, constant, peers(scratch, pipeline, dtypes), records)
        rows += log_rows(model, records, scratch)
        rows += fuzz_rows(server, records, every)
    return report("predictor", rows, packages=("onnxruntime", "uvicorn", "starlette", "kserve", "scikit-learn"))


if __name__ == "__main__":
    sys.exit(main())
