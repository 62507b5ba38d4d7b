"""What one server process counted, on the grids of `serin.model.histograms`."""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from predictor.log import PredictionLog
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES, bucket

_LABELS = ("revision", "model")


class Telemetry(Collector):
    def __init__(self, model: str, revision: str, log: PredictionLog | None = None) -> None:
        self.boot = str(uuid.uuid4())
        """Names this process: counts of another boot start from zero."""
        self.requests: Counter[int] = Counter()
        self.latency: Counter[int] = Counter()
        self.score: Counter[int] = Counter()
        self._model, self._revision, self._log = model, revision, log
        self._latency_sum_s = 0.0
        self._score_sum = 0.0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def add_request(self, status: int, seconds: float) -> None:
        self.requests[status] += 1
        self.latency[bucket(LATENCY_EDGES_S, seconds)] += 1
        self._latency_sum_s += seconds

    def add_scores(self, scores: NDArray[Any]) -> None:
        for score in scores.tolist():
            self.score[bucket(SCORE_EDGES, score)] += 1
            self._score_sum += score

    def compact(self) -> bytes:
        """The counts as JSON: plain (not cumulative over buckets), by bucket index, empty buckets left out."""
        counts = {
            "model": self._model,
            "revision": self._revision,
            "boot": self.boot,
            "latency": self.latency,
            "score": self.score,
            "requests": self.requests,
        }
        return json.dumps(counts).encode()

    def prometheus(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        labels = (self._revision, self._model)
        latency = HistogramMetricFamily(
            "serin_request_duration_seconds", "Inference requests, from first byte to last.", labels=_LABELS
        )
        latency.add_metric(labels, _cumulative(LATENCY_EDGES_S, self.latency), self._latency_sum_s)
        score = HistogramMetricFamily("serin_score", "Predicted probabilities, one per row.", labels=_LABELS)
        score.add_metric(labels, _cumulative(SCORE_EDGES, self.score), self._score_sum)
        requests = CounterMetricFamily(
            "serin_requests", "Inference requests, by HTTP status code.", labels=(*_LABELS, "code")
        )
        for code, count in sorted(self.requests.items()):
            requests.add_metric((*labels, str(code)), count)
        yield from (latency, score, requests)
        if self._log:
            logged = CounterMetricFamily(
                "serin_prediction_log_rows", "Rows of the prediction log, by outcome.", labels=(*_LABELS, "outcome")
            )
            for outcome, count in self._log.rows.items():
                logged.add_metric((*labels, outcome), count)
            yield logged


def _cumulative(edges: tuple[float, ...], counts: Counter[int]) -> list[tuple[str, float]]:
    totals = np.cumsum([counts[i] for i in range(len(edges) + 1)]).tolist()
    return list(zip([*map(str, edges), "+Inf"], totals, strict=True))
