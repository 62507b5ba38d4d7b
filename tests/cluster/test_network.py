"""The network policies, on a cluster whose network plugin enforces them: what must get through does, what must not
does not. Who is refused somewhere is shown to get there without the policy, or from elsewhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RECORDS, put_models

from cluster import CLAIM, SERVICE, SYSTEM, Cluster, Missing, kubectl, pod_document, wait

MANIFESTS = Path(__file__).parents[2] / "manifests"
SERVING, ELSEWHERE, STORE = "serin-network-test", "serin-network-test-elsewhere", "serin-network-test-store"
CONTROLLER = "deployment/serin-controller"
STRANGER_PORT, STORE_PORT = 8000, 8333
PREDICTOR_PORTS = (8012, 8080, 9090, 9091)
"""Of queue-proxy, the model server, and what both count."""
GATEWAY = "kourier-internal.kourier-system.svc.cluster.local"
API_SERVER_PORT = 443
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).close()
    print("open")
except OSError:
    print("closed")
"""
RESOLVE = """
import socket
socket.getaddrinfo("kubernetes.default.svc.cluster.local", 443)
"""
ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Host": sys.argv[2]})
print(urllib.request.urlopen(request, timeout=60).status)
"""


def python(namespace: str, pod: str, script: str, *arguments: str) -> str:
    container = ["-c", "kserve-container"] if namespace == SERVING else []
    command = ["-n", namespace, "exec", pod, *container, "--", "/venv/bin/python", "-c", script, *arguments]
    return kubectl(*command).strip()


def reaches(namespace: str, pod: str, address: str, port: int) -> bool:
    return python(namespace, pod, CONNECT, address, str(port)) == "open"


def opens(namespace: str, pod: str, address: str, port: int) -> None:
    wait(f"{pod} reaches {address}:{port}", lambda: reaches(namespace, pod, address, port), 30)


def closes(namespace: str, pod: str, address: str, port: int) -> None:
    wait(f"{pod} no longer reaches {address}:{port}", lambda: not reaches(namespace, pod, address, port), 30)


def listener(name: str, image: str, port: int, labels: dict[str, str] | None = None) -> dict:
    document = pod_document(name, image, ["/venv/bin/python", "-m", "http.server", str(port)])
    document["metadata"]["labels"] |= labels or {}
    return document


def policy(name: str, rules: list[dict]) -> dict:
    """All pods of a namespace, both ways."""
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": rules, "egress": rules}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def ip(namespace: str, *what: str) -> str:
    found = json.loads(kubectl("-n", namespace, "get", "pods", *what, "-o", "json"))
    pod = found["items"][0] if "items" in found else found
    return str(pod["status"]["podIP"])


@pytest.fixture(scope="module")
def api_server() -> str:
    return kubectl("-n", "default", "get", "service", "kubernetes", "-o", "jsonpath={.spec.clusterIP}")


@pytest.fixture(scope="module")
def guarded(tell, controller_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace made by manifests/serving with models v1 and v2 and, beside it, one with the pod `stranger`."""
    spaces = (SERVING, ELSEWHERE, STORE)
    kubectl("-n", SERVING, "delete", "modelrollouts", "--all", "--timeout=180s", check=False)
    kubectl("delete", "namespace", *spaces, "--ignore-not-found", "--timeout=180s")
    cluster = Cluster(SERVING, RECORDS, tell, clients=ELSEWHERE)
    try:
        kubectl("create", "namespace", ELSEWHERE)
        cluster.apply(listener("stranger", controller_image, STRANGER_PORT), ELSEWHERE)
        cluster.apply(listener("neighbour", controller_image, STRANGER_PORT), ELSEWHERE)
        kubectl("-n", ELSEWHERE, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=120s")
        _skip_unless_enforced(cluster)
        rendered = kubectl("kustomize", str(MANIFESTS / "serving"))
        kubectl("apply", "-f", "-", given=rendered.replace(": serving\n", f": {SERVING}\n"))
        put_models(cluster, controller_image, tmp_path_factory.mktemp("models"), 2)
        cluster.rollout("first", "v1")
        assert cluster.ended("first", 180)["phase"] == "Promoted"
        wait(f"{SERVICE} is ready", lambda: cluster.service().get("status", {}).get("url"))
        yield cluster
    finally:
        kubectl("-n", SERVING, "delete", "modelrollouts", "--all", "--timeout=180s", check=False)
        kubectl("delete", "namespace", *spaces, "--ignore-not-found", "--wait=false")


def _skip_unless_enforced(cluster: Cluster) -> None:
    neighbour = ip(ELSEWHERE, "neighbour")
    opens(ELSEWHERE, "stranger", neighbour, STRANGER_PORT)
    cluster.apply(policy("deny", []), ELSEWHERE)
    try:
        closes(ELSEWHERE, "stranger", neighbour, STRANGER_PORT)
    except Missing:  # Kubernetes leaves it to the plugin; without one that does, refusals cannot be shown
        pytest.skip("this cluster's network plugin does not enforce network policies")
    kubectl("-n", ELSEWHERE, "delete", "networkpolicy", "deny")
    opens(ELSEWHERE, "stranger", neighbour, STRANGER_PORT)


@pytest.fixture
def predictor(guarded: Cluster) -> str:
    """The pod that has the traffic."""
    label = f"serving.knative.dev/revision={guarded.newest()}"
    return kubectl("-n", SERVING, "get", "pods", "-l", label, "-o", "name").strip()


def test_a_canary_is_promoted_behind_the_policies(guarded: Cluster, controller_image: str) -> None:
    with guarded.load(controller_image) as answers:
        guarded.rollout("second", "v2")
        status = guarded.ended("second")
    guarded.tell(f"  {answers().words()}")
    assert status["phase"] == "Promoted"
    assert answers().failed == 0


@pytest.mark.usefixtures("guarded")
def test_the_controller_reaches_what_it_reads_and_nothing_else(predictor: str, api_server: str) -> None:
    gateway = ip("kourier-system", "-l", "app=3scale-kourier-gateway")
    opens(SYSTEM, CONTROLLER, gateway, 9000)
    opens(SYSTEM, CONTROLLER, ip(SERVING, predictor.removeprefix("pod/")), 8080)
    opens(SYSTEM, CONTROLLER, api_server, API_SERVER_PORT)
    python(SYSTEM, CONTROLLER, RESOLVE)
    closes(SYSTEM, CONTROLLER, ip(ELSEWHERE, "stranger"), STRANGER_PORT)


@pytest.mark.usefixtures("guarded")
def test_metrics_of_the_controller_are_not_for_everybody() -> None:
    # that they are served there, its readiness says: the kubelet asks at the same port
    controller = ip(SYSTEM, "-l", "app.kubernetes.io/name=serin-controller")
    closes(ELSEWHERE, "stranger", controller, 8081)


def test_a_predictor_is_reached_through_the_gateway_only(guarded: Cluster, predictor: str) -> None:
    address = ip(SERVING, predictor.removeprefix("pod/"))
    url = str(guarded.service()["status"]["url"])
    host = url.removeprefix("http://")
    assert python(ELSEWHERE, "stranger", ASK, f"http://{GATEWAY}/v1/models/{SERVICE}", host) == "200"
    for port in PREDICTOR_PORTS:
        closes(ELSEWHERE, "stranger", address, port)
    guarded.apply(policy("allow", [{}]))
    try:
        for port in PREDICTOR_PORTS:
            opens(ELSEWHERE, "stranger", address, port)
    finally:
        kubectl("-n", SERVING, "delete", "networkpolicy", "allow")
    for port in PREDICTOR_PORTS:
        closes(ELSEWHERE, "stranger", address, port)


@pytest.mark.usefixtures("guarded")
def test_a_predictor_gets_out_to_dns_but_neither_to_the_api_server_nor_to_other_pods(
    predictor: str, api_server: str
) -> None:
    for address, port in ((api_server, API_SERVER_PORT), (ip(ELSEWHERE, "stranger"), STRANGER_PORT)):
        opens(ELSEWHERE, "neighbour", address, port)
        closes(SERVING, predictor, address, port)
    python(SERVING, predictor, RESOLVE)


def test_the_store_is_read_by_its_own_namespace_and_by_those_with_the_label(
    guarded: Cluster, controller_image: str, predictor: str
) -> None:
    kubectl("create", "namespace", STORE)
    kubectl("-n", STORE, "apply", "-f", str(MANIFESTS / "pipeline/kfp/network.yaml"))
    guarded.apply(listener("seaweedfs", controller_image, STORE_PORT, {"app": "seaweedfs"}), STORE)
    guarded.apply(listener("step", controller_image, STRANGER_PORT), STORE)
    kubectl("-n", STORE, "wait", "pod", "--all", "--for=condition=Ready", "--timeout=120s")
    store = ip(STORE, "seaweedfs")
    opens(STORE, "step", store, STORE_PORT)
    closes(ELSEWHERE, "stranger", store, STORE_PORT)
    closes(SERVING, predictor, store, STORE_PORT)
    kubectl("label", "namespace", SERVING, "serin.dev/models=read")
    opens(SERVING, predictor, store, STORE_PORT)


def test_a_service_goes_to_sleep_and_is_woken_by_a_request(guarded: Cluster) -> None:
    """Autoscaler and activator reach queue-proxy."""
    model = {"modelFormat": {"name": "serin-onnx"}, "storageUri": f"pvc://{CLAIM}/v1"}
    annotations = {"autoscaling.knative.dev/window": "6s"}
    guarded.apply(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "sleepy", "annotations": annotations},
            "spec": {"predictor": {"minReplicas": 0, "model": model}},
        }
    )
    kubectl("-n", SERVING, "wait", "inferenceservice/sleepy", "--for=condition=Ready", "--timeout=120s")
    label = "serving.kserve.io/inferenceservice=sleepy"
    wait("sleepy has no pod", lambda: not kubectl("-n", SERVING, "get", "pods", "-l", label, "-o", "name"), 180)
    host = str(guarded.get("inferenceservice", "sleepy")["status"]["url"]).removeprefix("http://")
    assert python(ELSEWHERE, "stranger", ASK, f"http://{GATEWAY}/v1/models/sleepy", host) == "200"
