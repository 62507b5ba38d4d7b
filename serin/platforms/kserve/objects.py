"""Where objects live at the API server, and how a ModelRollout looks there."""

from datetime import datetime
from typing import Any, Final

from serin.platforms.kserve.crd import GROUP, PLURAL, VERSION
from serin.rollout.document import ModelRollout, Phase, Status, parse

FINALIZER: Final = f"{GROUP}/traffic"
"""Keeps a deleted ModelRollout until its traffic is back with stable."""


def rollouts(namespace: str | None = None, name: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{GROUP}/{VERSION}{where}/{PLURAL}" + (f"/{name}" if name else "")


def services(namespace: str | None = None, name: str = "") -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/serving.kserve.io/v1beta1{where}/inferenceservices" + (f"/{name}" if name else "")


def pods(namespace: str | None = None) -> str:
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/api/v1{where}/pods"


def config_map(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{name}"


def service(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/services/{name}"


def events(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/events"


def rollout(document: dict[str, Any]) -> ModelRollout:
    """Raises `UserError` when the spec cannot be. A deleted one is to end: it is read as aborted."""
    metadata = document["metadata"]
    spec = dict(document["spec"])
    if "deletionTimestamp" in metadata:
        spec["abort"] = True
    return _parsed(metadata, spec, document.get("status", {}))


def going_back(document: dict[str, Any], why: str, now: datetime) -> ModelRollout:
    """A rollout under way that cannot be read, for `why`, on its way back: what that takes every version keeps."""
    before = document["status"]
    kept = {name: before[name] for name in ("stage", "stableRevision", "candidateRevision", "startedAt")
            if name in before}  # fmt: skip
    reason = f"stopped: this version of serin cannot read the rollout ({why})"
    began = {"phase": Phase.ROLLING_BACK, "stage": kept.get("stage"), "traffic": 0, "reason": reason}
    status = {
        **kept,
        **began,
        "enteredAt": now,
        "platform": {"predictors": (before.get("platform") or {}).get("predictors")},
        "history": [{"at": now, **began}],
    }
    spec = {"service": document["spec"]["service"], "candidate": {"storageUri": ""}}
    return _parsed(document["metadata"], spec, status)


def _parsed(metadata: dict[str, Any], spec: dict[str, Any], status: dict[str, Any]) -> ModelRollout:
    known = {name: metadata[name] for name in ("name", "namespace", "creationTimestamp")}
    return parse({"metadata": known, "spec": spec, "status": status})


def with_status(document: dict[str, Any], status: Status, now: datetime) -> dict[str, Any]:
    """The document to store, with conditions for `kubectl wait`."""
    before = {each["type"]: each for each in document.get("status", {}).get("conditions", [])}
    written = status.model_dump(mode="json", by_alias=True)
    written["log10E"] = round(status.log10_e, 2)  # for people: the judge's own state has every digit
    written["observedGeneration"] = document["metadata"].get("generation", 0)
    written["conditions"] = [
        _condition(before.get("Complete"), "Complete", status, now, holds=status.phase.terminal),
        _condition(before.get("Promoted"), "Promoted", status, now, holds=status.phase is Phase.PROMOTED),
    ]
    return {**document, "status": written}


def _condition(
    before: dict[str, Any] | None, kind: str, status: Status, now: datetime, *, holds: bool
) -> dict[str, Any]:
    value = str(holds)
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    if before is not None and before["status"] == value:
        since = before["lastTransitionTime"]
    return {
        "type": kind,
        "status": value,
        "reason": str(status.phase),
        "message": status.reason,
        "lastTransitionTime": since,
    }
