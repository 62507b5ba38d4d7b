"""The token of the pipeline's deploy step: what it opens, and what a step without rights says."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_manifests import may

from cluster import kubectl, wait
from serin.errors import UserError
from serin.kube import api
from serin.platforms.kserve.client import KServe

ROOT = Path(__file__).parents[2]
STEPS, SERVING, ELSEWHERE = "kubeflow", "serin-pipeline-test", "default"
WHO = f"system:serviceaccount:{STEPS}:serin-deploy"
ROLLOUTS, SERVICES = "modelrollouts.serin.dev", "inferenceservices.serving.kserve.io"


@pytest.fixture(scope="module", autouse=True)
def rights() -> Iterator[None]:
    made = [name for name in (STEPS, SERVING) if not kubectl("get", "namespace", name, "--ignore-not-found")]
    for name in made:
        kubectl("create", "namespace", name)
    kubectl("apply", "-n", STEPS, "-k", str(ROOT / "manifests/pipeline/kfp"))
    kubectl("apply", "-n", SERVING, "-k", str(ROOT / "manifests/pipeline/serving"))
    yield
    for name in made:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as the deploy step: in the cluster, with the token of another ServiceAccount mounted."""
    server = json.loads(kubectl("config", "view", "--minify", "-o", "json"))["clusters"][0]["cluster"]["server"]
    host, _, port = server.removeprefix("https://").partition(":")

    def mounted() -> dict[str, str]:
        secret = json.loads(kubectl("-n", STEPS, "get", "secret", "serin-deploy-token", "-o", "json"))
        return secret.get("data", {})

    wait("the token", lambda: "token" in mounted())
    for name, value in mounted().items():
        (tmp_path / name).write_bytes(base64.b64decode(value))
    monkeypatch.setattr(api, "ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port or "443")


def test_the_deploy_step_may_ask_for_rollouts_and_look_and_nothing_else() -> None:
    allowed = [(verb, ROLLOUTS) for verb in ("get", "list", "create")]
    allowed += [(verb, f"{SERVICES}/churn") for verb in ("get", "patch")]
    refused = [
        *((verb, ROLLOUTS) for verb in ("watch", "patch", "update", "delete")),
        *((verb, SERVICES) for verb in ("list", "create", "delete")),
        *((verb, f"{SERVICES}/another") for verb in ("get", "patch")),
        ("get", "secrets"),
        ("list", "pods"),
    ]
    assert [each for each in allowed if not may(WHO, *each, SERVING)] == []
    assert [each for each in refused if may(WHO, *each, SERVING)] == []
    assert [each for each in allowed if may(WHO, *each, ELSEWHERE)] == []


@pytest.mark.usefixtures("account")
def test_its_token_is_used_and_a_missing_right_is_named() -> None:
    assert KServe(SERVING, api.Api.connect()).rollouts() == []
    with pytest.raises(UserError, match=rf"{WHO} may not list modelrollouts in namespace {ELSEWHERE}"):
        KServe(ELSEWHERE, api.Api.connect()).rollouts()
