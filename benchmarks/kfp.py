"""`make bench-kfp`: what a step costs on KFP that it does not cost here, and how large serin is on a cluster.

The compiled pipeline with one learner, by kfp.local and by the KFP of `make cluster-run` (same variables), three
times each, alternating. A step on KFP is a driver's pod and the step's own. The gate's margins keep the pipeline from
releasing anything.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import kfp_server_api
from kfp import client as kfp_client
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import Row, report
from components import config as configuration
from components.deploy.core import needed_store
from components.preprocess import sources
from pipelines.cluster import Kfp
from pipelines.execution import Backend, Execution, Local
from serin.errors import TryAgain, UserError

ROOT: Final = Path(__file__).parents[1]
TELCO: Final = ROOT / "pipelines" / "configs" / "telco.yaml"
ROUNDS: Final = 3
STEPS: Final = ("preprocess", "train", "evaluate")
LEARNER: Final = "logistic"
KUBECTL: Final = shutil.which("kubectl") or "kubectl"
SYSTEM: Final = "serin-system"
CONTROLLER: Final = "app.kubernetes.io/name=serin-controller"
METRICS_PORT: Final = 8081
POLL_S: Final = 0.2


def run(backend: Backend, arguments: Mapping[str, Any], folder: Path) -> Execution:
    """To its end."""
    folder.mkdir()
    with backend.start(arguments, folder, lambda line: print(line, flush=True)) as execution:
        while execution.running():
            time.sleep(POLL_S)
    if not execution.succeeded:
        raise TryAgain(f"the pipeline failed; its log is {execution.log}", delay_s=0)
    return execution


def local_times(execution: Execution) -> dict[str, float]:
    """Seconds by step."""
    steps = execution.progress.steps
    return {name: (steps[name].ended_s or steps[name].started_s) - steps[name].started_s for name in STEPS}


def kfp_times(ended: kfp_server_api.V2beta1Run) -> dict[str, float]:
    """Seconds by step, from the start of its driver to its end, in KFP's whole seconds."""
    seen: dict[str, tuple[datetime, datetime]] = {
        task.display_name: (task.start_time, task.end_time) for task in ended.run_details.task_details
    }
    return {name: (seen[name][1] - seen[f"{name}-driver"][0]).total_seconds() for name in STEPS}


def steps(folder: Path, endpoint: str, image: str) -> list[Row]:
    config = configuration.with_store(configuration.load(TELCO), os.environ)
    source = sources.resolve(config, config_path=TELCO, cache=ROOT / ".cache", environ=os.environ)
    nothing_is_enough = config.gate.model_copy(update={"min_rows": 10**9})
    kfp = Kfp(endpoint, image, needed_store(config))
    asked = kfp_client.Client(host=endpoint)
    here: list[dict[str, float]] = []
    there: list[dict[str, float]] = []
    for number in range(ROUNDS):
        # another service each time: KFP's cache is not what is measured
        this = config.model_copy(update={"gate": nothing_is_enough, "service": f"steps-{int(time.time())}"})
        arguments = {
            "config": this.model_dump_json(),
            "platform": "kserve:default",
            "data_source": str(source.kind),
            "data_sha256": source.sha256,
            "learners": [LEARNER],
        }
        for backend, name in ((Local(), "local"), (kfp, "kfp")):
            given = arguments | {"data": backend.data(source)}
            execution = run(backend, given, folder / f"{name}-{number}")
            if backend is kfp:
                there.append(kfp_times(asked.get_run(execution.log.rpartition("/")[2])))
            else:
                here.append(local_times(execution))
    rows = []
    for step in STEPS:
        local_s, kfp_s = (statistics.median(each[step] for each in found) for found in (here, there))
        rows.append(Row(f"{step}: kfp.local", local_s, "s"))
        rows.append(Row(f"{step}: KFP, driver and step", kfp_s, "s"))
        rows.append(Row(f"{step}: KFP on top of kfp.local", kfp_s - local_s, "s"))
    return rows


def sizes() -> list[Row]:
    """The images that were built here, and the largest replica of the controller in the cluster."""
    docker = os.environ.get("DOCKER", "docker")
    rows = []
    for target in ("controller", "predictor", "pipeline"):
        name = _output(sys.executable, str(ROOT / "docker/images.py"), "name", target).strip()
        size = int(_output(docker, "image", "inspect", "-f", "{{.Size}}", name))
        rows.append(Row(f"image {target}", size / 1e6, "MB"))
    found = json.loads(_output(KUBECTL, "-n", SYSTEM, "get", "pods", "-l", CONTROLLER, "-o", "json"))["items"]
    memory = []
    for pod in found:
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod['metadata']['name']}:{METRICS_PORT}/proxy/metrics"
        for family in text_string_to_metric_families(_output(KUBECTL, "get", "--raw", path)):
            if family.name == "process_resident_memory_bytes":
                memory.append(family.samples[0].value / 1e6)
    return [*rows, Row("controller: resident memory, the larger replica", max(memory), "MB")]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    endpoint, image = os.environ.get("KFP_ENDPOINT"), os.environ.get("IMAGE")
    if not endpoint or not image:
        print("Set KFP_ENDPOINT, IMAGE and the store's variables as for make cluster-run.", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = [*steps(Path(folder), endpoint, image), *sizes()]
    except (UserError, TryAgain) as error:
        print(error, file=sys.stderr)
        return 2
    return report("kfp", rows, packages=("kfp", "scikit-learn"))


if __name__ == "__main__":
    sys.exit(main())
