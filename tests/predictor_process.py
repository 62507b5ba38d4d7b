"""The model server as a process of its own."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE_S = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def command(root: Path, port: int, *more: str, module: str = "predictor") -> list[str]:
    return [sys.executable, "-m", module, "--model-name", "churn", "--model-dir", str(root),
            "--revision", "churn-00001", "--http-port", str(port), *more]  # fmt: skip


@contextmanager
def running(root: Path, *more: str, module: str = "predictor", **env: str) -> Iterator[tuple[subprocess.Popen, int]]:
    port = free_port()
    with subprocess.Popen(command(root, port, *more, module=module), env=os.environ | env) as process:
        try:
            await_ready(process, port)
            yield process, port
        finally:
            process.kill()


def await_ready(process: subprocess.Popen, port: int) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not ready(port):
        assert process.poll() is None and time.monotonic() < deadline_s, "the server does not start"
        time.sleep(0.05)


def ready(port: int) -> bool:
    try:
        return request(port, "GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False


def request(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def predict(port: int) -> tuple[int, dict]:
    return request(port, "POST", "/v1/models/churn:predict", b'{"instances":[{"tenure":5}]}')
