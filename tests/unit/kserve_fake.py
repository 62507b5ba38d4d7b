"""KServe and Knative in memory, as far as a canary depends on them.

What a pass does was read in KServe's and Knative's source and seen on a live cluster: traffic targets from
canaryTrafficPercent and latestRolledoutRevision, `latestRevision: true` resolved to the newest *ready* revision,
roll forward, and the rollback guess. Time is counted in passes; the status lags by one, as it does in life.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serin.platforms.kserve.service import PERCENT, TAG_ROUTING

NEVER = 10**9


@dataclass(frozen=True)
class Target:
    percent: int
    latest: bool
    revision: str = ""
    tag: str = ""


@dataclass(frozen=True)
class Seen:
    """The status of the Knative service: what it last worked out."""

    created: str = ""
    ready: str = ""
    rows: tuple[tuple[str, int, bool, str], ...] = ()


@dataclass
class FakeKServe:
    """One InferenceService. `delay` says after how many passes a revision of that model is ready; a model that KServe
    `refuses` (no runtime for it, say) changes nothing but the status."""

    name: str = "churn"
    uid: str = "first"
    delay: Callable[[str], int] = lambda _model: 0
    refuses: Callable[[str], bool] = lambda _model: False
    race: bool = False  # Knative works out the traffic before the new revision exists
    predictor: dict[str, Any] = field(default_factory=dict)
    percent: int | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=lambda: {TAG_ROUTING: "true"})
    version: int = 1
    models: dict[str, str] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)
    now: int = 0
    rolled_out: str = ""
    previous: str = ""
    exists: bool = True
    _refused: bool = False
    _template: object = None
    _targets: tuple[Target, ...] = ()
    _routed: tuple[Target, ...] = ()
    _knative: Seen = Seen()
    _status: Seen = Seen()

    # what clients do

    def patch(self, document: dict[str, Any]) -> None:
        """A JSON merge patch of the InferenceService."""
        whole = {
            "spec": {"predictor": {**self.predictor, PERCENT: self.percent}},
            "metadata": {"labels": self.labels},
        }
        merged = merge(whole, document)
        self.predictor = merged["spec"]["predictor"]
        self.percent = self.predictor.pop(PERCENT, None)
        self.labels = merged["metadata"]["labels"]
        self.version += 1

    def ask(self, model: str | None = None, **change: int | None) -> "FakeKServe":
        """As a person with kubectl: another model, `percent=`, or both in one patch."""
        predictor: dict[str, Any] = {"model": {"storageUri": model}} if model else {}
        if "percent" in change:
            predictor[PERCENT] = change["percent"]
        self.patch({"spec": {"predictor": predictor}})
        return self

    def read(self) -> dict[str, Any]:
        rows = [
            {"revisionName": name, "percent": percent, "latestRevision": latest, "tag": tag, "url": f"http://{tag}-x"}
            for name, percent, latest, tag in self._status.rows
        ]
        predictor = {
            "latestCreatedRevision": self._status.created,
            "latestReadyRevision": self._status.ready,
            "latestRolledoutRevision": self.rolled_out,
            "previousRolledoutRevision": self.previous,
            "traffic": rows,
        }
        model_status = {
            "transitionStatus": "InvalidSpec",
            "lastFailureInfo": {"reason": "NoSupportingRuntime", "message": "no runtime for it"},
        }
        percent = {} if self.percent is None else {PERCENT: self.percent}
        return copy.deepcopy(
            {
                "metadata": {
                    "name": self.name,
                    "uid": self.uid,
                    "resourceVersion": str(self.version),
                    "annotations": self.annotations,
                    "labels": self.labels,
                },
                "spec": {"predictor": {**self.predictor, **percent}},
                "status": {
                    "deploymentMode": "Knative",
                    **({"modelStatus": model_status} if self._refused else {}),
                    "components": {"predictor": {key: value for key, value in predictor.items() if value}},
                },
            }
        )

    # what the cluster does

    def settle(self, passes: int = 8) -> "FakeKServe":
        for _ in range(passes):
            self.tick()
        return self

    def tick(self) -> None:
        """KServe writes what it wants of Knative, Knative works, KServe reads what came of it last time."""
        self.now += 1
        self._refused = self.refuses(self.predictor.get("model", {}).get("storageUri", ""))
        if self._refused:
            self._status = self._knative
            return
        targets = self._wanted_targets()
        self._status = self._knative
        self._propagate()
        template = (repr(sorted_deep(self.predictor)), repr(sorted(self.labels.items())))
        if self.race and self._template is not None and template != self._template:
            self.race = False
            self._work(targets)
            self._status = self._knative
            self._propagate()
            targets = self._wanted_targets()
        if template != self._template:
            self._template = template
            name = f"r{len(self.models) + 1}"
            self.models[name] = self.predictor.get("model", {}).get("storageUri", "")
            self.born[name] = self.now
        self._work(targets)

    def _wanted_targets(self) -> tuple[Target, ...]:
        if self.percent is None or not self.rolled_out:
            return (Target(100, latest=True, tag="latest"),)
        latest = Target(self.percent, latest=True, tag="latest")
        if self.percent == 100:
            return (latest,)
        return latest, Target(100 - self.percent, latest=False, revision=self.rolled_out, tag="prev")

    def is_ready(self, name: str) -> bool:
        return self.now >= self.born[name] + self.delay(self.models[name])

    def _work(self, targets: tuple[Target, ...]) -> None:
        created = f"r{len(self.models)}" if self.models else ""
        ready = next((name for name in reversed(self.models) if self.is_ready(name)), "")
        self._routed = targets
        rows = tuple(
            (ready if each.latest else each.revision, each.percent, each.latest, each.tag)
            for each in targets
            if ready or not each.latest
        )
        self._knative = Seen(created, ready, rows)

    def _propagate(self) -> None:
        seen = self._status
        for name, percent, latest, _ in seen.rows:
            if not latest or name != seen.ready:
                continue
            if self.rolled_out != seen.ready and percent == 100:
                self.previous, self.rolled_out = self.rolled_out, seen.ready
            elif (
                self.rolled_out == seen.ready == seen.created
                and percent < 100
                and sum(row[1] for row in seen.rows if row[0] == name) == 100
                and self.previous
            ):
                self.rolled_out = self.previous

    def traffic(self) -> dict[str, int]:
        """Percent of the requests that each revision gets right now."""
        shares: dict[str, int] = {}
        for name, percent, _, _ in self._knative.rows:
            shares[name] = shares.get(name, 0) + percent
        return {name: percent for name, percent in shares.items() if percent}


def merge(whole: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386, as the API server does it."""
    result = dict(whole)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merge(result[key] if isinstance(result.get(key), dict) else {}, value)
        else:
            result[key] = value
    return result


def sorted_deep(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, sorted_deep(inner)) for key, inner in sorted(value.items())]
    return value


def base(**options: Any) -> FakeKServe:
    """v1 is ready and has everything."""
    fake = FakeKServe(predictor={"minReplicas": 1, "model": {"storageUri": "v1", "runtime": "toy"}}, **options)
    return fake.settle()


def promoted(**options: Any) -> FakeKServe:
    """v2 was released over v1, and P is gone."""
    fake = base(**options).ask("v2", percent=10).settle()
    return fake.ask(percent=100).settle().ask(percent=None).settle()


def rejected(**options: Any) -> FakeKServe:
    """v2 was tried and taken back by P=0 alone."""
    return base(**options).ask("v2", percent=10).settle().ask(percent=0).settle()


__all__ = ["NEVER", "FakeKServe", "base", "merge", "promoted", "rejected"]
