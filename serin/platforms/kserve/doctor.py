"""`serin doctor`: does a cluster have what releases need, and if not, what is the fix.

`read` asks the API server; everything after it is a pure function of what was read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, Protocol
from urllib.parse import quote

from serin.errors import TryAgain, UserError
from serin.kube import leader
from serin.platforms.kserve import choreography, objects, service
from serin.platforms.kserve.client import CONTROLLER_NAMESPACE, denied, idle
from serin.platforms.kserve.crd import GROUP, PLURAL, VERSION
from serin.platforms.kserve.gateway import STATS_PORT, Where
from serin.rollout.document import Candidate, Phase

KUBERNETES: Final = (1, 33)
KNATIVE: Final = (1, 19)
KSERVE: Final = (0, 19)
"""The oldest versions that do."""
RUNTIME: Final = "serin-onnx"
KOURIER: Final = "kourier.ingress.networking.knative.dev"
CONTROLLER: Final = f"system:serviceaccount:{CONTROLLER_NAMESPACE}:serin-controller"
_KSERVE: Final = "serving.kserve.io"
PEOPLE_NEED: Final = (
    *((verb, GROUP, PLURAL) for verb in ("create", "patch")),
    *((verb, _KSERVE, "inferenceservices") for verb in ("get", "patch")),
)
CONTROLLER_NEEDS: Final = (
    *((verb, GROUP, PLURAL) for verb in ("get", "list", "watch", "patch")),
    ("update", GROUP, f"{PLURAL}/status"),
    *((verb, _KSERVE, "inferenceservices") for verb in ("get", "list", "watch", "patch")),
    *((verb, "", "pods") for verb in ("list", "watch")),
    ("get", "", "configmaps"),
    ("create", "", "events"),
)
"""In all namespaces. To create and delete InferenceServices it needs only for the first model of a service."""
_INSTALL: Final = "install it with `make cluster-up`"
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)")

Right = tuple[str, str, str]
"""Verb, API group, resource."""


class Verdict(StrEnum):
    OK = "ok"
    FIX = "fix"
    UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Finding:
    """`told` is what was found; for a `FIX`, one sentence with what to do."""

    verdict: Verdict
    what: str
    told: str


@dataclass(frozen=True, slots=True)
class Refused:
    """In the place of what may not be read: why."""

    why: str


Answer = Mapping[str, Any] | str | None | Refused
"""An object, a text, None for what is not there."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Answers by the names of `_paths`; the counters of each gateway pod; for each right, whether the asking user
    has it in the namespace, and whether the controller has it in all."""

    namespace: str
    answers: Mapping[str, Answer]
    stats: Mapping[str, Answer]
    yours: Mapping[Right, bool]
    controllers: Mapping[Right, bool] | Refused


class _Api(Protocol):
    def get(self, path: str) -> dict[str, Any] | None: ...

    def text(self, path: str) -> str | None: ...

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]: ...


def _paths(namespace: str) -> dict[str, str]:
    where = Where()
    return {
        "kubernetes": "/version",
        "kserve": "/apis/serving.kserve.io/v1beta1",
        "kserve manager": "/apis/apps/v1/namespaces/kserve/deployments/kserve-controller-manager",
        "kserve config": objects.config_map("kserve", "inferenceservice-config"),
        "knative": "/apis/serving.knative.dev/v1",
        "knative controller": "/apis/apps/v1/namespaces/knative-serving/deployments/controller",
        "network": objects.config_map("knative-serving", "config-network"),
        "gateways": f"{objects.pods(where.namespace)}?labelSelector={quote(where.pods)}",
        "modelrollouts": f"/apis/{GROUP}/{VERSION}",
        "guard": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/serin-guard",
        "runtime": f"/apis/serving.kserve.io/v1alpha1/clusterservingruntimes/{RUNTIME}",
        "controller": f"/apis/apps/v1/namespaces/{CONTROLLER_NAMESPACE}/deployments/serin-controller",
        "lease": leader.path(CONTROLLER_NAMESPACE, leader.LEASE),
        "namespace": f"/api/v1/namespaces/{namespace}",
        "accounts": f"/api/v1/namespaces/{namespace}/serviceaccounts",
        "storage classes": "/apis/storage.k8s.io/v1/storageclasses",
        "services": objects.services(namespace),
        "rollouts": objects.rollouts(namespace),
    }


def read(api: _Api, namespace: str) -> Reading:
    """Raises `TryAgain` when the API server does not answer."""
    answers = {name: _asked(api.get, path) for name, path in _paths(namespace).items()}
    pods = answers["gateways"]
    names = [pod["metadata"]["name"] for pod in pods["items"]] if isinstance(pods, Mapping) else []
    return Reading(
        namespace=namespace,
        answers=answers,
        stats={name: _counters(api, name) for name in names},
        yours={right: _may(api, namespace, right, "Self", {}) for right in PEOPLE_NEED},
        controllers=_controllers(api),
    )


def _asked(ask: Callable[[str], Answer], path: str) -> Answer:
    try:
        return ask(path)
    except UserError as error:
        return Refused(denied(str(error)))


def _counters(api: _Api, pod: str) -> Answer:
    """None when the pod cannot be reached."""
    try:
        return _asked(
            api.text, f"{objects.pods(Where().namespace)}/{pod}:{STATS_PORT}/proxy/stats/prometheus?usedonly"
        )
    except TryAgain:
        return None


def _controllers(api: _Api) -> Mapping[Right, bool] | Refused:
    try:
        return {right: _may(api, "", right, "", {"user": CONTROLLER}) for right in CONTROLLER_NEEDS}
    except UserError as error:
        return Refused(denied(str(error)))


def _may(api: _Api, namespace: str, right: Right, whose: str, who: dict[str, str]) -> bool:
    verb, group, name = right
    resource, _, subresource = name.partition("/")
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": f"{whose}SubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": namespace, **attributes}, **who},
    }
    answer = api.create(f"/apis/authorization.k8s.io/v1/{whose.lower()}subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def findings(reading: Reading, now: datetime) -> list[Finding]:
    found = reading.answers
    return [
        _kubernetes(found["kubernetes"]),
        _component("KServe", KSERVE, found["kserve"], found["kserve manager"]),
        _component("Knative Serving", KNATIVE, found["knative"], found["knative controller"]),
        _network(found["network"]),
        _ingress(found["kserve config"]),
        _gateways(found["gateways"]),
        *_counts(found["controller"], reading.stats),
        _there("ModelRollout", found["modelrollouts"], "kubectl apply --server-side -k manifests/crd"),
        _there("guard against changes by others", found["guard"], "kubectl apply -k manifests/guard"),
        _there(f"ClusterServingRuntime {RUNTIME}", found["runtime"], "kubectl apply -k manifests/runtime"),
        _controller(found["lease"], now),
        _controllers_rights(reading.controllers),
        _there(f"namespace {reading.namespace}", found["namespace"], f"kubectl create namespace {reading.namespace}"),
        _your_rights(reading.namespace, reading.yours),
        _storage(reading.namespace, found["accounts"], found["storage classes"]),
        *_services(found["services"], found["rollouts"]),
    ]


def _ok(what: str, told: str) -> Finding:
    return Finding(Verdict.OK, what, told)


def _fix(what: str, told: str) -> Finding:
    return Finding(Verdict.FIX, what, told)


def _unread(what: str, answer: Refused) -> Finding:
    return Finding(Verdict.UNKNOWN, what, answer.why)


def _there(what: str, answer: Answer, command: str) -> Finding:
    if isinstance(answer, Refused):
        return _unread(what, answer)
    return _ok(what, "exists") if answer is not None else _fix(what, f"is missing; create it with `{command}`.")


def version(text: str) -> tuple[int, int] | None:
    """Major and minor of the first version in a text. Knative's images and modules count 0.27 for 1.0, and so on."""
    found = _VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else None


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"


