"""Tests against the cluster of the current kubeconfig with serin installed. `make cluster-test` runs them, in order;
`make test` does not."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import embedded

from cluster import CLAIM, SERVICE, SYSTEM, Cluster, kubectl, pod_document, wait

NAMESPACE = os.environ.get("SERIN_TEST_NAMESPACE", "serin-test")
TRANSCRIPT = Path(os.environ.get("TRANSCRIPT", "runs/cluster-test.md"))
RECORDS = [
    {"tenure": n % 70, "Montant dû": float(20 + n), "Contract": ("One year", "Month-to-month")[n % 2]}
    for n in range(40)
]


@pytest.fixture(scope="session")
def tell() -> Iterator[object]:
    TRANSCRIPT.parent.mkdir(parents=True, exist_ok=True)
    with TRANSCRIPT.open("w", encoding="utf-8") as out:

        def say(line: str) -> None:
            stamped = f"{datetime.now(UTC):%H:%M:%S}  {line}"
            print(stamped)
            out.write(stamped + "\n")
            out.flush()

        yield say


@pytest.fixture(autouse=True)
def title(request, tell) -> None:
    tell(f"== {request.node.name.removeprefix('test_').replace('_', ' ')}")


@pytest.fixture(scope="session")
def controller_image() -> str:
    return kubectl(
        "-n",
        SYSTEM,
        "get",
        "deployment",
        "serin-controller",
        "-o",
        "jsonpath={.spec.template.spec.containers[0].image}",
    )


def runtime(name: str, image: str | None = None, command: list[str] | None = None) -> dict:
    """The installed ClusterServingRuntime as one of the tests' namespace, with another image or command."""
    installed = json.loads(kubectl("get", "clusterservingruntime", "serin-onnx", "-o", "json"))
    spec = installed["spec"]
    container = spec["containers"][0]
    for model_format in spec["supportedModelFormats"]:
        model_format |= {"autoSelect": False}
        model_format.pop("priority", None)
    if image:
        container["image"] = image
    if command:
        container["command"] = command
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name},
        "spec": spec,
    }


def put_models(cluster: Cluster, image: str, folder: Path, count: int) -> None:
    """Models v1 to v`count` on a volume of the tests' namespace."""
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": CLAIM},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    idle = ["/venv/bin/python", "-c", "import signal; signal.pause()"]
    cluster.apply(pod_document("store", image, idle, claim=CLAIM))
    kubectl("-n", cluster.namespace, "wait", "pod/store", "--for=condition=Ready", "--timeout=120s")
    for number in range(1, count + 1):
        root = folder / f"v{number}"
        embedded.write_model(root, intercept=2.0 + number / 1000)
        cluster.put_model(f"v{number}", root)


@pytest.fixture(scope="session")
def cluster(tell, controller_image, tmp_path_factory) -> Iterator[Cluster]:
    """An own namespace with models v1 to v9 on a volume, and a first release."""
    kubectl("-n", NAMESPACE, "delete", "modelrollouts", "--all", "--timeout=180s", check=False)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    cluster = Cluster(NAMESPACE, RECORDS, tell)
    put_models(cluster, controller_image, tmp_path_factory.mktemp("models"), 9)
    python = "/venv/bin/python"
    cluster.apply(runtime("drill", command=[python, "-m", "predictor.drill"]))
    cluster.apply(runtime("crash", command=[python, "-c", "raise SystemExit('no')"]))
    cluster.apply(runtime("missing", image="dev.local/serin/no-such-image:1"))
    yield cluster
    kubectl("-n", NAMESPACE, "delete", "modelrollouts", "--all", "--timeout=180s", check=False)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def released(cluster: Cluster) -> Cluster:
    """The cluster with a first model that serves."""
    cluster.rollout("first", "v1")
    assert cluster.ended("first", 180)["phase"] == "Promoted"
    wait(f"{SERVICE} is ready", lambda: cluster.service().get("status", {}).get("url"))
    return cluster
