"""The manifests at a real API server, and what the service accounts may and may not do."""

import json
import subprocess
from pathlib import Path

import pytest

from cluster import SYSTEM, kubectl

ROOT = Path(__file__).parents[2]
CONTROLLER = f"system:serviceaccount:{SYSTEM}:serin-controller"
MODELS = "default"

ALLOWED = [
    ("get", "modelrollouts.serin.dev", MODELS),
    ("list", "modelrollouts.serin.dev", MODELS),
    ("watch", "modelrollouts.serin.dev", MODELS),
    ("patch", "modelrollouts.serin.dev", MODELS),
    ("update", "modelrollouts.serin.dev/status", MODELS),
    ("get", "inferenceservices.serving.kserve.io", MODELS),
    ("list", "inferenceservices.serving.kserve.io", MODELS),
    ("watch", "inferenceservices.serving.kserve.io", MODELS),
    ("patch", "inferenceservices.serving.kserve.io", MODELS),
    ("create", "inferenceservices.serving.kserve.io", MODELS),
    ("list", "pods", MODELS),
    ("watch", "pods", MODELS),
    ("list", "pods", "kourier-system"),
    ("get", "services/kourier", "kourier-system"),
    ("get", "configmaps", MODELS),
    ("create", "events", MODELS),
    ("create", "leases.coordination.k8s.io", SYSTEM),
    ("update", "leases.coordination.k8s.io/serin-controller", SYSTEM),
]
REFUSED = [
    ("create", "modelrollouts.serin.dev", MODELS),
    ("delete", "modelrollouts.serin.dev", MODELS),
    ("update", "inferenceservices.serving.kserve.io/status", MODELS),
    ("patch", "services.serving.knative.dev", MODELS),
    ("patch", "clusterservingruntimes.serving.kserve.io", MODELS),
    ("get", "secrets", MODELS),
    ("get", "secrets", SYSTEM),
    ("list", "configmaps", MODELS),
    ("create", "pods", MODELS),
    ("delete", "pods", MODELS),
    ("create", "pods/exec", MODELS),
    ("get", "services/other", "kourier-system"),
    ("update", "leases.coordination.k8s.io/other", SYSTEM),
    ("update", "leases.coordination.k8s.io", "kube-system"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io", MODELS),
    ("impersonate", "serviceaccounts", MODELS),
]


def may(who: str, verb: str, what: str, namespace: str) -> bool:
    kind, _, name = what.partition("/")
    target = [kind, f"--subresource={name}"] if name in ("status", "exec") else [what]
    command = ["kubectl", "auth", "can-i", verb, *target, "-n", namespace, f"--as={who}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()[:1]
    assert answer in (["yes"], ["no"]), what
    return answer == ["yes"]


def test_the_controller_may_do_what_it_needs() -> None:
    assert [each for each in ALLOWED if not may(CONTROLLER, *each)] == []


def test_the_controller_may_do_nothing_else() -> None:
    assert [each for each in REFUSED if may(CONTROLLER, *each)] == []


@pytest.mark.parametrize(
    ("role", "verbs"),
    [("view", {"get", "list", "watch"}), ("edit", {"get", "list", "watch", "create", "patch", "update", "delete"})],
)
def test_people_get_rollouts_with_their_usual_role(role: str, verbs: set[str]) -> None:
    rules = json.loads(kubectl("get", "clusterrole", role, "-o", "json"))["rules"]
    granted = [rule for rule in rules if "serin.dev" in rule.get("apiGroups", [])]
    assert {verb for rule in granted for verb in rule["verbs"]} == verbs
    assert {resource for rule in granted for resource in rule["resources"]} == {"modelrollouts"}


def has_prometheus_operator() -> bool:
    return "servicemonitors" in kubectl(
        "api-resources", "--api-group=monitoring.coreos.com", "-o", "name", check=False
    )


@pytest.mark.parametrize(
    "name", ["base", "overlays/kind", "overlays/minikube", "overlays/single-node", "serving", "monitoring"]
)
def test_the_api_server_takes_the_manifests(name: str) -> None:
    if name == "monitoring" and not has_prometheus_operator():
        # the API server cannot check objects whose definitions it does not have; test_monitoring checks their form
        pytest.skip("no Prometheus operator here")
    rendered = kubectl("kustomize", str(ROOT / "manifests" / name))
    # a dry run makes no namespace that later objects could be in
    rendered = rendered.replace("namespace: serving\n", "namespace: default\n")
    kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", given=rendered)
