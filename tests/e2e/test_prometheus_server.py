"""A real Prometheus that scrapes what Kourier's Envoy and queue-proxies of different versions of Knative expose."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from predictor_process import free_port

from serin.measure.prometheus import PrometheusTelemetry
from serin.measure.tally import Counts, Tally, add, counters

PROGRAM = shutil.which(os.environ.get("PROMETHEUS", "prometheus"))
LIMIT_S = 30.0
INFO = (
    'target_info{{container_name="queue-proxy",k8s_namespace_name="new",kn_revision_name="{0}",'
    'service_name="churn-predictor",telemetry_sdk_language="go"}} 1\n'
)
SCOPE = 'otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_schema_url="",otel_scope_version=""'

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs the program prometheus (Debian: prometheus)")


def new(revision: str, *, good: int, bad: int = 0) -> str:
    """As queue-proxy of Knative 1.21 shows it on port 9091."""
    text = INFO.format(revision)
    for code, count in (("200", good), ("500", bad)):
        labels = f'http_response_status_code="{code}",{SCOPE}'
        name = "kn_serving_invocation_duration_seconds"
        text += f'{name}_bucket{{{labels},le="0.005"}} 0\n{name}_bucket{{{labels},le="10"}} {count}\n'
        text += f'{name}_bucket{{{labels},le="+Inf"}} {count}\n{name}_count{{{labels}}} {count}\n'
    return text


def old(revision: str, *, good: int) -> str:
    """As queue-proxy of Knative 1.18 shows it."""
    labels = (
        f'configuration_name="churn-predictor",container_name="queue-proxy",namespace_name="old",pod_name="{revision}-x",'
        f'response_code="200",response_code_class="2xx",revision_name="{revision}",service_name="churn-predictor"'
    )
    text = f"revision_request_count{{{labels}}} {good}\n"
    for edge in ("5", "100000", "+Inf"):
        text += f'revision_request_latencies_bucket{{{labels},le="{edge}"}} {good}\n'
    return text


def kourier(**answers: int) -> str:
    text = ""
    for revision, count in answers.items():
        cluster = f'envoy_cluster_name="gateway/{revision}"'
        text += f'envoy_cluster_upstream_rq{{envoy_response_code="200",{cluster}}} {count}\n'
        text += f"envoy_cluster_upstream_rq_active{{{cluster}}} 2\n"
        for edge in ("0.5", "3600000", "+Inf"):
            text += f'envoy_cluster_upstream_rq_time_bucket{{{cluster},le="{edge}"}} {count}\n'
    return text


class Targets:
    """Pages that are scraped, each on a port of its own; one that is set to None is down."""

    def __init__(self, **pages: str | None) -> None:
        self.pages = pages
        self._servers = {name: self._serve(name) for name in pages}
        self.addresses = [f"127.0.0.1:{server.server_address[1]}" for server in self._servers.values()]

    def _serve(self, name: str) -> ThreadingHTTPServer:
        targets = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = targets.pages[name]
                self.send_response(200 if page is not None else 503)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are not worth a line."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def stop(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


@pytest.fixture
def targets() -> Iterator[Targets]:
    found = Targets(
        stable=new("churn-1", good=90, bad=10),
        candidate=new("churn-2", good=7),
        earlier=old("churn-1", good=40),
        gateway=kourier(**{"churn-1": 500, "churn-2": 20}),
    )
    yield found
    found.stop()


@pytest.fixture
def telemetry(targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrometheusTelemetry]:
    monkeypatch.setattr("serin.measure.prometheus.ASK_AGAIN_S", 0.0)
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "pods", "static_configs": [{"targets": targets.addresses}]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    arguments = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    address = f"127.0.0.1:{free_port()}"
    with (tmp_path / "log").open("wb") as log:
        command = [str(PROGRAM), *arguments, f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield PrometheusTelemetry(f"http://{address}")
    finally:
        process.kill()
        process.wait()


def until(telemetry: PrometheusTelemetry, namespace: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while (told := telemetry.problem(namespace, "churn-1")) is not None:
        assert time.monotonic() < limit_s, told
        time.sleep(0.1)


def after(telemetry: PrometheusTelemetry, namespace: str, at_s: float) -> Counts:
    """Counts that were scraped later than that."""
    limit_s = time.monotonic() + LIMIT_S
    while True:
        found = telemetry.counts(namespace, "churn-1", "churn-2", {})
        if found is not None and found.at_s > at_s:
            return found
        assert time.monotonic() < limit_s, found
        time.sleep(0.1)


def test_counts_come_through_as_they_were_exposed(targets: Targets, telemetry: PrometheusTelemetry) -> None:
    for namespace in ("new", "old", "gateway"):
        until(telemetry, namespace)
    gateway = after(telemetry, "gateway", 0)
    assert gateway.active == {"churn-1": 2, "churn-2": 2}
    (read,) = gateway.read.values()
    assert {name: dict(counts) for name, counts in read.items() if name.endswith("codes")} == {
        "churn-1 codes": {200: 500},
        "churn-2 codes": {200: 20},
    }
    (earlier,) = after(telemetry, "old", 0).read.values()
    assert earlier["churn-1 codes"] == {200: 40}
    assert sum(earlier["churn-1 latency"].values()) == 40
    assert "scrape Kourier" in (telemetry.problem("elsewhere", "churn-1") or "")

    first = after(telemetry, "new", 0)
    tally = add(Tally(), first.read)
    targets.pages["stable"] = new("churn-1", good=95, bad=11)
    targets.pages["candidate"] = new("churn-2", good=2)  # it was restarted: 2 since then
    second = after(telemetry, "new", time.time())
    tally = add(tally, second.read)
    assert counters(tally, "churn-1").codes == {200: 5, 500: 1}
    assert counters(tally, "churn-2").codes == {200: 2}

    targets.pages["candidate"] = None  # its pod is gone
    third = after(telemetry, "new", time.time())
    assert len(third.read) == 1
    tally = add(tally, third.read)
    assert counters(tally, "churn-2").codes == {200: 2}
