"""`kubectl serin` on the cluster: looking, steering, and being refused."""

import re
import shlex
from pathlib import Path

import pytest

from cluster import Cluster, kubectl, plugin


def test_doctor_finds_nothing_missing(released: Cluster) -> None:
    code, said = plugin(released, "doctor")
    assert code == 0, said
    assert f"InferenceService {released.service_name}: {released.newest()} is serving" in said


def test_the_plugin_steers_a_rollout(released: Cluster) -> None:
    released.rollout("steered", "v4", approval="beforeTraffic")
    released.until("steered", "Waiting")
    assert "is being released by steered" in plugin(released, "doctor")[1]
    assert plugin(released, "pause")[1] == "steered: paused; the judge keeps watching\n"
    assert plugin(released, "resume", "steered")[0] == 0
    assert plugin(released, "abort")[0] == 0
    code, said = plugin(released, "watch", "steered")
    assert code == 1 and said.endswith("RolledBack: Aborted by request.\n")
    assert "nothing was changed" in plugin(released, "promote", "steered")[1]


def test_a_refusal_names_the_fix_and_the_fix_works(released: Cluster, tmp_path: Path) -> None:
    released.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "newcomer"}})
    token = kubectl("-n", released.namespace, "create", "token", "newcomer").strip()
    theirs = tmp_path / "kubeconfig"
    theirs.write_text(kubectl("config", "view", "--minify", "--flatten", "--raw"), encoding="utf-8")
    theirs.chmod(0o600)
    context = kubectl("config", "current-context").strip()
    config = ["--kubeconfig", str(theirs), "config"]
    kubectl(*config, "set-credentials", "newcomer", f"--token={token}")
    kubectl(*config, "set-context", context, "--user=newcomer")
    code, said = plugin(released, "status", kubeconfig=theirs)
    assert code == 2 and f"newcomer may not list modelrollouts in namespace {released.namespace}" in said
    fix = re.search(r"`kubectl (.+)`", said)
    assert fix is not None
    kubectl(*shlex.split(fix[1]))
    assert plugin(released, "status", kubeconfig=theirs)[0] == 0
    code, said = plugin(released, "abort", "first", kubeconfig=theirs)
    assert code == 2 and "has ended" in said


@pytest.mark.parametrize("name", ["requests", "rollout", "service"])
def test_the_manifests_of_the_page_on_adoption_are_valid(released: Cluster, name: str) -> None:
    file = Path(__file__).parents[2] / "manifests/examples/adopt" / f"{name}.yaml"
    assert "server dry run" in kubectl("-n", released.namespace, "apply", "--dry-run=server", "-f", str(file))
