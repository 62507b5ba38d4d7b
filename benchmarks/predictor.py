"""The predictor against the stock servers, with one model, the same requests and one machine: `make bench-predictor`.

The model is an XGBoost pipeline over raw Telco records (the data set the config names; SERIN_DATA points to a
local copy). The peers run it as scikit-learn pipeline, from a throw-away environment that is removed again. One
server runs at a time; servers and load generator share the machine, each server is held to one native thread.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import joblib
import psutil

from benchmarks.common import Row, report, report_part
from benchmarks.predictor_fuzz import fuzz
from benchmarks.predictor_fuzz_protocols import Maker, fuzz_http, fuzz_rpc
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
START_S: Final = 60.0
FUZZ_S: Final = 400.0
SHARE_OF_MAXIMUM: Final = 0.6

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """`closed_s` and `open_s` are lengths of one closed-loop and one open-loop run. `guided`, `sent` and `soak` are
    numbers of requests: made by a coverage-guided fuzzer and answered in process, malformed and sent to the server,
    good and sent to the server. `protocol`: of each protocol, valid ones and malformed ones."""

    warm_s: float = 1.5
    closed_s: float = 3.0
    open_s: float = 4.0
    rounds: int = 2
    starts: int = 5
    turns: int = 6
    guided: int = 100_000
    sent: int = 30_000
    soak: int = 1_000_000
    protocol: int = 100_000


QUICK: Final = Sizes(
    0.3, closed_s=1, open_s=1, rounds=1, starts=2, turns=2, guided=3000, sent=2000, soak=5000, protocol=600
)


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


def uv() -> str:
    return shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"


def peers(scratch: Path, pipeline: Path, dtypes: dict[str, str]) -> list[Server]:
    """The stock servers. MLServer and BentoML come from PyPI, into an environment below `scratch`."""
    environment = scratch / "peers"
    subprocess.run([uv(), "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    requirements = Path(__file__).with_name("requirements-peers.txt")
    python = str(environment / "bin" / "python")
    subprocess.run([uv(), "pip", "install", "-q", "--python", python, "-r", str(requirements)], check=True)
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


def throughput(server: Server, records: Records, sizes: Sizes, *, rows: int) -> Load:
    """The best of `sizes.rounds` closed-loop runs."""
    requests = bodies(server, records, rows)
    with running(server, requests[0]) as started:
        closed_loop(started.port, requests, connections=CLIENTS, seconds=sizes.warm_s)
        loads = [
            closed_loop(started.port, requests, connections=CLIENTS, seconds=sizes.closed_s)
            for _ in range(sizes.rounds)
        ]
    return max(loads, key=lambda load: load.rate)


def p99_ms(server: Server, records: Records, sizes: Sizes, rate: float) -> float:
    """Of `sizes.rounds` open-loop runs at `rate` requests per second, the better."""
    requests = bodies(server, records, 1)
    with running(server, requests[0]) as started:
        closed_loop(started.port, requests, connections=CLIENTS, seconds=sizes.warm_s)
        loads = [open_loop(started.port, requests, rate=rate, seconds=sizes.open_s) for _ in range(sizes.rounds)]
    return min(load.percentile_ms(99) for load in loads)


def throughput_rows(
    serin: Server, constant: Server, stock: list[Server], records: Records, sizes: Sizes
) -> list[Row]:
    rows = []
    one_row = {}
    for server in (serin, constant, *stock):
        for size in (1, 32):
            load = throughput(server, records, sizes, rows=size)
            what = f"{server.name}: {size} row{'s' * (size > 1)}, {CLIENTS} clients"
            rows.append(Row(what, load.rate, "requests/s"))
            if size == 1:
                one_row[server.name] = load.rate
    best = max(one_row[server.name] for server in stock)
    rows.append(Row("throughput vs the best stock peer", one_row["serin"] / best, "×", ">= 10"))
    rows.append(
        Row("throughput vs a constant kserve model", one_row["serin"] / one_row[constant.name], "×", ">= 0.8")
    )
    return rows + latency_rows(serin, [(server, one_row[server.name]) for server in stock], records, sizes)


def latency_rows(serin: Server, maxima: list[tuple[Server, float]], records: Records, sizes: Sizes) -> list[Row]:
    """Each peer at 60 % of its own maximum, and serin at the rate of the peer with the lowest p99."""
    rows, measured = [], []
    for peer, maximum in maxima:
        rate = SHARE_OF_MAXIMUM * maximum
        p99 = p99_ms(peer, records, sizes, rate)
        measured.append((p99, rate))
        rows.append(Row(f"{peer.name}: p99 at {rate:.0f} requests/s, 60 % of its maximum", p99, "ms"))
    best, rate = min(measured)
    own = p99_ms(serin, records, sizes, rate)
    rows.append(Row(f"serin: p99 at {rate:.0f} requests/s", own, "ms"))
    rows.append(Row("p99 vs the best stock peer at 60 % of the peer's maximum", own / best, "×", "<= 0.2"))
    return rows


def start_rows(server: Server, records: Records, sizes: Sizes) -> list[Row]:
    requests = bodies(server, records, 1)
    ready_s, memory_mb = [], []
    for _ in range(sizes.starts):
        with running(server, requests[0]) as started:
            closed_loop(started.port, requests, connections=CLIENTS, seconds=sizes.warm_s)
            ready_s.append(started.ready_s)
            memory_mb.append(started.memory_mb())
    return [
        Row(f"start to first answer, median of {sizes.starts}", statistics.median(ready_s), "s", "<= 1.5"),
        Row("resident memory under load", max(memory_mb), "MB", "<= 150"),
    ]


def log_rows(model: Path, records: Records, scratch: Path, sizes: Sizes) -> list[Row]:
    """With prediction log and metrics read 4 times a second, and without: in turns, so that both meet the same
    neighbours."""
    plain, logging = serin(model), serin(model, "--log", str(scratch / "log"))
    requests = bodies(plain, records, 1)
    off, on = [], []
    with running(plain, requests[0]) as without, running(logging, requests[0]) as with_log:
        for _ in range(sizes.turns):
            off.append(closed_loop(without.port, requests, connections=CLIENTS, seconds=2.5).rate)
            with polled(with_log.port):
                on.append(closed_loop(with_log.port, requests, connections=CLIENTS, seconds=2.5).rate)
        memory_mb = with_log.memory_mb()
    ratios = [with_ / without_ for with_, without_ in zip(on[1:], off[1:], strict=True)]
    return [
        Row("throughput with prediction log and metrics vs without", statistics.median(ratios), "×", ">= 0.9"),
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


def guided_rows(model: Path, scratch: Path, sizes: Sizes) -> tuple[list[Row], list[bytes]]:
    """Malformed requests made by a fuzzer that is guided by the predictor's coverage, answered in process; and the
    requests that reached something new."""
    fuzzer, result, corpus = scratch / "fuzzer", scratch / "fuzzed.json", scratch / "corpus"
    requirements = Path(__file__).with_name("requirements-fuzz.txt")
    subprocess.run(
        [uv(), "pip", "install", "-q", "--python", sys.executable, "--target", str(fuzzer), "--require-hashes",
         "-r", str(requirements)],
        check=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.predictor_fuzz_guided", str(model), str(result), str(corpus),
               "--requests", str(sizes.guided)]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(fuzzer), "OMP_NUM_THREADS": "1"}
    with (scratch / "fuzzer.log").open("w+b") as log:
        done = subprocess.run(command, env=env, cwd=ROOT, stdout=log, stderr=log, timeout=FUZZ_S, check=False)
        if done.returncode != 0:
            log.seek(0)
            print(log.read().decode(errors="replace")[-3000:], file=sys.stderr)
            return [Row("coverage-guided fuzzer: the predictor crashed or hung", 1, "", "== 0")], []
    outcome = json.loads(result.read_bytes())
    show(outcome["failures"])
    kept = [path.read_bytes() for path in corpus.iterdir()]
    return [*outcome_rows("coverage-guided:", Counter(outcome["statuses"])),
            Row("coverage-guided: requests that reached something new", len(kept), "requests")], kept  # fmt: skip


def outcome_rows(what: str, outcomes: Counter[str]) -> list[Row]:
    bad = sum(count for outcome, count in outcomes.items() if outcome.startswith("5") or outcome == "none")
    return [
        Row(
            f"{what} malformed requests answered with 5xx or unanswered, of {outcomes.total()}",
            bad,
            "requests",
            "== 0",
        ),
        *(
            Row(f"{what} malformed requests: {outcome}", outcomes[outcome], "requests")
            for outcome in sorted(outcomes)
        ),
    ]


def show(failures: Sequence[str]) -> None:
    for failure in failures:
        print("fuzz:", failure, file=sys.stderr)


def socket_rows(server: Server, records: Records, every: Records, kept: Sequence[bytes], sizes: Sizes) -> list[Row]:
    """On one process and over sockets: malformed requests, among them those the guided fuzzer `kept`, and a million
    good ones."""
    requests = bodies(server, records, 1)
    failures: list[str] = []

    def failed(request: bytes, answer: bytes) -> None:
        if len(failures) < 5:
            failures.append(f"{request[:1000]!r} -> {answer[:300]!r}")

    with running(server, requests[0]) as started:
        send = partial(fuzz, started.port, model="churn", records=every, kept=kept, failed=failed)
        send(count=sizes.sent // 5, seed=0)
        before_mb = started.memory_mb()
        outcomes = send(count=sizes.sent, seed=1)
        fuzzed_mb = started.memory_mb()
        sent, slices_mb = 0, []
        while sent < sizes.soak:
            sent += sum(closed_loop(started.port, requests, connections=CLIENTS, seconds=10).statuses.values())
            slices_mb.append(started.memory_mb())
        alive = httpx.get(f"http://127.0.0.1:{started.port}/v2/health/ready").status_code == 200
    show(failures)
    return [
        *outcome_rows("over sockets:", outcomes),
        Row("server alive afterwards", float(alive), "", "== 1"),
        Row("memory growth over the malformed requests", fuzzed_mb - before_mb, "MB", "<= 10"),
        Row(f"memory growth over {sent} valid requests", slices_mb[-1] - slices_mb[0], "MB", "<= 3"),
    ]


def protocol_rows(model: Path, records: Records, every: Records, sizes: Sizes) -> list[Row]:
    grpc_port = free_port()
    server = serin(model, "--grpc-port", str(grpc_port))
    make = Maker(1, "churn", "churn-00001", every)
    rows = []
    with running(server, bodies(server, records, 1)[0]) as started:
        for name, outcome in (
            ("V1", fuzz_http(started.port, make.v1, sizes.protocol)),
            ("V2", fuzz_http(started.port, make.v2, sizes.protocol)),
            ("gRPC", fuzz_rpc(grpc_port, make.rpc, sizes.protocol)),
        ):
            show(outcome.failures)
            blame = "with UNKNOWN, INTERNAL or the like" if name == "gRPC" else "with 5xx or unanswered"
            rows += [
                Row(f"{name}: fuzzed requests", outcome.sent, "requests", f">= {sizes.protocol}"),
                Row(f"{name}: of which valid", 100 * outcome.valid / outcome.sent, "%", ">= 33.4"),
                Row(f"{name}: valid, and not answered with 200 (OK)", outcome.refused, "requests", "== 0"),
                Row(f"{name}: answered {blame}", outcome.blamed, "requests", "== 0"),
                *(Row(f"{name}: {ending}", n, "requests") for ending, n in sorted(outcome.endings.items())),
            ]
    return rows


PROTOCOLS: Final = ("V1: ", "V2: ", "gRPC: ")
PACKAGES: Final = ("onnxruntime", "uvicorn", "httptools", "starlette", "grpcio", "protobuf", "kserve", "scikit-learn")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests, figures of no worth, nothing is written")
    parser.add_argument("--fuzz", action="store_true", help="only the fuzz of V1, V2 and gRPC, about six minutes")
    arguments = parser.parse_args()
    quick, sizes = arguments.quick, QUICK if arguments.quick else Sizes()
    with tempfile.TemporaryDirectory(prefix="serin-bench-") as directory:
        scratch = Path(directory)
        model, pipeline = train(scratch)
        every = samples(model).records
        records = full_records(samples(model))
        if arguments.fuzz:
            rows = protocol_rows(model, records, every, sizes)
            command = "python -m benchmarks.predictor --fuzz"
            return report_part("predictor", rows, PROTOCOLS, command=command, packages=PACKAGES, keep=not quick)
        dtypes = {feature.name: feature.dtype for feature in signature(model).features}
        constant = Server("kserve constant model", partial(kserve_command, "constant"), instances, {})
        server = serin(model)
        rows = start_rows(server, records, sizes)
        rows += throughput_rows(server, constant, peers(scratch, pipeline, dtypes), records, sizes)
        rows += log_rows(model, records, scratch, sizes)
        guided, kept = guided_rows(model, scratch, sizes)
        rows += guided + socket_rows(server, records, every, kept, sizes)
        rows += protocol_rows(model, records, every, sizes)
    return report("predictor", rows, packages=PACKAGES, keep=not quick)


if __name__ == "__main__":
    sys.exit(main())
