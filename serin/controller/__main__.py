"""`python -m serin.controller`: release what ModelRollouts ask for, until SIGTERM."""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import generate_latest

from serin.controller.controller import Controller, Metrics, generation_changed, service_of
from serin.errors import UserError
from serin.kube.api import Api
from serin.kube.informer import Cache
from serin.kube.leader import Leader
from serin.measure.prometheus import PrometheusTelemetry
from serin.platforms.kserve import objects, service
from serin.platforms.kserve.gateway import (
    REVISION,
    EnvoyTelemetry,
    Gateway,
    Telemetry,
    Where,
    kept_of_pod,
    revision_of,
)

STUCK_S: Final = 60.0
"""A look that has been due for this long is reported as unhealthy."""
POLL_S: Final = 0.5


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in ("rollout", "phase", "traffic") if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _arguments() -> argparse.Namespace:
    where = Where()
    parser = argparse.ArgumentParser(prog="python -m serin.controller", description=__doc__)
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE", "serin-system"), help="of the lease")
    parser.add_argument("--host", default="127.0.0.1", help="where health and metrics are served")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--gateway-namespace", default=where.namespace)
    parser.add_argument("--gateway-pods", default=where.pods, help="label selector of the gateway's pods")
    parser.add_argument("--gateway-service", default=where.service)
    parser.add_argument(
        "--prometheus", metavar="URL", help="take counts from there instead of from the gateway's pods"
    )
    parser.add_argument("--log-level", default="INFO")
    return parser.parse_args()


def _serve_health(host: str, port: int, controller: Controller, leader: Leader, metrics: Metrics) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, generate_latest(metrics.registry))
            elif self.path in ("/healthz", "/readyz"):
                stuck = leader.leads and controller.stuck_s() > STUCK_S
                self._answer(503 if stuck else 200, b"stuck\n" if stuck else b"ok\n")
            else:
                self._answer(404, b"there are /healthz, /readyz and /metrics\n")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are not worth a line."""

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


def main() -> int:
    arguments = _arguments()
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("serin").setLevel(arguments.log_level)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each failed try is told by us, once
    stop, died = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        api = Api.connect()
        where = Where(arguments.gateway_namespace, arguments.gateway_pods, arguments.gateway_service)
        rollouts = Cache(api, objects.rollouts(), group=service_of, matters=generation_changed)
        services = Cache(api, objects.services(), keep=service.kept)
        telemetry, pods = _telemetry(api, where, arguments.prometheus)
        metrics = Metrics(api, rollouts)
        controller = Controller(api, telemetry, Gateway(api, where), rollouts, services, metrics)
        rollouts.changed = services.changed = controller.service_changed
        leader = Leader(api, arguments.namespace, f"{socket.gethostname()}_{os.getpid()}")
        _serve_health(arguments.host, arguments.port, controller, leader, metrics)
        caches = [rollouts, services, *pods]
        for work in (leader.keep, *(cache.follow for cache in caches)):
            threading.Thread(target=_keep, args=(work, stop, died), daemon=True).start()
        while not stop.wait(POLL_S):
            if leader.leads and all(cache.filled.is_set() for cache in caches):
                controller.run(lambda: stop.is_set() or not leader.leads)
        leader.hand_over()
    except UserError as error:
        print(f"serin: {error}", file=sys.stderr)
        return 2
    return 1 if died.is_set() else 0


def _keep(work: Callable[[threading.Event], None], stop: threading.Event, died: threading.Event) -> None:
    """Without its watches or its lease a controller looks well and does nothing: it ends, and is started again."""
    try:
        work(stop)
    except Exception:  # whatever it was: a thread's end is seen by nobody
        logging.getLogger("serin").exception("the controller exits: a required part has failed")
        died.set()
        stop.set()


def _telemetry(api: Api, where: Where, prometheus: str | None) -> tuple[Telemetry, list[Cache]]:
    """Where counts come from, and the pods that must be known for it."""
    if prometheus is not None:
        return PrometheusTelemetry(prometheus), []
    gateways = Cache(api, objects.pods(where.namespace), labels=where.pods, keep=kept_of_pod)
    predictors = Cache(api, objects.pods(), labels=REVISION, group=revision_of, keep=kept_of_pod)
    return EnvoyTelemetry(gateways.documents, predictors.of), [gateways, predictors]


if __name__ == "__main__":
    sys.exit(main())
