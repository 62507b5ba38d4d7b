"""Whole rollouts judged by what a Prometheus in the cluster has scraped, and by nothing else.

PROMETHEUS_IMAGE names the image. The controller's network policy lets it out to the namespace `monitoring`, so that
is where the Prometheus is put.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from cluster import LENIENT, NO_CHECKS, QUICK, STRICTER, SYSTEM, Cluster, fault, kubectl, plugin, pod_document, wait

IMAGE = os.environ.get("PROMETHEUS_IMAGE", "quay.io/prometheus/prometheus:v3.5.0")
NAMESPACE, NAME = "monitoring", "serin-test-prometheus"
URL = f"http://{NAME}.{NAMESPACE}.svc:9090"
SCRAPE_S = 5
KNATIVE = "knative-serving"


def of_pods(job: str, namespace: str, label: str, port: int, path: str) -> dict[str, Any]:
    """Scrape a port of the pods of a namespace that have the label."""
    return {
        "job_name": job,
        "metrics_path": path,
        "kubernetes_sd_configs": [
            {"role": "pod", "namespaces": {"names": [namespace]}, "selectors": [{"role": "pod", "label": label}]}
        ],
        "relabel_configs": [
            {
                "source_labels": ["__meta_kubernetes_pod_container_port_number"],
                "regex": str(port),
                "action": "keep",
            },
        ],
    }


def documents(scrape: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A Prometheus that scrapes this and may see the pods there, nothing else."""
    (discovery,) = scrape["kubernetes_sd_configs"]
    (watched,) = discovery["namespaces"]["names"]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S - 1}s"},
        "scrape_configs": [scrape],
    }
    labels = {"app": NAME}
    ours, theirs = {"name": NAME, "namespace": NAMESPACE, "labels": labels}, {"name": NAME, "namespace": watched}
    rbac = "rbac.authorization.k8s.io"
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": ours}
    yield {
        "apiVersion": f"{rbac}/v1",
        "kind": "Role",
        "metadata": theirs,
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
    }
    yield {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": theirs,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    }
    yield {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": ours,
        "data": {"prometheus.yml": yaml.safe_dump(config)},
    }
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": ours,
        "spec": {"selector": labels, "ports": [{"port": 9090}]},
    }
    flags = ["--config.file=/etc/serin-test/prometheus.yml", "--storage.tsdb.path=/tmp/data"]
    pod = pod_document(NAME, IMAGE, ["/bin/prometheus", *flags])
    pod["metadata"] = ours
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    spec["serviceAccountName"] = NAME
    spec["securityContext"]["runAsUser"] = 65534
    spec["volumes"].append({"name": "config", "configMap": {"name": NAME}})
    container["volumeMounts"].append({"name": "config", "mountPath": "/etc/serin-test"})
    container["readinessProbe"] = {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1}
    yield pod


@contextmanager
def prometheus(scrape: dict[str, Any]) -> Iterator[None]:
    with ExitStack() as after:
        if not kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
            kubectl("create", "namespace", NAMESPACE)
            after.callback(kubectl, "delete", "namespace", NAMESPACE, "--timeout=180s")
        for document in documents(scrape):
            text = json.dumps(document)
            after.callback(kubectl, "delete", "--ignore-not-found", "--timeout=60s", "-f", "-", given=text)
            kubectl("apply", "-f", "-", given=text)
        kubectl("-n", NAMESPACE, "wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=120s")
        yield


@contextmanager
def controller_asks_it(cluster: Cluster) -> Iterator[None]:
    """The controller restarted with `--prometheus`; then again without."""

    def arguments(pod: dict[str, Any]) -> list[str]:
        return list(pod["spec"]["containers"][0]["args"]) if pod else []

    def leader() -> dict[str, Any]:
        holder = cluster.get("lease", "serin-controller", SYSTEM)["spec"].get("holderIdentity")
        return cluster.get("pod", holder.rpartition("_")[0], SYSTEM) if holder else {}

    def restart(wanted: list[str]) -> None:
        change = [{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": wanted}]
        kubectl("-n", SYSTEM, "patch", "deployment", "serin-controller", "--type=json", "-p", json.dumps(change))
        kubectl("-n", SYSTEM, "rollout", "status", "deployment/serin-controller", "--timeout=120s")
        wait("a controller started like this leads", lambda: arguments(leader()) == wanted)

    before = arguments(cluster.get("deployment", "serin-controller", SYSTEM)["spec"]["template"])
    try:
        restart([*before, f"--prometheus={URL}"])
        yield
    finally:
        restart(before)


@contextmanager
def queue_proxies_tell() -> Iterator[None]:
    """Queue-proxies of this Knative expose what they count; then as it was before. Each change restarts them all."""
    key = "request-metrics-protocol"

    def set_to(protocol: str | None) -> None:
        change = json.dumps({"data": {key: protocol}})
        kubectl("-n", KNATIVE, "patch", "configmap", "config-observability", "--type=merge", "-p", change)

    before = json.loads(kubectl("-n", KNATIVE, "get", "configmap", "config-observability", "-o", "json"))
    try:
        set_to("prometheus")
        yield
    finally:
        set_to(before.get("data", {}).get(key))


@pytest.fixture(scope="module", params=["gateway", "queue-proxy"])
def source(request: pytest.FixtureRequest, released: Cluster) -> Iterator[str]:
    """Whose counts Prometheus scrapes; the controller asks it."""
    with ExitStack() as stack:
        if request.param == "gateway":
            label, port, path = "app=3scale-kourier-gateway", 9000, "/stats/prometheus"
            scrape = of_pods("kourier", "kourier-system", label, port, path)
        else:
            stack.enter_context(queue_proxies_tell())
            scrape = of_pods("queue-proxy", released.namespace, "serving.knative.dev/revision", 9091, "/metrics")
        stack.enter_context(prometheus(scrape))
        stack.enter_context(controller_asks_it(released))
        yield str(request.param)


def test_doctor_names_the_prometheus(source: str, released: Cluster) -> None:
    code, said = plugin(released, "doctor")
    assert code == 0, said
    assert URL in said


def test_a_good_candidate_is_promoted(source: str, released: Cluster, controller_image: str) -> None:
    model = {"gateway": "v7", "queue-proxy": "v8"}[source]
    # where the split is no evidence, what is rare takes longer to be ruled out
    stages = QUICK["stages"] if source == "gateway" else [{"traffic": 25, "minSeconds": 10, "margin": 9}]
    with released.load(controller_image) as answers:
        released.rollout(f"good-by-{source}", model, plan={**QUICK, "stages": stages})
        status = released.ended(f"good-by-{source}")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "Promoted"
    assert answers().failed == 0
    assert released.serving().endswith(f"/{model}")


@pytest.mark.parametrize(
    ("what", "judge", "at_most"),
    [("errors", LENIENT, 150), ("latency", STRICTER, 300)],  # latencies of the gateway count from 13 s after a change
    ids=["failing", "slow"],
)
def test_a_bad_candidate_is_rolled_back(
    source: str, released: Cluster, controller_image: str, what: str, judge: dict, at_most: int
) -> None:
    name, before = f"{what}-by-{source}", released.serving()
    with released.load(controller_image) as answers:
        released.rollout(name, "v9", candidate=fault(what), plan=NO_CHECKS, judge=judge)
        status = released.ended(name)
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    assert what in status["reason"]
    assert released.serving() == before
    counts = answers().by_revision()
    assert sum(count for (revision, _), count in counts.items() if revision == status["candidateRevision"]) <= at_most
