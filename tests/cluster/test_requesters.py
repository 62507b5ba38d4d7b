"""Who may ask for what: the controller's rights are not lent to whoever may write a ModelRollout."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import kubectl

NAMESPACE = "serin-requesters"
WRITER, RELEASER = "mallory", "jane"
"""The first may write ModelRollouts and no InferenceService, the second has the role `serin-edit`."""
POD = {"containers": [{"name": "kserve-container", "image": "example.com/miner:1"}], "minReplicas": 1}


@pytest.fixture(scope="module", autouse=True)
def people() -> Iterator[None]:
    kubectl("create", "namespace", NAMESPACE)
    kubectl("-n", NAMESPACE, "create", "role", "writer", "--verb=*", "--resource=modelrollouts.serin.dev")
    kubectl("-n", NAMESPACE, "create", "rolebinding", "writer", "--role=writer", f"--user={WRITER}")
    kubectl("-n", NAMESPACE, "create", "rolebinding", "edit", "--clusterrole=serin-edit", f"--user={RELEASER}")
    yield
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def create(who: str, name: str, candidate: dict[str, Any], service: str = "churn", **spec: object) -> str:
    """Whether the API server takes the ModelRollout, as a dry run; what it says if not."""
    document = {
        "apiVersion": "serin.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"service": service, "candidate": candidate, **spec},
    }
    return kubectl(f"--as={who}", "create", "--dry-run=server", "-f", "-", given=json.dumps(document), check=False)


MODEL = {"storageUri": "s3://models/churn/2"}


def test_who_may_not_patch_the_service_may_not_release_to_it() -> None:
    for candidate in (MODEL, {"predictor": POD}):
        refused = create(WRITER, "a", candidate)
        assert f"{WRITER} may not patch InferenceService churn in namespace {NAMESPACE}" in refused
        assert "created" in create(RELEASER, "a", candidate)


def test_to_one_service_only() -> None:
    role = ["role", "one", "--verb=patch", "--resource=inferenceservices.serving.kserve.io", "--resource-name=fraud"]
    kubectl("-n", NAMESPACE, "create", *role)
    kubectl("-n", NAMESPACE, "create", "rolebinding", "one", "--role=one", f"--user={WRITER}")
    assert "created" in create(WRITER, "a", MODEL, service="fraud")
    assert "may not patch InferenceService churn" in create(WRITER, "a", MODEL)


def test_a_predictor_runs_as_another_account_only_for_who_may_act_as_it() -> None:
    named = [
        {"serviceAccountName": "privileged"},
        {"serviceAccount": "privileged"},
        {"serviceAccountName": "", "serviceAccount": "privileged"},
        {"workerSpec": {"serviceAccountName": "privileged"}},
    ]
    candidates = [{"predictor": {**POD, **each}} for each in named]
    for privileged in candidates:
        assert f"{RELEASER} may not impersonate ServiceAccount privileged" in create(RELEASER, "a", privileged)
    role = ["role", "actor", "--verb=impersonate", "--resource=serviceaccounts", "--resource-name=privileged"]
    kubectl("-n", NAMESPACE, "create", *role)
    kubectl("-n", NAMESPACE, "create", "rolebinding", "actor", "--role=actor", f"--user={RELEASER}")
    for privileged in candidates:
        assert "created" in create(RELEASER, "a", privileged)


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "PATH", "AWS_SECRET_ACCESS_KEY"])
def test_no_variable_loads_other_code(name: str) -> None:
    refused = create(RELEASER, "a", {**MODEL, "env": [{"name": name, "value": "/mnt/models"}]})
    assert "spec.candidate.env[0].name" in refused and "created" not in refused


def waiting(name: str, **spec: object) -> None:
    """A rollout that waits for a service which does not exist."""
    document = {
        "apiVersion": "serin.dev/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": name, "namespace": NAMESPACE, "finalizers": ["serin.dev/traffic"]},
        "spec": {"service": "nothing", "candidate": MODEL, "paused": True, "approval": "beforeTraffic", **spec},
    }
    kubectl("create", "-f", "-", given=json.dumps(document))


def patch(who: str, name: str, change: dict[str, Any]) -> str:
    given = ["--type=merge", "-p", json.dumps(change), "--dry-run=server"]
    return kubectl(f"--as={who}", "-n", NAMESPACE, "patch", "modelrollout", name, *given, check=False)


def test_anybody_who_may_write_rollouts_may_stop_one_but_not_let_it_through() -> None:
    waiting("waits")
    for stops in (
        {"spec": {"abort": True}},
        {"spec": {"abort": True, "paused": True}},
        {"metadata": {"labels": {"a": "b"}}},
    ):
        assert "patched" in patch(WRITER, "waits", stops)
    for lets_through in (
        {"spec": {"promote": True}},
        {"spec": {"approved": True}},
        {"spec": {"paused": False}},
        {"spec": {"paused": None}},
        {"spec": {"approval": "none"}},
        {"spec": {"abort": True, "profile": "fast"}},
        {"spec": {"candidate": {"storageUri": "s3://models/churn/3"}}},
        {"metadata": {"finalizers": None}},
    ):
        assert "may not patch InferenceService nothing" in patch(WRITER, "waits", lets_through)
        assert "patched" in patch(RELEASER, "waits", lets_through)


def test_what_was_stopped_stays_stopped() -> None:
    waiting("stopped", abort=True)
    for abort in (False, None):
        assert "may not patch InferenceService nothing" in patch(WRITER, "stopped", {"spec": {"abort": abort}})
