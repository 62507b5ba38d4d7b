"""Whole rollouts under 100 requests a second."""

import json

import pytest

from cluster import LENIENT, NO_CHECKS, QUICK, SERVICE, STRICTER, Cluster, fault

SHORT_START = {**QUICK, "startSeconds": 30}


def test_the_first_model_goes_live_without_a_baseline(released: Cluster) -> None:
    assert released.status("first")["phase"] == "Promoted"


def test_a_good_candidate_is_promoted_and_no_request_is_lost(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout("good", "v2")
        status = released.ended("good")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "Promoted"
    assert answers().failed == 0
    assert answers().revisions == {status["stableRevision"], status["candidateRevision"]}
    assert released.serving().endswith("/v2")


def test_a_failing_candidate_is_rolled_back_by_live_traffic(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout("errors", "v3", candidate=fault("errors"), plan=NO_CHECKS)
        status = released.ended("errors")
    released.tell(f"  {answers().words()}")
    counts = answers().by_revision()
    failed = sum(count for (_, code), count in counts.items() if code != 200)
    assert status["phase"] == "RolledBack"
    assert failed <= 60
    assert released.serving().endswith("/v2")


def test_recorded_requests_refuse_a_failing_candidate_at_0_percent(released: Cluster, controller_image: str) -> None:
    bodies = [{"instances": [record]} for record in released.records]
    released.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{SERVICE}-requests"},
            "data": {"requests.json": json.dumps(bodies)},
        }
    )
    with released.load(controller_image) as answers:
        released.rollout("refused", "v3", candidate=fault("errors"))
        status = released.ended("refused")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    assert answers().failed == 0
    assert answers().revisions <= {status["stableRevision"], released.newest()}


@pytest.mark.parametrize(
    ("name", "candidate"),
    [
        ("never-ready", fault("slowstart")),
        ("crash-looping", {"runtime": "crash"}),
        ("image-missing", {"runtime": "missing"}),
        ("runtime-unknown", {"runtime": "nowhere"}),
    ],
)
def test_a_candidate_that_does_not_start_gets_no_traffic(
    released: Cluster, controller_image: str, name: str, candidate: dict
) -> None:
    with released.load(controller_image) as answers:
        released.rollout(name, "v3", candidate=candidate, plan=SHORT_START)
        status = released.ended(name)
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    assert answers().failed == 0
    assert answers().revisions <= {status["stableRevision"], released.newest()}
    assert released.serving().endswith("/v2")


def test_a_declared_metric_is_counted_by_the_predictors_pods(released: Cluster, controller_image: str) -> None:
    calls = {"name": "calls", "weight": 0.5, "source": {"counter": "serin_score_sum"}}
    with released.load(controller_image) as answers:
        released.rollout(
            "calls",
            "v3",
            candidate=fault("scores"),
            plan=NO_CHECKS,
            judge={**LENIENT, "metrics": [calls], "require": ["calls"]},
        )
        status = released.ended("calls")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    assert status["reason"].startswith("The candidate is harmful: calls in ")
    assert answers().failed == 0


def test_slower_answers_are_found_by_the_predictors_own_histograms(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout(
            "slow",
            "v3",
            candidate=fault("latency"),
            plan=NO_CHECKS,
            judge=STRICTER,
        )
        status = released.ended("slow")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    assert "latency" in status["reason"]
    assert answers().failed == 0