def _kubernetes(answer: Answer) -> Finding:
    if not isinstance(answer, Mapping):
        return _fix("Kubernetes", "no version at this address; check that it is an API server.")
    found = version(answer["gitVersion"])
    if found is not None and found < KUBERNETES:
        return _fix("Kubernetes", f"{answer['gitVersion']} is too old; upgrade it to {_dotted(KUBERNETES)} or later.")
    return _ok("Kubernetes", answer["gitVersion"])


def _component(what: str, oldest: tuple[int, int], kinds: Answer, deployment: Answer) -> Finding:
    if kinds is None:
        return _fix(what, f"is missing; {_INSTALL}.")
    if not isinstance(deployment, Mapping):
        return Finding(Verdict.UNKNOWN, what, "is installed; its version cannot be read")
    found = _version_of(deployment)
    if found is None:
        return Finding(Verdict.UNKNOWN, what, "is installed; neither label nor image gives its version")
    if found < oldest:
        return _fix(what, f"{_dotted(found)} is too old; upgrade it to {_dotted(oldest)} or later.")
    if not deployment.get("status", {}).get("readyReplicas"):
        name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
        return _fix(what, f"{_dotted(found)} is not ready; see `kubectl -n {namespace} describe deployment {name}`.")
    return _ok(what, _dotted(found))


