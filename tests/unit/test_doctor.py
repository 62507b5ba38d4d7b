"""Findings about a cluster, from what was read; and the reading, from an API server in memory."""

import copy
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from serin.errors import TryAgain
from serin.kube.api import Forbidden
from serin.platforms.kserve import objects
from serin.platforms.kserve.doctor import (
    CONTROLLER_NEEDS,
    PEOPLE_NEED,
    Finding,
    Reading,
    Refused,
    Verdict,
    findings,
    read,
    version,
)
from tests.unit.kserve_fake import base

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
POD = "3scale-kourier-gateway-1"


def deployment(image: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "it", "namespace": "there", "labels": labels},
        "spec": {"template": {"spec": {"containers": [{"image": image}]}}},
        "status": {"readyReplicas": 1},
    }


ANSWERS: dict[str, Any] = {
    "kubernetes": {"gitVersion": "v1.34.4"},
    "kserve": {"resources": []},
    "kserve manager": deployment("kserve/kserve-controller:v0.20.0"),
    "kserve config": {"data": {"ingress": '{\n "disableIstioVirtualHost": true\n}'}},
    "knative": {"resources": []},
    "knative controller": deployment("gcr.io/knative@sha256:77ab", **{"app.kubernetes.io/version": "1.21.1"}),
    "network": {"data": {"ingress-class": "kourier.ingress.networking.knative.dev"}},
    "gateways": {"items": [{"metadata": {"name": POD}, "status": {"phase": "Running"}}]},
    "modelrollouts": {"resources": []},
    "guard": {},
    "runtime": {},
    "controller": deployment("serin/controller:1"),
    "lease": {"spec": {"holderIdentity": "serin-1", "renewTime": "2026-11-23T09:29:58.000000Z"}},
    "namespace": {},
    "accounts": {"items": [{"metadata": {"name": "default"}, "secrets": [{"name": "s3"}]}]},
    "storage classes": {"items": []},
    "services": {"items": []},
    "rollouts": {"items": []},
}
STATS = 'envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="xds_cluster"} 1\n'


def reading(**changes: Any) -> Reading:
    healthy = Reading(
        namespace="serving",
        answers=copy.deepcopy(ANSWERS),
        stats={POD: STATS},
        yours=dict.fromkeys(PEOPLE_NEED, True),
        controllers=dict.fromkeys(CONTROLLER_NEEDS, True),
    )
    return dataclasses.replace(healthy, **changes)


def with_answer(name: str, answer: Any) -> Reading:
    return reading(answers={**ANSWERS, name: answer})


def worst(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.verdict is not Verdict.OK]


def service(**spec: Any) -> dict[str, Any]:
    document = base().read()
    document["spec"]["predictor"].update(spec)
    return document


def test_a_cluster_that_has_everything() -> None:
    found = findings(reading(answers={**ANSWERS, "services": {"items": [service()]}}), NOW)
    assert worst(found) == []
    assert found[-1] == Finding(Verdict.OK, "InferenceService churn", "r1 is serving")


