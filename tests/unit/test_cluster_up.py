"""The scripts that make a cluster, as far as they can be run without one."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"


def run(*arguments: str, path: str, folder: Path = CLUSTER) -> tuple[int, str]:
    ended = subprocess.run(
        ["/bin/bash", str(folder / "cluster.sh"), *arguments],
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


def downloads(folder: Path = CLUSTER) -> list[list[str]]:
    lines = (folder / "downloads").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A PATH on which nothing makes a cluster and nothing is read from elsewhere: curl gives `of URL`."""
    for tool in ("docker", "kind", "sleep", "kubectl"):
        stub(tmp_path, tool, "")
    stub(tmp_path, "sysctl", "echo 8192")
    stub(tmp_path, "curl", 'while [[ $1 != --output ]]; do shift; done; echo "of $3" > "$2"')
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The scripts, with the digests of what that curl gives."""
    copied = shutil.copytree(CLUSTER, tmp_path / "made" / "cluster")
    lines = [(hashlib.sha256(f"of {url}\n".encode()).hexdigest(), file, url) for _, file, url in downloads()]
    (copied / "downloads").write_text("# a comment\n" + "".join(" ".join(line) + "\n" for line in lines))
    return copied


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_everything_is_installed_in_order_and_what_is_refused_is_tried_again(
    tmp_path: Path, tools: str, folder: Path
) -> None:
    refused = f'case "$*" in *"/kserve") [[ $(grep -c -- "/kserve$" {tmp_path}/calls) -ge 3 ]];; esac'
    stub(tmp_path, "kubectl", refused)
    code, told = run("up", "kind", path=tools, folder=folder)
    assert code == 0, told
    made = calls(tmp_path)
    applied = [line.rsplit(" ", 1)[1] for line in made if " apply " in line]
    assert [re.sub(r".*/", "", each) for each in applied] == [
        "cert-manager.yaml", "serving-crds.yaml", "knative", "kserve", "kserve", "kserve", "sklearn",
    ]  # fmt: skip
    assert "kind create cluster --name serin --config kind.yaml --wait 120s" in made
    assert made.index("kubectl config use-context kind-serin") < next(i for i, c in enumerate(made) if "apply" in c)
    for each in applied:
        assert (folder / each).exists()


def test_what_was_downloaded_is_not_downloaded_again(tmp_path: Path, tools: str, folder: Path) -> None:
    for _ in range(2):
        assert run("up", "kind", path=tools, folder=folder)[0] == 0
    assert len([each for each in calls(tmp_path) if each.startswith("curl ")]) == len(downloads())


def test_a_file_with_another_digest_is_refused_before_anything_is_made(
    tmp_path: Path, tools: str, folder: Path
) -> None:
    assert run("up", "kind", path=tools, folder=folder)[0] == 0
    _, file, url = downloads()[-1]
    (folder / "../.cache/cluster" / file).write_text("changed on disk, and then by its server, too")
    (tmp_path / "calls").unlink()
    stub(tmp_path, "curl", 'while [[ $1 != --output ]]; do shift; done; echo "something else" > "$2"')
    code, told = run("up", "kind", path=tools, folder=folder)
    assert code == 2 and told.startswith(f"serin: {url} is not the file whose SHA-256")
    assert not [each for each in calls(tmp_path) if each.startswith(("kind", "kubectl"))]


def test_every_download_is_of_one_commit_and_in_its_place() -> None:
    for digest, _, url in downloads():
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/\S+", url)
    files = {file for _, file, _ in downloads()}
    for kustomization in CLUSTER.glob("*/kustomization.yaml"):
        place = kustomization.parent
        used = yaml.safe_load(kustomization.read_text(encoding="utf-8"))["resources"]
        assert used and all((place / each).exists() or f"{place.name}/{each}" in files for each in used)


def test_what_stays_refused_ends_it_with_what_was_said(tmp_path: Path, tools: str, folder: Path) -> None:
    stub(tmp_path, "kubectl", '[[ "$*" != *" -f "* ]] || { echo "no such host" >&2; exit 1; }')
    code, told = run("up", "kind", path=tools, folder=folder)
    assert code == 2 and "cert-manager.yaml was refused for 150 s: no such host" in told


def test_versions_agree() -> None:
    script = (CLUSTER / "cluster.sh").read_text(encoding="utf-8")
    serving = {found for _, _, url in downloads() for found in re.findall(r"/knative-serving/([^/]+)/", url)}
    assert len(serving) == 1
    node = yaml.safe_load((CLUSTER / "kind.yaml").read_text(encoding="utf-8"))["nodes"][0]["image"]
    assert re.fullmatch(r"kindest/node:v[\d.]+@sha256:[0-9a-f]{64}", node)
    assert f"KUBERNETES={re.split('[:@]', node)[1]} " in script


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    assert subprocess.run(["shellcheck", str(CLUSTER / "cluster.sh")], check=False).returncode == 0  # noqa: S607
