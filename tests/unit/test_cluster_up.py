"""The scripts that make a cluster, as far as they can be run without one."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"


def run(*arguments: str, path: str) -> tuple[int, str]:
    ended = subprocess.run(
        ["/bin/bash", str(CLUSTER / "cluster.sh"), *arguments],
        env={"PATH": path}, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "serin: use cluster.sh up|status|down kind|minikube\n"),
        (("up",), "serin: CLUSTER is kind or minikube, not empty.\n"),
        (("up", "swarm"), "serin: CLUSTER is kind or minikube, not swarm.\n"),
        (("down", "kind"), "serin: kind is not on the PATH; install it first.\n"),
        (("down", "minikube"), "serin: minikube is not on the PATH; install it first.\n"),
        (("up", "minikube"), "serin: minikube is not on the PATH; install it first.\n"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_made(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    assert run(*arguments, path=str(tmp_path)) == (2, told)


def stub(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{script}\n')
    (folder / name).chmod(0o755)


def test_everything_is_installed_in_order_and_what_is_refused_is_tried_again(tmp_path: Path) -> None:
    stub(tmp_path, "docker", "")
    stub(tmp_path, "kind", "")
    stub(tmp_path, "sysctl", "echo 8192")
    stub(tmp_path, "sleep", "")
    stub(
        tmp_path,
        "kubectl",
        f'case "$*" in *"-k kserve"*) [[ $(grep -c -- "-k kserve" {tmp_path}/calls) -ge 3 ]];; esac',
    )
    code, told = run("up", "kind", path=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 0, told
    calls = (tmp_path / "calls").read_text().splitlines()
    applied = [line.rsplit(" ", 1)[1] for line in calls if " apply " in line]
    assert [re.sub(r".*/", "", each) for each in applied] == [
        "cert-manager.yaml", "serving-crds.yaml", "knative", "kserve", "kserve", "kserve", "sklearn",
    ]  # fmt: skip
    assert "kind create cluster --name serin --config kind.yaml --wait 120s" in calls
    assert calls.index("kubectl config use-context kind-serin") < next(i for i, c in enumerate(calls) if "apply" in c)


def test_too_few_inotify_instances_are_named_before_a_cluster_is_made(tmp_path: Path) -> None:
    for name in ("docker", "kind", "kubectl"):
        stub(tmp_path, name, "")
    stub(tmp_path, "sysctl", "echo 128")
    code, told = run("up", "kind", path=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 2 and "sysctl -w fs.inotify.max_user_instances=1280" in told
    assert "kind create" not in (tmp_path / "calls").read_text()


def test_what_stays_refused_ends_it_with_what_was_said(tmp_path: Path) -> None:
    stub(tmp_path, "docker", "")
    stub(tmp_path, "kind", "")
    stub(tmp_path, "sysctl", "echo 8192")
    stub(tmp_path, "sleep", "")
    stub(tmp_path, "kubectl", '[[ "$*" != *" -f "* ]] || { echo "no such host" >&2; exit 1; }')
    code, told = run("up", "kind", path=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 2 and "cert-manager.yaml was refused for 150 s: no such host" in told


def test_versions_agree() -> None:
    script = (CLUSTER / "cluster.sh").read_text(encoding="utf-8")
    texts = [script, *(each.read_text(encoding="utf-8") for each in CLUSTER.rglob("*.yaml"))]
    serving = {found for text in texts for found in re.findall(r"knative/serving/releases/download/([^/]+)/", text)}
    assert len(serving) == 1
    node = yaml.safe_load((CLUSTER / "kind.yaml").read_text(encoding="utf-8"))["nodes"][0]["image"]
    assert f"KUBERNETES={node.rsplit(':', 1)[1]} " in script


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    assert subprocess.run(["shellcheck", str(CLUSTER / "cluster.sh")], check=False).returncode == 0  # noqa: S607
