"""An InferenceService as it is read: the few fields a canary depends on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from serin.errors import UserError

PERCENT: Final = "canaryTrafficPercent"
TAG_ROUTING: Final = "serving.kserve.io/enable-tag-routing"
AUTO_UPDATE: Final = "serving.kserve.io/disable-auto-update"
DEPLOYMENT_MODE: Final = "serving.kserve.io/deploymentMode"
KNATIVE_MODES: Final = ("Knative", "Serverless")
REQUESTS: Final = "requests.json"
MAX_REQUESTS: Final = 200
_FAILED: Final = "BlockedByFailedLoad"
_INVALID: Final = "InvalidSpec"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `status.components.predictor.traffic`; `tag` is "latest", "prev" or empty."""

    revision: str
    percent: int
    tag: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """`predictor` is `spec.predictor` without `canaryTrafficPercent`, which is `percent` (None: not set).

    `created`, `ready`, `rolled_out` and `previous` are KServe's latestCreated, latestReady, latestRolledout and
    previousRolledoutRevision, empty when not set. `failure` is what KServe says about a model that does not load,
    `failed_revision` the revision it says that of. `refused` is why KServe does nothing about the spec as it is, such
    as a runtime that is not there: no revision is made of it.
    """

    name: str
    resource_version: str
    predictor: Mapping[str, Any]
    percent: int | None = None
    uid: str = ""
    created: str = ""
    ready: str = ""
    rolled_out: str = ""
    previous: str = ""
    rows: tuple[Row, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    mode: str = ""
    components: frozenset[str] = frozenset()
    failure: str | None = None
    failed_revision: str = ""
    refused: str | None = None

    def share(self, revision: str) -> int:
        """Percent of traffic of a revision; two rows may name the same one."""
        return sum(row.percent for row in self.rows if row.revision == revision)

    @property
    def settled(self) -> bool:
        """One revision has everything, and nothing is under way."""
        return (
            self.created != ""
            and self.created == self.ready == self.rolled_out
            and self.percent in (None, 100)
            and self.share(self.created) == 100
        )

    def address(self, tag: str) -> str | None:
        """The URL of a tagged row. It answers at 0 % traffic too."""
        return next((row.url for row in self.rows if row.tag == tag and row.url), None)


def read(document: Mapping[str, Any]) -> Service:
    """From the InferenceService as the API server gives it."""
    spec, status = document["spec"], document.get("status", {})
    predictor = dict(spec["predictor"])
    percent = predictor.pop(PERCENT, None)
    annotations = document["metadata"].get("annotations", {})
    seen = status.get("components", {}).get("predictor", {})
    model = status.get("modelStatus", {})
    transition, said = model.get("transitionStatus"), model.get("lastFailureInfo", {})
    failed = said if transition == _FAILED else {}
    return Service(
        name=document["metadata"]["name"],
        resource_version=document["metadata"]["resourceVersion"],
        predictor=predictor,
        percent=percent,
        uid=document["metadata"].get("uid", ""),
        created=seen.get("latestCreatedRevision", ""),
        ready=seen.get("latestReadyRevision", ""),
        rolled_out=seen.get("latestRolledoutRevision", ""),
        previous=seen.get("previousRolledoutRevision", ""),
        rows=tuple(
            Row(row["revisionName"], row.get("percent", 0), row.get("tag", ""), row.get("url", ""))
            for row in seen.get("traffic", [])
        ),
        annotations=annotations,
        mode=status.get("deploymentMode") or annotations.get(DEPLOYMENT_MODE, ""),
        components=frozenset(spec) & {"transformer", "explainer", "canary"},
        failure=failed.get("message") or failed.get("reason"),
        failed_revision=failed.get("modelRevisionName", ""),
        refused=(said.get("message") or said.get("reason") or _INVALID) if transition == _INVALID else None,
    )


def kept(document: dict[str, Any]) -> dict[str, Any]:
    """Of an InferenceService, what `read` needs."""
    metadata, status = document["metadata"], document.get("status", {})
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "annotations")
    components = status.get("components", {})
    return {
        "metadata": {name: metadata[name] for name in names if name in metadata},
        "spec": document["spec"],
        "status": {name: status[name] for name in ("deploymentMode", "modelStatus") if name in status}
        | {"components": {name: components[name] for name in ("predictor",) if name in components}},
    }


def requests(config_map: Mapping[str, Any]) -> list[object]:
    """Recorded requests for checks at 0 % traffic, from the ConfigMap `<service>-requests`: bodies of the V1
    protocol, a JSON list under the key `requests.json`. Raises `UserError` when it is something else."""
    name = config_map["metadata"]["name"]
    try:
        bodies = json.loads(config_map.get("data", {}).get(REQUESTS, "[]"))
    except ValueError as error:
        raise UserError(
            f"ConfigMap {name}: {REQUESTS} is not JSON ({error}); write a list of request bodies."
        ) from error
    if not isinstance(bodies, list):
        raise UserError(f"ConfigMap {name}: {REQUESTS} is not a list; write a list of request bodies.")
    return bodies[:MAX_REQUESTS]
