"""Everything that may fail around a rollout."""

import shlex
import shutil
import subprocess
import time
from os import environ

from cluster import QUICK, SERVICE, SYSTEM, Answers, Cluster, kubectl, wait

LONG = {**QUICK, "stages": [{"traffic": 20, "minSeconds": 600, "margin": 3}]}
ONE_STAGE = {**QUICK, "stages": [{"traffic": 20, "minSeconds": 8, "margin": 9}]}
FORTY_SECONDS = {**QUICK, "stages": [{"traffic": 20, "minSeconds": 40, "margin": 9}]}
CONTROLLER = "-m serin[.]controller"
PHASES = {"Dark", "Checking", "Waiting", "Progressing", "Baking"}


def signal_process(*arguments: str) -> None:
    """SIGNAL_PROCESS is the command that sends signals to the node's processes, such as `docker exec NODE pkill`."""
    command = shlex.split(environ.get("SIGNAL_PROCESS", shutil.which("pkill") or "pkill"))
    subprocess.run([*command, *arguments], check=True)


def stable_alone(released: Cluster, before: str) -> None:
    """The traffic is with the model that had it before, and nothing points elsewhere."""
    assert released.serving() == before
    assert "canaryTrafficPercent" not in released.service()["spec"]["predictor"]
    assert [row["percent"] for row in released.rows()] == [100]


def all_answered(answers: Answers) -> None:
    assert answers.failed == 0, answers.words()


def at_20(released: Cluster, name: str) -> None:
    released.until(name, "Progressing", traffic=20)
    time.sleep(3)


def kill_controller(released: Cluster, phase: str) -> None:
    signal_process("-KILL", "-f", "--", CONTROLLER)
    # Kubernetes would wait longer before each restart of the same pod
    kubectl("-n", SYSTEM, "delete", "pod", "-l", "app.kubernetes.io/name=serin-controller", "--wait=false")
    released.tell(f"  controller killed in {phase}")


def switch(released: Cluster, rollout: str, what: str) -> None:
    kubectl("-n", released.namespace, "patch", "mro", rollout, "--type=merge", "-p", f'{{"spec":{{"{what}":true}}}}')


def test_a_controller_killed_in_every_phase_forward(released: Cluster, controller_image: str) -> None:
    left = set(PHASES)
    with released.load(controller_image) as answers:
        released.rollout("killed", "v4", plan=ONE_STAGE, approval="beforeTraffic")
        while (phase := released.until("killed", *left, "Promoted")["phase"]) != "Promoted":
            left.remove(phase)
            kill_controller(released, phase)
            if phase == "Waiting":
                switch(released, "killed", "approved")
    released.tell(f"  {answers().words()}")
    assert left <= {"Checking"}  # it may be over before it is seen
    all_answered(answers())


def test_a_controller_killed_on_the_way_back(released: Cluster, controller_image: str) -> None:
    before = released.serving()
    with released.load(controller_image) as answers:
        released.rollout("killed-back", "v5", plan=LONG)
        at_20(released, "killed-back")
        switch(released, "killed-back", "abort")
        released.until("killed-back", "RollingBack")
        kill_controller(released, "RollingBack")
        status = released.ended("killed-back")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "RolledBack"
    all_answered(answers())
    stable_alone(released, before)


def test_the_gateway_restarts_during_a_stage(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout("gateway", "v5", plan=FORTY_SECONDS)
        at_20(released, "gateway")
        kubectl("-n", "kourier-system", "rollout", "restart", "deployment/3scale-kourier-gateway")
        kubectl("-n", "kourier-system", "rollout", "status", "deployment/3scale-kourier-gateway", "--timeout=180s")
        released.tell("  gateway restarted")
        status = released.ended("gateway")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "Promoted"
    # requests on their way through a gateway's only pod may end with it; every answer is a good one
    assert {code for _, code in answers().by_revision()} <= {200, 0}


def test_kserves_webhook_is_down_when_traffic_has_to_move(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout("webhook", "v6", plan=ONE_STAGE)
        at_20(released, "webhook")
        kubectl("-n", "kserve", "scale", "deployment/kserve-controller-manager", "--replicas=0")
        try:
            released.tell("  KServe's controller and webhook stopped")
            time.sleep(45)
        finally:
            kubectl("-n", "kserve", "scale", "deployment/kserve-controller-manager", "--replicas=1")
        released.tell("  KServe started again")
        status = released.ended("webhook")
    released.tell(f"  {answers().words()}")
    assert status["phase"] == "Promoted"
    all_answered(answers())


def test_the_api_server_does_not_answer_for_a_minute(released: Cluster, controller_image: str) -> None:
    with released.load(controller_image) as answers:
        released.rollout("api-server", "v7", plan=FORTY_SECONDS)
        at_20(released, "api-server")
        signal_process("-STOP", "-x", "kube-apiserver")
        try:
            released.tell("  API server stopped")
            time.sleep(60)
        finally:
            signal_process("-CONT", "-x", "kube-apiserver")
        released.tell("  API server goes on")
        wait("the API server answers", lambda: "ok" in kubectl("get", "--raw", "/readyz", check=False), 120)
        status = released.ended("api-server")
    released.tell(f"  {answers().words()}")
    assert status["phase"] in ("Promoted", "RolledBack")
    all_answered(answers())


def test_somebody_changes_the_service_in_the_middle(released: Cluster, controller_image: str) -> None:
    before = released.serving()
    with released.load(controller_image) as answers:
        released.rollout("foreign", "v8", plan=LONG)
        at_20(released, "foreign")
        told = released.patch_service({"model": {"storageUri": "pvc://models/v1"}}, check=False)
        released.tell(f"  kubectl patch: {told.strip()}")
        label = kubectl("-n", released.namespace, "label", "inferenceservice", SERVICE, "team=blue", check=False)
        released.tell(f"  kubectl label: {label.strip()}")
        switch(released, "foreign", "abort")
        status = released.ended("foreign")
    released.tell(f"  {answers().words()}")
    assert "denied" in told
    assert "denied" in label
    assert status["phase"] == "RolledBack"
    all_answered(answers())
    stable_alone(released, before)


def test_a_second_rollout_waits_for_its_turn(released: Cluster) -> None:
    released.rollout("one", "v8", plan=LONG)
    at_20(released, "one")
    released.rollout("two", "v9", plan=ONE_STAGE)
    waiting = wait("the second one tells", lambda: released.status("two").get("reason"))
    released.tell(f"  two: {waiting}")
    kubectl("-n", released.namespace, "delete", "mro", "one", "two", "--timeout=120s")


def test_a_rollout_deleted_on_its_way_gives_the_traffic_back(released: Cluster, controller_image: str) -> None:
    before = released.serving()
    with released.load(controller_image) as answers:
        released.rollout("deleted", "v8", plan=LONG)
        at_20(released, "deleted")
        kubectl("-n", released.namespace, "delete", "mro", "deleted", "--timeout=120s")
        released.tell("  deleted")
        stable_alone(released, before)
    released.tell(f"  {answers().words()}")
    all_answered(answers())


def test_a_service_that_scales_to_zero_is_refused_and_left_alone(released: Cluster) -> None:
    released.patch_service({"minReplicas": 0})
    wait("the service is settled", lambda: [row["percent"] for row in released.rows()] == [100], 120)
    before = released.service()["spec"]
    released.rollout("refused-spec", "v9")
    status = released.ended("refused-spec", 120)
    assert status["phase"] == "Failed"
    assert released.service()["spec"] == before
    released.patch_service({"minReplicas": 1})
