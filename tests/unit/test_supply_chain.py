"""What is run but not kept here is named by its content: a tag can come to mean something else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")


def used(workflow: str) -> list[str]:
    return re.findall(r"uses: *(\S+)", workflow)


def steps(file: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_named_by_commit(file: Path) -> None:
    actions = used(file.read_text(encoding="utf-8"))
    assert actions
    assert [each for each in actions if not PINNED.match(each)] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_what_a_workflow_downloads_is_checked(file: Path) -> None:
    for step in steps(file):
        fetched = re.findall(r"\b(?:curl|wget)\b", step.get("run", ""))
        assert len(fetched) == len(re.findall(r"[0-9a-f]{64}  \S+\" \| sha256sum --check", step.get("run", "")))


def test_what_may_sign_and_publish_runs_nothing_of_the_repository() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    writing = [job for job in jobs.values() if "write" in job["permissions"].values()]
    assert len(writing) == 1
    assert not [
        step for step in writing[0]["steps"] if "checkout" in step.get("uses", "") or "make" in step.get("run", "")
    ]


def test_the_base_image_is_named_by_its_digest() -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "docker" / "Dockerfile").read_text(), re.M)
    assert re.fullmatch(r"python:3\.11-slim@sha256:[0-9a-f]{64}", base)
    assert f'"{base}"' in (ROOT / "docker" / "images.py").read_text()


@pytest.mark.parametrize(
    "file", sorted([*ROOT.glob("*.lock"), *ROOT.glob("docker/*.lock")]), ids=lambda file: file.name
)
def test_every_package_is_pinned_with_hashes(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert packages
    assert [line.split()[0] for line in packages if "==" not in line or "--hash=sha256:" not in line] == []
    assert "http" not in re.sub(r"aiohttp|httptools|httpcore|httpx|http-ece|\S*http\S*==\S+|# .*", "", text)
