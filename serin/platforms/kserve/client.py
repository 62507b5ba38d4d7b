"""A cluster as commands and pipeline steps use it: ask for a rollout, look at it, steer it.

Everything goes through ModelRollouts; only the controller changes InferenceServices. Also the first model of a
service is a ModelRollout: the controller makes the InferenceService.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from serin.errors import TryAgain, UserError
from serin.kube import leader
from serin.kube.api import Api, Conflict, Forbidden, Json, NotFound, default_namespace
from serin.platforms.kserve import objects
from serin.platforms.kserve import service as inference_service
from serin.platforms.kserve.gateway import Where
from serin.platforms.ports import ALL, Champion, NameTaken, Which
from serin.rollout.document import ModelRollout, Phase
from serin.text import duration

CONTROLLER_NAMESPACE: Final = "serin-system"
STALE_S: Final = 60.0
"""A lease is renewed every few seconds; one this old belongs to nobody, whatever the clocks here and there say."""
REST_S: Final = 5.0
_DENIED: Final = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r'(?: in API group "[^"]*")?(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_GRANTED: Final = ("modelrollouts", "inferenceservices")
"""What the ClusterRoles serin-view and serin-edit (manifests/rbac/people.yaml) give."""


class KServe:
    """The ModelRollouts and InferenceServices of one namespace. `gateway` is the URL of Kourier from here; by default
    its address inside the cluster."""

    def __init__(self, namespace: str, api: Api, *, gateway: str | None = None) -> None:
        self.namespace = namespace
        self.api = api
        self._gateway = gateway

    @classmethod
    def connect(cls, namespace: str | None = None, context: str | None = None) -> "KServe":
        """To the cluster this runs in, else to that of the current kubeconfig, or of one of its contexts."""
        api = Api.connect(context)
        return cls(namespace or default_namespace(context), api, gateway=os.environ.get("SERIN_GATEWAY"))

    def __str__(self) -> str:
        return f"namespace {self.namespace}"

    @property
    def address(self) -> str | None:
        if self._gateway is not None:
            return self._gateway.rstrip("/")
        where = Where()
        with _explained():
            found = self.api.get(objects.service(where.namespace, where.service))
        return f"http://{found['spec']['clusterIP']}" if found is not None else None

    def host(self, service: str) -> str | None:
        found = self._service(service)
        url = found.get("status", {}).get("url") if found is not None else None
        return urlsplit(url).netloc if url is not None else None

    def champion(self, service: str) -> Champion | None:
        """Raises `TryAgain` while a change that no rollout asked for is under way: the service shows the new model
        then, not the one that serves."""
        document = self._service(service)
        if document is None:
            return None
        found = inference_service.read(document)
        ours = self.rollouts(Which(service=service))
        for each in ours:
            # only this of what the controller remembers: it may be of another version than this
            predictors = (each.status.platform or {}).get("predictors")
            if each.status.phase.terminal or predictors is None:
                continue
            if predictors["stable"] is None or each.status.stable_revision is None:
                return None
            return _champion(service, each.status.stable_revision, predictors["stable"], ours)
        if not found.rolled_out:
            return None
        if not found.settled:
            raise TryAgain(
                f"InferenceService {service} is changing (created {found.created}, ready {found.ready or 'none'}, "
                f"rolled out {found.rolled_out}), so the model being served is unknown.",
                delay_s=REST_S,
            )
        return _champion(service, found.rolled_out, found.predictor, ours)

    def rollouts(self, which: Which = ALL) -> list[ModelRollout]:
        with _explained():
            listed = self.api.list(objects.rollouts(self.namespace))
        found = [_read(each) for each in listed["items"]]
        return which.of(sorted(found, key=lambda each: (each.metadata.creation_timestamp, each.metadata.name)))

    def find(self, name: str) -> ModelRollout | None:
        with _explained():
            found = self.api.get(objects.rollouts(self.namespace, name))
        return _read(found) if found is not None else None

    def windows(self, name: str, *, last: int | None = None) -> list[dict[str, Any]]:
        """None: what the controller counts it keeps as sums, in the rollout's status."""
        return []

    def create(self, rollout: ModelRollout) -> None:
        """In this namespace, whatever the document says."""
        # what the author did not say is left to the API server's defaults: naming a runtime means changing it
        spec = rollout.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        document = {
            "apiVersion": rollout.api_version,
            "kind": rollout.kind,
            "metadata": {"name": rollout.metadata.name, "namespace": self.namespace},
            "spec": spec,
        }
        try:
            with _explained():
                self.api.create(objects.rollouts(self.namespace), document)
        except Conflict as error:
            raise NameTaken(rollout.metadata.name) from error

    def patch_spec(self, name: str, **changes: bool) -> None:
        with _explained():
            self.api.patch(objects.rollouts(self.namespace, name), {"spec": changes})

    def problem(self) -> str | None:
        """None also for those who may not look: a pipeline step needs no rights in the controller's namespace."""
        try:
            lease = self.api.get(leader.path(CONTROLLER_NAMESPACE, leader.LEASE))
        except Forbidden:
            return None
        return idle(lease, datetime.now(UTC))

    def _service(self, name: str) -> Json | None:
        with _explained():
            return self.api.get(objects.services(self.namespace, name))


