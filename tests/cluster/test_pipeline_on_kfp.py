"""The compiled pipeline on KFP, its releases on KServe: models that are better, and one that only looks better."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cluster import KUBECTL, Cluster, kubectl, wait
from components import storage
from pipelines.run import prepare
from serin import model

ROOT = Path(__file__).parents[2]
STEPS, NAMESPACE, SERVICE = "kubeflow", "serin-kfp-test", "churn"
STORE = "s3://mlpipeline/serin-cluster-test"
TELCO = ROOT / "pipelines/configs/telco.yaml"
MAKE = shutil.which("make") or "make"
POSITIVE, NEGATIVE = "Yes", "No"
pytestmark = pytest.mark.timeout(1500)


@contextmanager
def forwarded(service: str, port: int) -> Iterator[str]:
    """URL here of a port of a service of KFP's namespace."""
    command = [KUBECTL, "-n", STEPS, "port-forward", f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
            assert found, f"{' '.join(command)} says nothing of a port"
            yield f"http://{found[0]}"
        finally:
            process.terminate()


@dataclass(frozen=True)
class Kfp:
    cluster: Cluster
    environment: Mapping[str, str]

    @contextmanager
    def started(self, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """`make cluster-run`, its lines told."""
        told = " ".join(f"{name}={Path(value).name}" for name, value in variables.items())
        self.cluster.tell(f"$ make cluster-run PLATFORM=kserve:{NAMESPACE} {told}".rstrip())
        process = subprocess.Popen(
            [MAKE, "cluster-run", f"PLATFORM=kserve:{NAMESPACE}", *(f"{k}={v}" for k, v in variables.items())],
            cwd=ROOT,
            env={**os.environ, **self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        def read() -> None:
            for line in process.stdout or ():
                self.cluster.tell(f"  {line.rstrip()}")

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)
            reader.join()

    def rollouts(self) -> list[dict]:
        found = json.loads(kubectl("-n", NAMESPACE, "get", "mro", "-o", "json"))["items"]
        return sorted(found, key=lambda each: each["metadata"]["creationTimestamp"])


@pytest.fixture(scope="module")
def kfp(tell, tmp_path_factory) -> Iterator[Kfp]:
    if not kubectl("-n", STEPS, "get", "service", "ml-pipeline", "--ignore-not-found").strip():
        # rollouts need no KFP: `make cluster-up` installs none
        pytest.skip(f"no KFP in namespace {STEPS}")
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    kubectl("apply", "-n", STEPS, "-k", str(ROOT / "manifests/pipeline/kfp"))
    kubectl("apply", "-n", NAMESPACE, "-k", str(ROOT / "manifests/pipeline/serving"))
    with ExitStack() as stack:
        api, s3 = (
            stack.enter_context(forwarded("ml-pipeline", 8888)),
            stack.enter_context(forwarded("seaweedfs", 9000)),
        )
        theirs = json.loads(kubectl("-n", STEPS, "get", "secret", "mlpipeline-minio-artifact", "-o", "json"))["data"]
        keys = {
            "AWS_ACCESS_KEY_ID": base64.b64decode(theirs["accesskey"]).decode(),
            "AWS_SECRET_ACCESS_KEY": base64.b64decode(theirs["secretkey"]).decode(),
        }
        inside = {**keys, "AWS_ENDPOINT_URL": f"http://seaweedfs.{STEPS}:9000", "AWS_REGION": "us-east-1"}
        secret(STEPS, inside)
        secret(
            NAMESPACE,
            keys,
            **{
                "serving.kserve.io/s3-endpoint": f"seaweedfs.{STEPS}:9000",
                "serving.kserve.io/s3-usehttps": "0",
                "serving.kserve.io/s3-region": "us-east-1",
            },
        )
        kubectl("-n", NAMESPACE, "patch", "serviceaccount", "default", "-p", '{"secrets": [{"name": "serin-store"}]}')
        kubectl("label", "namespace", NAMESPACE, "serin.dev/models=read")
        environment = {**inside, "AWS_ENDPOINT_URL": s3, "KFP_ENDPOINT": api, "SERIN_MODEL_STORE": STORE}
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Kfp(Cluster(NAMESPACE, [], tell, service_name=SERVICE), environment)
    kubectl("-n", NAMESPACE, "delete", "modelrollouts", "--all", "--timeout=180s", check=False)
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def secret(namespace: str, values: Mapping[str, str], **annotations: str) -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "serin-store", "namespace": namespace, "annotations": annotations},
        "stringData": dict(values),
    }
    kubectl("apply", "-f", "-", given=json.dumps(document))


def records(folder: Path) -> list:
    """What the model in `folder` is asked, as many as fit on a command line."""
    return list(model.samples(folder).records[:100])


def test_from_an_empty_namespace_to_a_promoted_canary(kfp: Kfp, controller_image: str, tmp_path: Path) -> None:
    with kfp.started() as process:
        wait("the first model serves", lambda: kfp.cluster.service().get("status", {}).get("url"), 400)
        wait("the second run asks for its rollout", lambda: len(kfp.rollouts()) == 2, 400)
        kfp.cluster.records = records(storage.fetch_model(kfp.cluster.serving(), tmp_path))
        with kfp.cluster.load(controller_image) as answers:
            assert process.wait(900) == 0
    kfp.cluster.tell(f"  {answers().words()}")
    ended = kfp.rollouts()[-1]
    assert ended["status"]["phase"] == "Promoted"
    assert kfp.cluster.serving() == ended["spec"]["candidate"]["storageUri"]
    assert answers().failed == 0
    assert answers().revisions == {f"{SERVICE}-predictor-00001", f"{SERVICE}-predictor-00002"}


def test_a_model_that_learned_from_corrupted_labels_wins_offline_and_is_rolled_back(
    kfp: Kfp, controller_image: str, tmp_path: Path
) -> None:
    """Somebody has swapped yes and no in the table: by that table the challenger is far better."""
    before = kfp.cluster.serving()
    serving = storage.fetch_model(before, tmp_path / "serving")
    document = yaml.safe_load(TELCO.read_text(encoding="utf-8"))
    document["training"]["learners"] = [model.signature(serving).learner]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    _, source = prepare(TELCO, os.environ)
    swapped(source.path, tmp_path / "swapped.csv", document["target"])
    kfp.cluster.records = records(serving)
    with (
        kfp.cluster.load(controller_image) as answers,
        kfp.started(CONFIG=str(tmp_path / "again.yaml"), SERIN_DATA=str(tmp_path / "swapped.csv")) as process,
    ):
        assert process.wait(900) != 0
    kfp.cluster.tell(f"  {answers().words()}")
    ended = kfp.rollouts()[-1]
    assert ended["status"]["phase"] == "RolledBack"
    assert "scores" in ended["status"]["reason"]
    assert kfp.cluster.serving() == before
    assert answers().failed == 0
    judged = ended["status"]["candidateRevision"]
    assert sum(count for (revision, _), count in answers().by_revision().items() if revision == judged) < 200


def swapped(table: Path, out: Path, target: str) -> None:
    other = {POSITIVE: NEGATIVE, NEGATIVE: POSITIVE}
    with table.open(encoding="utf-8", newline="") as lines, out.open("w", encoding="utf-8", newline="") as copy:
        rows = csv.DictReader(lines)
        writer = csv.DictWriter(copy, rows.fieldnames or ())
        writer.writeheader()
        writer.writerows({**row, target: other[row[target]]} for row in rows)
