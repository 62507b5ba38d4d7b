"""Hints name the command that works where they are read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serin import hint

PACKAGE = Path(hint.__file__).parent


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "check out"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "serin").touch()
    return folder


@pytest.mark.parametrize(
    ("program", "here", "on_path", "told"),
    [
        (".venv/bin/serin", ".", False, ".venv/bin/serin"),
        ("../.venv/bin/serin", "docs", False, "../.venv/bin/serin"),
        ("{}/.venv/bin/serin", ".", False, ".venv/bin/serin"),
        ("{}/.venv/bin/serin", "docs", False, "'{}/.venv/bin/serin'"),
        ("{}/.venv/bin/serin", ".", True, "serin"),
        ("pipelines/run.py", ".", False, ".venv/bin/serin"),
        ("pipelines/run.py", ".", True, "serin"),
        ("serin", ".", False, "serin"),
        ("{}/.venv/bin/kubectl-serin", ".", False, "kubectl serin"),
    ],
)
def test_the_command_is_spelled_as_it_works_here(checkout, program, here, on_path, told):
    (checkout / "docs").mkdir()
    installed = checkout / ".venv" / "bin" / "serin"
    spelled = hint.spelled(
        program.format(checkout),
        installed.parent / "python",
        checkout / here,
        on_path=installed if on_path else None,
    )
    assert spelled == told.format(checkout)


def test_another_serin_on_the_path_is_not_meant(checkout, tmp_path):
    other = tmp_path / "serin"
    other.touch()
    python = checkout / ".venv" / "bin" / "python"
    assert hint.spelled(".venv/bin/serin", python, checkout, on_path=other) == ".venv/bin/serin"


def test_without_an_installation_it_is_plain(tmp_path):
    assert hint.spelled("run.py", tmp_path / "bin" / "python", tmp_path, on_path=None) == "serin"


def test_in_a_deleted_folder_there_are_hints_too(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert hint.typed("up").endswith("serin up`")


@pytest.mark.parametrize("by_path", [True, False])
def test_a_hint_of_the_installed_command_can_be_typed(tmp_path, by_path):
    scripts = Path(sys.executable).parent
    path = f"{scripts}:{os.environ['PATH']}" if by_path else "/usr/bin:/bin"
    (tmp_path / "venv").symlink_to(scripts)
    ended = subprocess.run(
        ["serin" if by_path else "venv/serin", "status"],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"start one with `{'serin' if by_path else 'venv/serin'} up`" in ended.stderr


def test_no_message_spells_the_command_itself():
    sources = [file for part in ("cli", "platforms") for file in (PACKAGE / part).rglob("*.py")]
    for file in sources:
        for line in file.read_text(encoding="utf-8").splitlines():
            assert not re.search(r'"[^"]*`(kubectl )?serin [a-z{]', line) or line.lstrip().startswith('"""'), (
                file,
                line,
            )
