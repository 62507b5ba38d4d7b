"""Run by test_predictor_confined.py inside the confinement it makes: the model is at /mnt, /srv can be written to.
Prints what happened."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from predictor_process import command, free_port, predict, running

MODEL = Path("/mnt")
LOG = Path("/srv/log")


def calls_without_a_route() -> int:
    """Attempts to reach an address outside of this network namespace, which has loopback only."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:")
    return int(values[names.index("OutNoRoutes")])


def writable() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True


with running(MODEL, "--grpc-port", str(free_port()), "--log", str(LOG)) as (server, port):
    status, answer = predict(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        metrics = response.read().decode()
    server.terminate()
    ended = server.wait(30)
calls = calls_without_a_route()
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 80), timeout=1)
refused = subprocess.run(command(MODEL, free_port(), "--digest", "sha256:0"), check=False, capture_output=True)
print(
    json.dumps(
        {
            "uid": os.geteuid(),
            "home": os.environ.get("HOME"),
            "writable": writable(),
            "status": status,
            "answer": answer,
            "metrics": metrics,
            "ended": ended,
            "logged": len(list(LOG.glob("*.parquet"))),
            "calls": calls,
            "calls_are_seen": calls_without_a_route() > calls,
            "refused": refused.returncode,
            "message": Path("/dev/termination-log").read_text(),
        }
    )
)