def _version_of(deployment: Mapping[str, Any]) -> tuple[int, int] | None:
    label = version(deployment["metadata"].get("labels", {}).get("app.kubernetes.io/version", ""))
    if label is not None:
        return label
    image: str = deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    found = version(image.rsplit("/", 1)[-1].partition(":")[2])
    if found is not None and "knative" in image and found[0] == 0:
        return 1, found[1] - 27
    return found


def _network(answer: Answer) -> Finding:
    what = "Knative's gateway"
    if isinstance(answer, Refused):
        return _unread(what, answer)
    data = answer.get("data", {}) if isinstance(answer, Mapping) else {}
    chosen = data.get("ingress-class") or data.get("ingress.class") or "istio.ingress.networking.knative.dev"
    if chosen == KOURIER:
        return _ok(what, "Kourier")
    patch = f'{{"data":{{"ingress-class":"{KOURIER}"}}}}'
    return _fix(
        what,
        f"is {chosen}, but serin needs Kourier; change it with `kubectl -n knative-serving patch configmap "
        f"config-network --type merge -p '{patch}'`.",
    )


def _ingress(answer: Answer) -> Finding:
    what = "KServe beside Kourier"
    if isinstance(answer, Refused):
        return _unread(what, answer)
    text = answer.get("data", {}).get("ingress", "") if isinstance(answer, Mapping) else ""
    if re.search(r'"disableIstioVirtualHost"\s*:\s*true', text):
        return _ok(what, "Istio is disabled")
    return _fix(
        what,
        "KServe expects Istio; set disableIstioVirtualHost to true with `kubectl -n kserve edit configmap "
        "inferenceservice-config` and restart KServe's controller.",
    )


