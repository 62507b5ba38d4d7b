"""What KServe does on its own with canaries (names as in docs/cluster.md), and what a rollout makes of it.

A test of `alone` that fails after an upgrade means that KServe has changed, and that its trap is gone or another.
"""

import time
from collections import Counter
from collections.abc import Callable

import pytest

from cluster import CLAIM, QUICK, Cluster, kubectl, wait

SETTLE_S = 6.0
SLOW = {"runtime": "drill", "env": [{"name": "SERIN_FAULT", "value": "slowstart"}]}
FAST = {**QUICK, "stages": [{"traffic": 20, "minSeconds": 5, "margin": 9}], "bake": {"traffic": 99, "seconds": 5}}


class Alone:
    """An InferenceService that nobody releases; the nth change of its spec makes the nth revision."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = Cluster(cluster.namespace, cluster.records, cluster.tell, service_name=name)
        self.name = name
        model = {"modelFormat": {"name": "serin-onnx"}, "runtime": "serin-onnx", "storageUri": f"pvc://{CLAIM}/v1"}
        self.cluster.apply(
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {
                    "name": name,
                    "annotations": {
                        "serving.kserve.io/enable-tag-routing": "true",
                        "serving.kserve.io/deploymentMode": "Knative",
                    },
                },
                "spec": {"predictor": {"minReplicas": 1, "model": model}},
            }
        )
        self.ready(1)

    def ready(self, number: int) -> None:
        revision = self.revision(number)

        def reached() -> bool:
            seen = self.cluster.service().get("status", {}).get("components", {}).get("predictor", {})
            return revision == seen.get("latestReadyRevision") == seen.get("latestCreatedRevision")

        wait(f"{revision} is ready", reached, 150)
        time.sleep(3)

    def revision(self, number: int) -> str:
        return f"{self.name}-predictor-{number:05d}"

    def patch(self, storage: str | None = None, **predictor: object) -> None:
        change = {"model": {"storageUri": f"pvc://{CLAIM}/{storage}"}} if storage else {}
        self.cluster.patch_service({**change, **predictor})

    def percent(self, percent: int | None) -> None:
        self.patch(canaryTrafficPercent=percent)
        time.sleep(SETTLE_S)

    def promoted(self, model: str, number: int) -> None:
        self.patch(model, canaryTrafficPercent=0)
        self.ready(number)
        self.percent(100)


def b(alone: Alone) -> str:
    alone.promoted("v2", 2)
    alone.percent(None)
    alone.percent(10)
    return "10 % set on a promoted service: the model before gets 90 %"


def c(alone: Alone) -> str:
    alone.patch("v2", canaryTrafficPercent=10)
    alone.ready(2)
    alone.percent(0)
    alone.patch(model={"storageUri": f"pvc://{CLAIM}/v3", **SLOW}, canaryTrafficPercent=20)
    time.sleep(SETTLE_S)
    return "the next canary at 20 % after a rollback by 0, while it starts: its share to the rejected model"


def d(alone: Alone) -> str:
    alone.patch("v2", canaryTrafficPercent=10)
    alone.ready(2)
    alone.percent(0)
    alone.percent(None)
    return "percent removed after a rollback by 0: all to the rejected model"


def f(alone: Alone) -> str:
    alone.patch("v2", canaryTrafficPercent=10)
    alone.ready(2)
    alone.patch(model={"storageUri": f"pvc://{CLAIM}/v1", **SLOW}, canaryTrafficPercent=None)
    time.sleep(SETTLE_S)
    return "the old manifest, with a model that starts slowly, applied in a canary: all to the candidate"


def x(alone: Alone) -> str:
    alone.patch("v2", canaryTrafficPercent=20)
    alone.ready(2)
    kubectl("-n", alone.cluster.namespace, "label", "inferenceservice", alone.name, "team=blue")
    alone.ready(3)
    return "a label in the middle of a canary: a third revision has the candidate's share"


def k2(alone: Alone) -> str:
    alone.promoted("v2", 2)
    alone.promoted("v3", 3)
    alone.percent(0)
    return "0 % after 100 %: one step back works"


def l(alone: Alone) -> str:  # noqa: E743 - its name
    alone.promoted("v2", 2)
    alone.patch("v1", canaryTrafficPercent=0)
    alone.ready(3)
    return "stable's model and 0 % right after 100 %: all stay with the bad model, also when stable's is ready"


TRAPS = [(b, 1, 90), (c, 2, 20), (d, 2, 100), (f, 2, 100), (k2, 2, 100), (l, 2, 100), (x, 3, 20)]


@pytest.mark.parametrize(("trap", "revision", "percent"), TRAPS, ids=[trap.__name__ for trap, *_ in TRAPS])
def test_kserve_alone(
    released: Cluster, controller_image: str, trap: Callable[[Alone], str], revision: int, percent: int
) -> None:
    """Each gives `percent` of the answers to a revision that nobody meant to have them."""
    alone = Alone(released, f"alone-{trap.__name__}")
    try:
        what = trap(alone)
        with alone.cluster.load(controller_image, 50) as answers:
            time.sleep(5)
        released.tell(f"  {what}: {answers().words()}")
        counts: Counter[str] = Counter()
        for (answered, _), count in answers().by_revision().items():
            counts[answered] += count
        assert counts[alone.revision(revision)] / counts.total() == pytest.approx(percent / 100, abs=0.1)
    finally:
        kubectl("-n", released.namespace, "delete", "inferenceservice", alone.name, "--wait=false")


def test_after_a_rollback_the_next_start_cannot_bring_the_rejected_model_back(
    released: Cluster, controller_image: str
) -> None:
    """C and D: the field is gone, and while the next candidate comes up nothing points to the rejected one."""
    with released.load(controller_image) as answers:
        released.rollout("rejected", "v8", plan=FAST)
        status = released.until("rejected", "Progressing", traffic=20)
        rejected = status["candidateRevision"]
        kubectl("-n", released.namespace, "patch", "mro", "rejected", "--type=merge", "-p", '{"spec":{"abort":true}}')
        released.ended("rejected")
        back_at = time.time() + 2
        assert "canaryTrafficPercent" not in released.service()["spec"]["predictor"]
        released.rollout("next", "v9", plan=FAST)
        assert released.ended("next")["phase"] == "Promoted"
    released.tell(f"  {answers().words()}")
    assert answers().failed == 0
    assert rejected not in {revision for revision, _ in answers().by_revision(since=back_at)}


def test_an_abort_after_all_traffic_has_moved_brings_the_old_model_back(
    released: Cluster, controller_image: str
) -> None:
    """K2 and L: from 100 % the way back begins with 0, and stable's model becomes a revision of its own."""
    before = released.serving()
    with released.load(controller_image) as answers:
        released.rollout("late", "v4", plan=FAST)
        wait("all traffic has moved", lambda: released.status("late").get("traffic") == 100, 240, every_s=0.1)
        kubectl("-n", released.namespace, "patch", "mro", "late", "--type=merge", "-p", '{"spec":{"abort":true}}')
        status = released.ended("late")
    released.tell(f"  {answers().words()}")
    assert answers().failed == 0
    assert status["phase"] in ("RolledBack", "Promoted")  # promoted when it was over before the abort came
    assert (released.serving() == before) == (status["phase"] == "RolledBack")
