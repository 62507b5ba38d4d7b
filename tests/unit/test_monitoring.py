"""Dashboard and alerts ask for metrics that exist."""

import re
from pathlib import Path
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from predictor.telemetry import Telemetry
from serin.controller.controller import Metrics

MONITORING = Path(__file__).parents[2] / "manifests/monitoring"
ENDINGS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exposed() -> set[str]:
    """Names of the series of controller and predictor."""
    predictor = CollectorRegistry()
    predictor.register(Telemetry("churn", "churn-00001"))
    controller = Metrics(SimpleNamespace(failures={}), SimpleNamespace(documents=list))
    metrics = [metric for registry in (controller.registry, predictor) for metric in registry.collect()]
    return {metric.name + ending for metric in metrics for ending in ENDINGS[metric.type]}


def test_dashboard_and_alerts_ask_for_what_is_exposed() -> None:
    texts = [(MONITORING / name).read_text(encoding="utf-8") for name in ("serin.json", "alerts.yaml")]
    asked = [set(re.findall(r"\bserin_[a-z0-9_]+", text)) for text in texts]
    assert all(asked)
    assert set.union(*asked) <= exposed()
