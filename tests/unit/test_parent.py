"""What a command starts for its own time ends with it, however it ends, and holds nobody's pipe open."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

DEADLINE_S = 20
TRAFFIC = """
import sys, time
from pathlib import Path
from pipelines.traffic import Requests, Traffic
folder = Path(sys.argv[1])
with Traffic(folder) as traffic:
    traffic.start(Requests("http://127.0.0.1:9", "churn", sys.argv[2], 20.0, None))
    while not traffic.tally.get("sent"):
        time.sleep(0.05)
    print("started", flush=True)
    time.sleep(600)
"""
PIPELINE = """
import sys, time
from pathlib import Path
from pipelines import execution
execution.COMPILED = Path(sys.argv[2])
with execution.Local().start({}, Path(sys.argv[1]), lambda line: None) as running:
    while not list(Path(sys.argv[1]).rglob("begun")):
        assert running.running(), Path(running.log).read_text()
        time.sleep(0.05)
    print("started", flush=True)
    time.sleep(600)
"""
SLOW = """
from pathlib import Path
from kfp import compiler, dsl

@dsl.component(base_image="serin/pipeline:test", install_kfp_package=False)
def slow(out: dsl.Output[dsl.Artifact]):
    import time
    from pathlib import Path
    Path(out.path).parent.mkdir(parents=True, exist_ok=True)
    Path(out.path).with_name("begun").touch()
    time.sleep(600)

@dsl.pipeline(name="slow")
def graph():
    slow()

compiler.Compiler().compile(graph, __import__("sys").argv[1])
"""


@pytest.fixture
def slow_pipeline(tmp_path: Path) -> Path:
    compiled = tmp_path / "slow.yaml"
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")  # kfp reads the component's source
    subprocess.run([sys.executable, tmp_path / "slow.py", str(compiled)], check=True, timeout=60)
    return compiled


def children_of_one_killed(program: str, by: signal.Signals, *arguments: str) -> None:
    """Asserts that they are gone soon, and with them whoever holds our pipes."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        if parent.stdout.readline() != "started\n":
            parent.kill()
            pytest.fail(parent.communicate()[1])
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
        os.kill(parent.pid, by)
        parent.communicate(timeout=DEADLINE_S)
    deadline_s = time.monotonic() + DEADLINE_S
    while (alive := [child for child in children if runs(child)]) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    for each in alive:
        each.kill()
    assert alive == []


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # nobody may be there to collect orphans
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_the_load_generator_ends_with_its_parent(tmp_path: Path, by: signal.Signals) -> None:
    (tmp_path / "meta").mkdir()
    samples = {"records": [{"tenure": 5}], "scores": [0.5]}
    (tmp_path / "meta" / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    children_of_one_killed(TRAFFIC, by, str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_the_pipeline_and_its_step_end_with_their_parent(
    tmp_path: Path, slow_pipeline: Path, by: signal.Signals
) -> None:
    children_of_one_killed(PIPELINE, by, str(tmp_path), str(slow_pipeline))
