"""The cluster's side of the Platform protocol, against an API server in memory in front of the fake KServe."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from serin import release
from serin.errors import TryAgain, UserError
from serin.kube import leader
from serin.kube.api import Conflict, Forbidden, NotFound
from serin.platforms import connect
from serin.platforms.kserve import objects
from serin.platforms.kserve.client import KServe, denied, idle
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec
from tests.unit.kserve_fake import FakeKServe, base, merge, promoted

NOW = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
LEASE = leader.path("serin-system", "serin-controller")
DENIED = (
    'modelrollouts.serin.dev is forbidden: User "system:serviceaccount:kubeflow:deployer" cannot create resource '
    '"modelrollouts" in API group "serin.dev" in the namespace "serving"'
)


class FakeApi:
    """Objects by path; `raises` is what every request meets."""

    def __init__(self, fake: FakeKServe | None = None) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.fake = fake
        self.raises: Exception | None = None

    def _meets(self) -> None:
        if self.raises is not None:
            raise self.raises

    def get(self, path: str) -> dict[str, Any] | None:
        self._meets()
        if path == objects.services("serving", "churn"):
            return self.fake.read() if self.fake else None
        return copy.deepcopy(self.objects.get(path))

    def list(self, path: str, labels: str = "") -> dict[str, Any]:
        self._meets()
        return {"items": [copy.deepcopy(each) for key, each in self.objects.items() if key.startswith(f"{path}/")]}

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._meets()
        path = f"{path}/{document['metadata']['name']}"
        if path in self.objects:
            raise Conflict("POST: exists", delay_s=0)
        metadata = {"creationTimestamp": (NOW + timedelta(seconds=len(self.objects))).isoformat()}
        self.objects[path] = {**document, "metadata": {**document["metadata"], **metadata}}
        return document

    def patch(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._meets()
        if path not in self.objects:
            raise NotFound("PATCH: not found")
        self.objects[path] = merge(self.objects[path], document)
        return self.objects[path]

    def end(self, name: str, **status: object) -> None:
        self.objects[objects.rollouts("serving", name)]["status"] = status


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(promoted())


@pytest.fixture
def cluster(api: FakeApi) -> KServe:
    return KServe("serving", api)  # type: ignore[arg-type]


def rollout(name: str, uri: str = "v3", **candidate: Any) -> ModelRollout:
    spec = Spec(service="churn", candidate=Candidate(storage_uri=uri, **candidate))
    return ModelRollout(metadata=Metadata(name=name), spec=spec)


# rollouts


def test_a_rollout_is_created_in_its_namespace_and_found_again(cluster: KServe) -> None:
    cluster.create(rollout("churn-1"))
    cluster.create(rollout("churn-0"))
    found = cluster.find("churn-1")
    assert found is not None and found.metadata.namespace == "serving" and found.spec == rollout("churn-1").spec
    assert [each.metadata.name for each in cluster.rollouts()] == ["churn-1", "churn-0"]
    assert cluster.find("churn-9") is None


def test_what_was_not_said_is_not_sent(cluster: KServe, api: FakeApi) -> None:
    """A runtime that is named is changed, and null is no value to the API server."""
    cluster.create(rollout("churn-1"))
    sent = api.objects[objects.rollouts("serving", "churn-1")]["spec"]
    assert sent == {"service": "churn", "candidate": {"storageUri": "v3"}}
    cluster.create(rollout("churn-2", runtime="serin-onnx", digest="sha256:1"))
    found = cluster.find("churn-2")
    assert found is not None and "runtime" in found.spec.candidate.model_fields_set


def test_a_name_that_is_taken_is_refused(cluster: KServe) -> None:
    cluster.create(rollout("churn-1"))
    with pytest.raises(UserError, match="A rollout named churn-1 exists"):
        cluster.create(rollout("churn-1"))


def test_switches_are_patched(cluster: KServe) -> None:
    cluster.create(rollout("churn-1"))
    cluster.patch_spec("churn-1", paused=True)
    found = cluster.find("churn-1")
    assert found is not None and found.spec.paused and found.spec.candidate.storage_uri == "v3"


def test_a_document_that_is_none_is_named(cluster: KServe, api: FakeApi) -> None:
    cluster.create(rollout("churn-1"))
    api.objects[objects.rollouts("serving", "churn-1")]["spec"]["speed"] = "high"
    with pytest.raises(UserError, match=r"spec.speed.*kubectl -n serving delete modelrollout churn-1"):
        cluster.rollouts()


# what serves


def test_the_champion_is_what_the_service_serves(cluster: KServe, api: FakeApi) -> None:
    champion = cluster.champion("churn")
    assert champion is not None and (champion.revision, champion.storage_uri) == ("r2", "v2")
    assert champion.digest is None
    cluster.create(rollout("churn-1", "v2", digest="sha256:two"))
    api.end("churn-1", phase="Promoted")
    cluster.create(rollout("churn-2", "v3", digest="sha256:three"))
    api.end("churn-2", phase="RolledBack")
    champion = cluster.champion("churn")
    assert champion is not None and champion.digest == "sha256:two"


def test_the_digest_is_that_of_the_newest_rollout_that_brought_the_model(cluster: KServe, api: FakeApi) -> None:
    for number, phase in enumerate(("Promoted", "Promoted", "RolledBack", "Failed")):
        cluster.create(rollout(f"churn-{number}", "v2", digest=f"sha256:{number}"))
        api.end(f"churn-{number}", phase=phase)
    champion = cluster.champion("churn")
    assert champion is not None and champion.digest == "sha256:1"


def test_what_an_ended_rollout_remembers_is_no_champion(cluster: KServe, api: FakeApi) -> None:
    cluster.create(rollout("churn-1"))
    platform = {
        "predictors": {"stable": {"model": {"storageUri": "v1"}}, "candidate": {"model": {"storageUri": "v2"}}}
    }
    api.end("churn-1", phase="Promoted", stableRevision="r1", candidateRevision="r2", platform=platform)
    champion = cluster.champion("churn")
    assert champion is not None and (champion.revision, champion.storage_uri) == ("r2", "v2")


def test_a_champion_in_a_store_is_not_taken_for_a_folder() -> None:
    cluster = KServe("serving", FakeApi(base().ask("s3://models/2").settle()))  # type: ignore[arg-type]
    champion = cluster.champion("churn")
    assert champion is not None
    with pytest.raises(UserError, match="s3://models/2, not on this machine"):
        _ = champion.model


def test_during_a_rollout_the_champion_is_stable_though_the_service_names_the_candidate(
    cluster: KServe, api: FakeApi
) -> None:
    cluster.create(rollout("churn-3"))
    assert api.fake is not None
    stable = {"model": {"storageUri": "v2"}}
    predictors = {"stable": stable, "candidate": {"model": {"storageUri": "v3"}}}
    platform = {"predictors": predictors, "measured": {"asAnotherVersionOfTheController": "wrote it"}}
    api.fake.ask("v3", percent=0).settle()
    api.end("churn-3", phase="Progressing", stableRevision="r2", platform=platform)
    champion = cluster.champion("churn")
    assert champion is not None and (champion.revision, champion.storage_uri) == ("r2", "v2")


def test_a_first_model_on_trial_is_no_champion(cluster: KServe, api: FakeApi) -> None:
    cluster.create(rollout("churn-1"))
    platform = {"predictors": {"stable": None, "candidate": {"model": {"storageUri": "v2"}}}}
    api.end("churn-1", phase="Checking", platform=platform)
    assert cluster.champion("churn") is None
    assert cluster.champion("other") is None


def test_a_change_nobody_here_asked_for_hides_what_serves(cluster: KServe, api: FakeApi) -> None:
    assert api.fake is not None
    api.fake.ask("v9", percent=10).settle()
    with pytest.raises(TryAgain, match=r"churn is changing \(created r3"):
        cluster.champion("churn")


def test_a_service_without_a_model_cannot_be_told(cluster: KServe, api: FakeApi) -> None:
    assert api.fake is not None
    del api.fake.predictor["model"]
    with pytest.raises(UserError, match="churn has no spec"):
        cluster.champion("churn")


def test_where_requests_go(cluster: KServe, api: FakeApi) -> None:
    assert cluster.address is None
    api.objects[objects.service("kourier-system", "kourier")] = {"spec": {"clusterIP": "10.96.0.7"}}
    assert cluster.address == "http://10.96.0.7"
    assert KServe("serving", api, gateway="http://127.0.0.1:8080/").address == "http://127.0.0.1:8080"  # type: ignore[arg-type]
    assert cluster.host("other") is None


# asking for a release


def test_a_release_attaches_to_the_one_under_way_and_to_the_one_that_serves(cluster: KServe, api: FakeApi) -> None:
    spec = Spec(service="churn", candidate=Candidate(storage_uri="v3", digest="sha256:3"))
    first = release.request(cluster, spec, "sha256:3")
    assert release.request(cluster, spec, "sha256:3").metadata.name == first.metadata.name
    api.end(first.metadata.name, phase="RolledBack")
    again = release.request(cluster, spec, "sha256:3")
    assert again.metadata.name == f"{first.metadata.name}-2"
    assert api.fake is not None
    api.fake.ask("v3").settle()
    api.end(again.metadata.name, phase="Promoted")
    assert release.request(cluster, spec, "sha256:3").metadata.name == again.metadata.name
    assert {each.status.phase for each in cluster.rollouts()} == {Phase.ROLLED_BACK, Phase.PROMOTED}


# the controller


def lease(holder: str = "pod_1", age_s: float = 2) -> dict[str, Any]:
    renewed = (NOW - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"spec": {"holderIdentity": holder, "renewTime": renewed}}


def test_a_controller_that_renews_its_lease_is_at_work() -> None:
    assert idle(lease(), NOW) is None
    assert idle(lease(age_s=-20), NOW) is None, "clocks differ"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "no controller"),
        (lease(holder=""), "no controller"),
        (lease(age_s=300), "pod_1 has been silent for 5 min"),
    ],
)
def test_a_missing_controller_is_said(found: dict[str, Any] | None, why: str) -> None:
    told = idle(found, NOW)
    assert told is not None and why in told and "`kubectl -n serin-system get pods`" in told


def test_who_may_not_look_at_the_lease_still_follows_rollouts(cluster: KServe, api: FakeApi) -> None:
    assert cluster.problem() is not None
    api.raises = Forbidden("GET /apis: leases is forbidden")
    assert cluster.problem() is None


# refusals


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            DENIED,
            "system:serviceaccount:kubeflow:deployer may not create modelrollouts in namespace serving; grant it "
            "with `kubectl -n serving create rolebinding serin-edit --clusterrole=serin-edit "
            "--serviceaccount=kubeflow:deployer`.",
        ),
        (
            'x: User "jane" cannot get resource "inferenceservices" in API group "serving.kserve.io" '
            'in the namespace "ml"',
            "jane may not get inferenceservices in namespace ml; grant it with "
            "`kubectl -n ml create rolebinding serin-view --clusterrole=serin-view --user=jane`.",
        ),
        (
            'x: User "jane" cannot watch resource "modelrollouts" in API group "serin.dev" in the namespace "ml"',
            "jane may not watch modelrollouts in namespace ml; grant it with "
            "`kubectl -n ml create rolebinding serin-view --clusterrole=serin-view --user=jane`.",
        ),
        (
            'x: User "jane" cannot get resource "services" in API group "" in the namespace "kourier-system"',
            "jane may not get services in namespace kourier-system; ask the cluster's administrator.",
        ),
        ("exceeded quota", "exceeded quota"),
    ],
)
def test_a_refusal_names_verb_resource_namespace_and_fix(message: str, told: str) -> None:
    assert denied(message) == told


def test_every_call_explains_a_refusal(cluster: KServe, api: FakeApi) -> None:
    api.raises = Forbidden(f"POST /apis: {DENIED}")
    for call in (
        cluster.rollouts,
        lambda: cluster.find("churn-1"),
        lambda: cluster.create(rollout("churn-1")),
        lambda: cluster.patch_spec("churn-1", abort=True),
        lambda: cluster.champion("churn"),
        lambda: cluster.address,
    ):
        with pytest.raises(UserError, match=r"may not create modelrollouts in namespace serving; grant it"):
            call()


def test_a_cluster_without_modelrollouts_is_told_how_to_get_them(cluster: KServe, api: FakeApi) -> None:
    api.raises = NotFound("GET /apis/serin.dev: 404 page not found")
    with pytest.raises(UserError, match="kubectl apply --server-side -k manifests/crd"):
        cluster.rollouts()


def test_an_api_server_that_is_away_passes(tmp_path, monkeypatch) -> None:
    (tmp_path / "config").write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\nusers: []\n"
        "clusters: [{name: x, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: x, context: {cluster: x, user: ''}}]\n"
    )
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(TryAgain, match="the API server does not answer"):
        connect("kserve:serving").rollouts()