def _gateways(answer: Answer) -> Finding:
    what, where = "gateway", Where()
    if isinstance(answer, Refused):
        return _unread(what, answer)
    pods: Sequence[Mapping[str, Any]] = answer["items"] if isinstance(answer, Mapping) else []
    running = [pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") == "Running"]
    if not running:
        return _fix(what, f"no pod {where.pods} is running in {where.namespace}; {_INSTALL}.")
    return _ok(what, ", ".join(running))


def _counts(controller: Answer, stats: Mapping[str, Answer]) -> list[Finding]:
    """Counts come from the gateway's pods, or from the Prometheus the controller was started with."""
    gateway = [_stats(name, answer) for name, answer in stats.items()]
    if isinstance(controller, Refused):
        return [*gateway, _unread("source of counts", controller)]
    url = _prometheus(controller) if isinstance(controller, Mapping) else None
    if url is None:
        return gateway
    return [
        _ok(
            "source of counts",
            f"the controller queries Prometheus at {url}; if a rollout cannot be watched, it says why",
        )
    ]


def _prometheus(controller: Mapping[str, Any]) -> str | None:
    arguments: list[str] = controller["spec"]["template"]["spec"]["containers"][0].get("args", [])
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return next((url for name, url in pairwise(words) if name == "--prometheus"), None)


def _stats(pod: str, answer: Answer) -> Finding:
    what = "gateway counters"
    if isinstance(answer, str) and "envoy_cluster_upstream_rq{" in answer:
        return _ok(what, f"{pod} serves them on port {STATS_PORT}")
    if isinstance(answer, Refused):
        return _unread(what, answer)
    return _fix(
        what,
        f"{pod} does not serve request counts by status on port {STATS_PORT}; compare ConfigMap kourier-bootstrap "
        "with that of Kourier's release, and restart it: `kubectl -n kourier-system rollout restart deployment "
        "3scale-kourier-gateway`.",
    )


def _controller(answer: Answer, now: datetime) -> Finding:
    what = "serin's controller"
    if isinstance(answer, Refused):
        return _unread(what, answer)
    lease = dict(answer) if isinstance(answer, Mapping) else None
    problem = idle(lease, now)
    return (
        _fix(what, f"{problem}.")
        if problem
        else _ok(what, f"{lease['spec']['holderIdentity']} is the leader" if lease else "")
    )


def _lacking(rights: Mapping[Right, bool]) -> str:
    return ", ".join(f"{verb} {resource}" for (verb, _, resource), has in rights.items() if not has)


def _controllers_rights(rights: Mapping[Right, bool] | Refused) -> Finding:
    what = "the controller's permissions"
    if isinstance(rights, Refused):
        return _unread(what, rights)
    lacking = _lacking(rights)
    return (
        _fix(what, f"it may not {lacking}; `kubectl apply -k manifests/rbac`.")
        if lacking
        else _ok(what, "sufficient")
    )


def _your_rights(namespace: str, rights: Mapping[Right, bool]) -> Finding:
    lacking = _lacking(rights)
    if not lacking:
        return _ok("your permissions", "sufficient")
    return _fix(
        "your permissions",
        f"you may not {lacking}; ask an administrator to run `kubectl -n {namespace} create rolebinding serin-edit "
        "--clusterrole=serin-edit --user=YOU`.",
    )


def _storage(namespace: str, accounts: Answer, classes: Answer) -> Finding:
    what = "storage for models"
    if isinstance(accounts, Refused):
        return _unread(what, accounts)
    with_secrets = [each["metadata"]["name"] for each in _items(accounts) if each.get("secrets")]
    names = [each["metadata"]["name"] for each in _items(classes)]
    if with_secrets:
        return _ok(what, f"ServiceAccount {', '.join(with_secrets)} has Secrets for object stores")
    if names:
        return _ok(
            what, f"StorageClass {', '.join(names)} for pvc:// only; no ServiceAccount has Secrets for object stores"
        )
    return _fix(
        what,
        "there is neither a Secret for an object store nor a StorageClass; attach your store's Secret to a "
        "ServiceAccount: "
        f'`kubectl -n {namespace} patch serviceaccount default -p \'{{"secrets":[{{"name":"SECRET"}}]}}\'`.',
    )


def _items(answer: Answer) -> Sequence[Mapping[str, Any]]:
    return answer["items"] if isinstance(answer, Mapping) else []


def _services(answer: Answer, rollouts: Answer) -> list[Finding]:
    """Whether each InferenceService is one that a rollout could begin on."""
    if isinstance(answer, Refused):
        return [_unread("InferenceServices", answer)]
    under_way = {
        each["spec"]["service"]: each["metadata"]["name"]
        for each in _items(rollouts)
        if not Phase(each.get("status", {}).get("phase", Phase.PENDING)).terminal
    }
    return [_service(service.read(each), under_way.get(each["metadata"]["name"])) for each in _items(answer)]


def _service(seen: service.Service, rollout: str | None) -> Finding:
    what = f"InferenceService {seen.name}"
    if rollout is not None:
        return _ok(what, f"is being released by {rollout}")
    problem = choreography.refusal(seen, Candidate(storage_uri=""))
    if problem is not None:
        return _fix(what, problem.removeprefix(f"{what} "))
    if not seen.settled:
        return _fix(
            what,
            f"is still changing; see `kubectl get revisions -l serving.knative.dev/service={seen.name}-predictor`.",
        )
    return _ok(what, f"{seen.rolled_out} is serving")
