"""How many threads this process may use."""

import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")


def bound() -> None:
    """Hold pools of native threads to one thread each. Call before NumPy, ONNX Runtime or obstore is imported: each
    would start a pool as wide as the machine, whatever the container may use of it."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKIO_WORKER_THREADS"):
        os.environ.setdefault(variable, "1")


def cpu_limit(cgroups: Path = CGROUPS) -> int:
    """Whole CPUs that the scheduler and the container's quota (cgroup v2 or v1) leave to this process, at
    least 1."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota(cgroups))))


def _quota(cgroups: Path) -> float:
    v2, v1 = cgroups / "cpu.max", cgroups / "cpu"
    if v2.exists():
        quota, period = v2.read_text(encoding="ascii").split()
    elif (v1 / "cpu.cfs_quota_us").exists():
        quota, period = (
            (v1 / name).read_text(encoding="ascii").strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
    else:
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