def idle(lease: Json | None, now: datetime) -> str | None:
    """What the controller's lease says against one being at work; None when nothing."""
    spec = lease["spec"] if lease is not None else {}
    fix = f"check with `kubectl -n {CONTROLLER_NAMESPACE} get pods`"
    if not spec.get("holderIdentity"):
        return f"no controller is running; {fix}, or install it with `make install`"
    silent_s = (now - datetime.fromisoformat(spec["renewTime"])).total_seconds()
    if silent_s > STALE_S:
        return f"the controller {spec['holderIdentity']} has been silent for {duration(silent_s)}; {fix}"
    return None


def _champion(service: str, revision: str, predictor: Any, rollouts: list[ModelRollout]) -> Champion:  # noqa: ANN401 - JSON
    """`rollouts`: those of the service, oldest first."""
    uri = predictor.get("model", {}).get("storageUri")
    if uri is None:
        raise UserError(
            f"InferenceService {service} has no spec.predictor.model.storageUri, so the model being "
            "served is unknown; set it."
        )
    brought = [
        each.spec.candidate.digest
        for each in rollouts
        if each.status.phase is Phase.PROMOTED and each.spec.candidate.storage_uri == uri
    ]
    return Champion(revision, brought[-1] if brought else None, uri)


def _read(document: Json) -> ModelRollout:
    try:
        return objects.rollout(document)
    except UserError as error:
        where = document["metadata"]
        raise UserError(
            f"{error} Delete it with `kubectl -n {where['namespace']} delete modelrollout {where['name']}`."
        ) from error


@contextmanager
def _explained() -> Iterator[None]:
    """What the API server refuses, with the fix."""
    try:
        yield
    except NotFound as error:
        raise UserError(
            f"{error}; if ModelRollouts are unknown here, install them with "
            "`kubectl apply --server-side -k manifests/crd`."
        ) from error
    except Forbidden as error:
        raise UserError(denied(str(error))) from error


def denied(message: str) -> str:
    """The API server's refusal as one sentence that names verb, resource, namespace and the way to get the right."""
    found = _DENIED.search(message)
    if found is None:
        return message
    user, namespace, resource = found["user"], found["namespace"], found["resource"]
    told = f"{user} may not {found['verb']} {resource}" + (f" in namespace {namespace}" if namespace else "")
    if resource not in _GRANTED or namespace is None:
        return f"{told}; ask the cluster's administrator."
    role = "serin-view" if found["verb"] in ("get", "list", "watch") else "serin-edit"
    account = user.removeprefix("system:serviceaccount:")
    subject = f"--user={user}" if account == user else f"--serviceaccount={account}"
    return f"{told}; grant it with `kubectl -n {namespace} create rolebinding {role} --clusterrole={role} {subject}`."