MISSING = {
    "kubernetes": ({"gitVersion": "v1.32.9"}, "Kubernetes", "v1.32.9 is too old; upgrade it to 1.33"),
    "kserve": (None, "KServe", "make cluster-up"),
    "kserve manager": (
        deployment("kserve/kserve-controller:v0.15.2"),
        "KServe",
        "0.15 is too old; upgrade it to 0.19",
    ),
    "knative": (None, "Knative Serving", "make cluster-up"),
    "knative controller": (deployment("dev.local/knative/controller:v0.45.0"), "Knative", "1.18 is too old"),
    "network": ({"data": {}}, "Knative's gateway", "is istio.ingress.networking.knative.dev"),
    "kserve config": (
        {"data": {"ingress": '{"disableIstioVirtualHost": false}'}},
        "KServe beside",
        "KServe expects Istio",
    ),
    "gateways": ({"items": []}, "gateway", "no pod app=3scale-kourier-gateway is running in kourier-system"),
    "modelrollouts": (None, "ModelRollout", "create it with `kubectl apply --server-side -k manifests/crd`"),
    "guard": (None, "guard", "kubectl apply -k manifests/guard"),
    "runtime": (None, "ClusterServingRuntime", "kubectl apply -k manifests/runtime"),
    "lease": (None, "serin's controller", "no controller is running"),
    "namespace": (None, "namespace serving", "kubectl create namespace serving"),
    "accounts": ({"items": [{"metadata": {"name": "default"}}]}, "storage", "patch serviceaccount default"),
    "services": ({"items": [service(minReplicas=0)]}, "InferenceService churn", "has minReplicas 0"),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named_with_its_fix(name: str) -> None:
    answer, what, told = MISSING[name]
    found = worst(findings(with_answer(name, answer), NOW))
    assert [each.verdict for each in found] == [Verdict.FIX]
    assert found[0].what.startswith(what) and told in found[0].told and found[0].told.endswith(".")


@pytest.mark.parametrize(
    "name", sorted(ANSWERS.keys() - {"kubernetes", "kserve", "knative", "storage classes", "rollouts"})
)
def test_what_may_not_be_read_is_no_failure(name: str) -> None:
    found = worst(findings(with_answer(name, Refused("jane may not")), NOW))
    assert [each.verdict for each in found] == [Verdict.UNKNOWN]


@pytest.mark.parametrize("arguments", [["--prometheus=http://there:9090"], ["--prometheus", "http://there:9090"]])
def test_counts_from_prometheus_are_not_looked_for_at_the_gateway(arguments: list[str]) -> None:
    controller = deployment("serin/controller:1")
    controller["spec"]["template"]["spec"]["containers"][0]["args"] = ["--host=0.0.0.0", *arguments]
    found = findings(reading(stats={POD: None}, answers={**ANSWERS, "controller": controller}), NOW)
    assert worst(found) == []
    assert any("queries Prometheus at http://there:9090;" in each.told for each in found)
    assert worst(findings(reading(stats={POD: None}), NOW))[0].what == "gateway counters"


def test_a_deployment_that_is_not_ready() -> None:
    broken = deployment("kserve/kserve-controller:v0.20.0") | {"status": {}}
    (found,) = worst(findings(with_answer("kserve manager", broken), NOW))
    assert "0.20 is not ready; see `kubectl -n there describe deployment it`" in found.told


def test_the_oldest_versions_will_do() -> None:
    oldest = {
        "kubernetes": {"gitVersion": "v1.33.0"},
        "kserve manager": deployment("kserve/kserve-controller:v0.19.0"),
    }
    assert worst(findings(reading(answers={**ANSWERS, **oldest}), NOW)) == []


def test_a_gateway_that_does_not_count() -> None:
    for stats in ("# no counters\n", None):
        (found,) = worst(findings(reading(stats={POD: stats}), NOW))
        assert POD in found.told and "rollout restart" in found.told


def test_rights_that_are_lacking() -> None:
    yours = {right: right[0] != "create" for right in PEOPLE_NEED}
    (found,) = worst(findings(reading(yours=yours), NOW))
    assert (
        "you may not create modelrollouts; ask an administrator to run `kubectl -n serving create rolebinding"
        in found.told
    )
    (found,) = worst(findings(reading(controllers=dict.fromkeys(CONTROLLER_NEEDS, False)), NOW))
    assert "kubectl apply -k manifests/rbac" in found.told


def test_a_service_under_release_is_well() -> None:
    rollout = {"metadata": {"name": "churn-2"}, "spec": {"service": "churn"}, "status": {"phase": "Progressing"}}
    canary = {"items": [service(canaryTrafficPercent=10)]}
    under_way = {**ANSWERS, "services": canary, "rollouts": {"items": [rollout]}}
    found = findings(reading(answers=under_way), NOW)
    assert worst(found) == [] and found[-1].told == "is being released by churn-2"
    (foreign,) = worst(findings(with_answer("services", canary), NOW))
    assert "another canary is in progress" in foreign.told


def test_a_storage_class_will_do() -> None:
    answers = {**ANSWERS, "accounts": {"items": []}, "storage classes": {"items": [{"metadata": {"name": "fast"}}]}}
    assert worst(findings(reading(answers=answers), NOW)) == []


def test_versions() -> None:
    assert version("v1.34.4+k3s1") == (1, 34) and version("devel") is None


class FakeApi:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reviews: list[dict[str, Any]] = []

    def get(self, path: str) -> dict[str, Any] | None:
        self.asked.append(path)
        if path.startswith(objects.pods("kourier-system")):
            return copy.deepcopy(ANSWERS["gateways"])
        if path.endswith("/storageclasses"):
            raise Forbidden('x: User "jane" cannot list resource "storageclasses" in API group "storage.k8s.io"')
        return None

    def text(self, path: str) -> str | None:
        raise TryAgain("no answer from the pod", delay_s=1)

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        if document["kind"] == "SubjectAccessReview":
            raise Forbidden('x: User "jane" cannot create resource "subjectaccessreviews"')
        self.reviews.append(document)
        return {"status": {"allowed": document["spec"]["resourceAttributes"]["verb"] != "patch"}}


def test_reading_goes_on_where_something_is_refused_or_silent() -> None:
    api = FakeApi()
    found = read(api, "serving")
    assert found.stats == {POD: None}
    assert isinstance(found.answers["storage classes"], Refused) and isinstance(found.controllers, Refused)
    assert [right[0] for right, allowed in found.yours.items() if not allowed] == ["patch", "patch"]
    assert {each["spec"]["resourceAttributes"]["namespace"] for each in api.reviews} == {"serving"}
    assert sum(each.verdict is Verdict.FIX for each in findings(found, NOW)) > 5


def test_an_api_server_that_is_away_ends_it() -> None:
    class Away(FakeApi):
        def get(self, path: str) -> dict[str, Any] | None:
            raise TryAgain("the API server does not answer", delay_s=1)

    with pytest.raises(TryAgain):
        read(Away(), "serving")


def test_the_rights_it_asks_for_are_those_of_the_manifest() -> None:
    documents = yaml.safe_load_all((ROOT / "manifests/rbac/controller.yaml").read_text(encoding="utf-8"))
    rules = next(each["rules"] for each in documents if each["kind"] == "ClusterRole")
    given = {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    first_models = {(verb, "serving.kserve.io", "inferenceservices") for verb in ("create", "delete")}
    assert set(CONTROLLER_NEEDS) == given - first_models
