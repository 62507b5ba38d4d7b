"""The CPU limit as containers state it."""

from pathlib import Path

import pytest

from predictor import threads


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("quota", "limit"), [("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 2)]
)
def test_cgroup_v2(tmp_path: Path, quota: str, limit: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert threads.cpu_limit(tmp_path) == limit


@pytest.mark.parametrize(("quota", "limit"), [("-1", 8), ("300000", 3)])
def test_cgroup_v1(tmp_path: Path, quota: str, limit: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.cpu_limit(tmp_path) == limit


def test_without_cgroups(tmp_path: Path) -> None:
    assert threads.cpu_limit(tmp_path) == 8
