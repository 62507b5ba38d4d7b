"""Command line, start and end of the model server."""

import argparse
import asyncio
import gc
import os
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, cast

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp

from predictor import explain, logs, threads
from predictor.app import Health, Observed, Service, application
from predictor.connection import Connection, end_overdue
from predictor.limits import DEFAULTS, Limits
from predictor.log import Fields, PredictionLog
from predictor.scorer import Scorer, Scores, warm_up
from predictor.sinks import sink
from predictor.telemetry import Telemetry
from serin import model
from serin.errors import UserError

TERMINATION_MESSAGE: Final = Path("/dev/termination-log")
"""Made by the kubelet; nothing is written where it is not there."""
QUIET_S: Final = 0.5
"""A draining server ends when no request came for this long."""

SWEEP_TICKS: Final = 5
"""Connections that are overdue are ended every 0.5 s."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}.")


def parser(prog: str) -> argparse.ArgumentParser:
    """Its `parse_args` raises `UserError`."""
    parser = _Parser(prog=prog, description="Serve one model directory over KServe's protocols.")
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    revision = os.environ.get("K_REVISION")  # set by Knative
    parser.add_argument("--revision", default=revision, required=revision is None)
    digest = os.environ.get("SERIN_MODEL_DIGEST")  # set by serin's controller
    parser.add_argument("--digest", default=digest, help="refuse any other model (sha256:…)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http-port", type=int, default=8080)
    parser.add_argument("--unix-socket", type=Path, metavar="PATH",
                        help="serve HTTP on this socket, to this user only, instead of host and port")  # fmt: skip
    parser.add_argument("--grpc-port", type=int, help="serve gRPC as well")
    parser.add_argument("--max-body-bytes", type=int, default=DEFAULTS.body_bytes)
    parser.add_argument("--max-rows", type=int, default=DEFAULTS.rows)
    parser.add_argument("--drain-s", type=float, default=10.0, help="maximum wait for clients after SIGTERM")
    parser.add_argument(
        "--log",
        help="write a prediction log: a directory or s3://bucket/prefix (Parquet), or an http address (CloudEvents)",
    )
    parser.add_argument(
        "--log-exclude", nargs="+", default=[], metavar="FEATURE", help="features to leave out of the log"
    )
    parser.add_argument("--log-hash", nargs="+", default=[], metavar="FEATURE",
                        help="features to log only as a hash, keyed with SERIN_LOG_KEY")  # fmt: skip
    return parser


def serve(
    arguments: argparse.Namespace,
    *,
    scores: Callable[[Scores], Scores] = lambda scores: scores,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> None:
    """Serve until SIGTERM. Raises `UserError` when the model cannot be served.

    `scores` and `wrap` stand between model and application, and between application and `Observed`.
    """
    logs.configure()
    root: Path = arguments.model_dir
    try:
        signature, samples = model.verify(root, arguments.digest), model.samples(root)
        scorer = Scorer.load(root, signature)
        explainer = explain.load(root, scorer.layout)
    except ValidationError as error:
        reason = f"{error.title}: {error.errors()[0]['msg']}"
        raise UserError(
            f"Model {root}: a file in meta/ is not readable by this version ({reason}); serve it with the "
            "version that exported it, or export it again."
        ) from error
    except OSError as error:
        raise UserError(
            f"Model {root}: {error.filename} cannot be read ({error.strerror}); mount it readable or export it again."
        ) from error
    warm_up(scorer, explainer, samples)
    names = {"model": arguments.model_name, "revision": arguments.revision}
    log = _log(arguments, scorer, digest=model.digest(root), **names)
    limits = Limits(arguments.max_body_bytes, arguments.max_rows)
    service = Service(
        **names,
        digest=model.digest(root),
        scores=scores(scorer),
        telemetry=Telemetry(**names, log=log),
        health=Health(),
        limits=limits,
        log=log,
        explainer=explainer,
    )
    app = Observed(wrap(application(service)), service)
    config = http(app, limits, host=arguments.host, drain_s=arguments.drain_s)
    gc.collect()
    gc.freeze()  # what start-up made lives as long as the process: spare every later collection the walk
    server = _Server(config, service, arguments.drain_s, arguments.grpc_port)
    try:
        server.run(sockets=[_listening(arguments)])
    finally:
        gc.unfreeze()
        if log:
            log.close()


def http(app: ASGIApp, limits: Limits, *, host: str = "127.0.0.1", drain_s: float = 0) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]  # called, and nothing else
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=int(limits.idle_s),
        timeout_graceful_shutdown=int(drain_s),
    )


def _log(arguments: argparse.Namespace, scorer: Scorer, **names: str) -> PredictionLog | None:
    if arguments.log is None:
        return None
    key = os.environ.get("SERIN_LOG_KEY", "").encode()
    fields = Fields(scorer.layout, frozenset(arguments.log_exclude), frozenset(arguments.log_hash), key)
    return PredictionLog(sink(arguments.log, fields, scorer.signature, **names))


def _listening(arguments: argparse.Namespace) -> socket.socket:
    path: Path | None = arguments.unix_socket
    return _listen(arguments.host, arguments.http_port) if path is None else _listen_unix(path)


def _listen_unix(path: Path) -> socket.socket:
    """Replaces what a server that was killed left at `path`."""
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
    except OSError as error:
        raise UserError(f"Cannot listen on {path} ({error}); pass another --unix-socket.") from error
    finally:
        os.umask(umask)
    return listener


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"Cannot listen on {host}:{port} ({error}); pass another --http-port.") from error


class _Server(uvicorn.Server):
    """After the first signal it drains: not ready, each answer closes its connection, the end once it is quiet.
    A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_s: float, grpc_port: int | None) -> None:
        super().__init__(config)
        self._service, self._drain_s, self._grpc_port = service, drain_s, grpc_port

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's own, does not raise the signal again at the end: a drained server exits with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(threads.cpu_limit()))
        if self._grpc_port is not None:
            try:
                from predictor import rpc
            except ModuleNotFoundError as error:
                raise UserError(
                    f"--grpc-port: package {error.name} is not installed; install it, or leave the option out."
                ) from error

            self._grpc = await rpc.start(self._service, self.config.host, self._grpc_port)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc_port is not None:
            await self._grpc.stop(grace=self._drain_s)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            connections = cast("set[Connection]", self.server_state.connections)
            end_overdue(connections, asyncio.get_running_loop().time(), self._service.limits)
        return await super().on_tick(counter)

    async def main_loop(self) -> None:
        await super().main_loop()
        self._service.health.ready = False
        requests = self._service.telemetry.requests
        deadline_s = time.monotonic() + self._drain_s
        seen = -1
        while seen < requests.total() and time.monotonic() < deadline_s and not self.force_exit:
            seen = requests.total()
            await asyncio.sleep(QUIET_S)


def main(parser: argparse.ArgumentParser, serve: Callable[[argparse.Namespace], None]) -> int:
    """Exit status: 0 after a drain, 2 when the user has to act, with one sentence on standard error and, in
    Kubernetes, as the container's termination message, which KServe shows."""
    os.umask(0o077)  # the prediction log holds what people sent
    try:
        serve(parser.parse_args())
    except UserError as error:
        reason = logs.printable(str(error))  # it may repeat what stands in the model's files
        print(reason, file=sys.stderr, flush=True)
        if TERMINATION_MESSAGE.is_file():
            TERMINATION_MESSAGE.write_text(reason, encoding="utf-8")
        return 2
    return 0
