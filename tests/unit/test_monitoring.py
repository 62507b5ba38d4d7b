"""Dashboard and alerts ask for metrics that exist."""

import re
import threading
from pathlib import Path
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from predictor.telemetry import Telemetry
from serin.controller.controller import Metrics

MONITORING = Path(__file__).parents[2] / "manifests/monitoring"
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def controller_metrics(*phases: str) -> tuple[Metrics, threading.Event]:
    """With rollouts in these phases; the event says that they have been read."""
    documents, filled = [{"status": {"phase": phase}} for phase in phases], threading.Event()
    cache = SimpleNamespace(documents=lambda: documents, filled=filled)
    return Metrics(SimpleNamespace(failures={}), cache), filled


def exposed() -> set[str]:
    """Names of the series of controller and predictor."""
    predictor = CollectorRegistry()
    predictor.register(Telemetry("churn", "churn-00001"))
    controller, _ = controller_metrics()
    metrics = [metric for registry in (controller.registry, predictor) for metric in registry.collect()]
    return {metric.name + ending for metric in metrics for ending in ENDINGS[metric.type]}


def test_dashboard_and_alerts_ask_for_what_is_exposed() -> None:
    texts = [(MONITORING / name).read_text(encoding="utf-8") for name in ("serin.json", "alerts.yaml")]
    asked = [set(re.findall(r"\bserin_[a-z0-9_]+", text)) for text in texts]
    assert all(asked)
    assert set.union(*asked) <= exposed()


def test_the_first_failed_look_is_an_increase() -> None:
    metrics, _ = controller_metrics()
    for kind in ("bug", "refused"):
        assert metrics.registry.get_sample_value("serin_reconcile_errors_total", {"kind": kind}) == 0


def test_rollouts_that_have_not_been_read_yet_are_not_told_as_none() -> None:
    metrics, filled = controller_metrics("RolledBack", "RolledBack")
    assert metrics.registry.get_sample_value("serin_rollouts", {"phase": "RolledBack"}) is None
    filled.set()
    assert metrics.registry.get_sample_value("serin_rollouts", {"phase": "RolledBack"}) == 2
    assert metrics.registry.get_sample_value("serin_rollouts", {"phase": "Promoted"}) == 0
