"""The platform that the controller's benchmark keeps in memory does what the controller asks of it."""

from pathlib import Path

import pytest

from benchmarks import controller as bench
from serin.kube.api import Conflict
from serin.platforms.kserve.service import read


def test_a_service_follows_every_patch_at_once() -> None:
    service = bench.Service("churn", "serving")
    assert read(service.document()).settled
    predictor = {"model": {"storageUri": "s3://bench/candidate"}, "canaryTrafficPercent": 0}
    service.patch({"metadata": {"resourceVersion": "1"}, "spec": {"predictor": predictor}})
    service.patch({"metadata": {"resourceVersion": "2"}, "spec": {"predictor": {"canaryTrafficPercent": 5}}})
    seen = read(service.document())
    assert (seen.created, seen.ready, seen.rolled_out) == ("churn-r2", "churn-r2", "churn-r1")
    assert (seen.share("churn-r1"), seen.share("churn-r2"), seen.percent) == (95, 5, 5)
    with pytest.raises(Conflict):
        service.patch({"metadata": {"resourceVersion": "2"}, "spec": {"predictor": {}}})


def test_counts_grow_by_the_split_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    platform = bench.Platform()
    service = platform.service("serving", "churn")
    service.model, service.percent, service.counted_s = "s3://bench/candidate", 20, 0.0
    now[0] = 100.0
    found = platform.counts("serving", "churn-r1", "churn-r2", {})
    answered = 100 * bench.RATE
    assert sum(found.read["gateway"]["churn-r1 codes"].values()) == 0.8 * answered
    assert sum(found.read["gateway"]["churn-r2 codes"].values()) == 0.2 * answered
    assert 0.19 * answered < sum(found.read["churn-r2"]["churn-r2 latency"].values()) <= 0.2 * answered


def test_the_percentile_is_the_upper_edge_of_its_bucket() -> None:
    name = "serin_reconcile_lag_seconds_bucket "
    before = {f"{name}0.1": 50.0, f"{name}1.0": 50.0, f"{name}+Inf": 50.0}
    after = {f"{name}0.1": 148.0, f"{name}1.0": 149.0, f"{name}+Inf": 150.0, "other": 1.0}
    assert bench._percentile(before, after) == 1.0


def test_without_a_cluster_it_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("sys.argv", ["bench"])
    assert bench.main() == 2
    assert "point KUBECONFIG at a cluster" in capsys.readouterr().err
