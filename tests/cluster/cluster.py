"""A cluster as the tests use it: kubectl, models on a volume, load from inside, and what was answered when."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

KUBECTL: Final = shutil.which("kubectl") or "kubectl"
SERVICE: Final = "churn"
SYSTEM: Final = "serin-system"
CLAIM: Final = "models"
TERMINAL: Final = frozenset({"Promoted", "RolledBack", "Failed"})
RATE: Final = 100
QUICK: Final = {
    "stages": [
        {"traffic": 5, "minSeconds": 10, "margin": 9},
        {"traffic": 25, "minSeconds": 10, "margin": 5},
        {"traffic": 50, "minSeconds": 10, "margin": 3},
    ],
    "bake": {"traffic": 99, "seconds": 10},
    "startSeconds": 90,
    "deadlineSeconds": 600,
    "onInconclusive": "rollback",
}
LENIENT: Final = {"latency": {"toleranceMs": 100}, "scores": {"expected": "different"}}
"""The machine of a test cluster is shared with everything else, so that its latency says little."""
NO_CHECKS: Final = {**QUICK, "checks": "none"}
STRICTER: Final = {**LENIENT, "latency": {"toleranceMs": 20}}


class Missing(Exception):
    """A wait was over before what it waited for came."""


def fault(what: str) -> dict[str, Any]:
    """Of a candidate: the predictor with a fault, see `predictor.drill`."""
    return {"runtime": "drill", "env": [{"name": "SERIN_FAULT", "value": what}]}


def kubectl(*arguments: str, given: str | bytes | None = None, check: bool = True) -> str:
    data = given.encode() if isinstance(given, str) else given
    done = subprocess.run([KUBECTL, *arguments], input=data, capture_output=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.decode()}")
    return done.stdout.decode() if not done.returncode else done.stderr.decode()


def wait(what: str, happened: Callable[[], Any], limit_s: float = 120, every_s: float = 0.5) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = happened()
        if value:
            return value
        time.sleep(every_s)
    raise Missing(f"{what}: not within {limit_s:.0f} s")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a load saw: (time, revision, status, count), revision "" and status 0 for no answer."""

    sent: int
    seen: tuple[tuple[float, str, int, int], ...]

    def by_revision(self, since: float = 0.0, until: float = float("inf")) -> Counter[tuple[str, int]]:
        counts: Counter[tuple[str, int]] = Counter()
        for at, revision, status, count in self.seen:
            if since <= at < until:
                counts[revision, status] += count
        return counts

    @property
    def revisions(self) -> set[str]:
        return {revision for _, revision, _, _ in self.seen}

    @property
    def failed(self) -> int:
        return self.sent - sum(count for _, _, status, count in self.seen if status == 200)

    def words(self) -> str:
        counts = sorted(self.by_revision().items())
        return ", ".join(f"{count:,} × {status} {revision}" for (revision, status), count in counts)


@dataclass(slots=True)
class Cluster:
    """`namespace` is the tests' own, and load comes from there too unless `clients` names another; `tell` keeps the
    transcript."""

    namespace: str
    records: Sequence[Mapping[str, Any]]
    tell: Callable[[str], None]
    service_name: str = SERVICE
    clients: str = ""
    loads: int = field(default=0)

    # objects

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
        text = kubectl("-n", namespace or self.namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text.strip() else {}

    def apply(self, document: Mapping[str, Any], namespace: str | None = None) -> None:
        kubectl("-n", namespace or self.namespace, "apply", "-f", "-", given=json.dumps(document))

    def service(self) -> dict[str, Any]:
        return self.get("inferenceservice", self.service_name)

    def rows(self) -> list[dict[str, Any]]:
        predictor = self.service().get("status", {}).get("components", {}).get("predictor", {})
        return list(predictor.get("traffic", []))

    def newest(self) -> str:
        """The revision that has everything once a rollout has ended; after a rollback stable's model, made anew."""
        (row,) = self.rows()
        return str(row["revisionName"])

    def serving(self) -> str:
        """The storage address of the model that is to get the traffic."""
        return str(self.service()["spec"]["predictor"]["model"]["storageUri"])

    def patch_service(self, predictor: Mapping[str, Any], *, check: bool = True) -> str:
        body = json.dumps({"spec": {"predictor": predictor}})
        return kubectl(
            "-n",
            self.namespace,
            "patch",
            "inferenceservice",
            self.service_name,
            "--type=merge",
            "-p",
            body,
            check=check,
        )

    # models

    def put_model(self, name: str, folder: Path) -> None:
        """Copy a model directory to the volume, through a pod that has it mounted."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(folder, arcname=name)
        unpack = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall('/models')"
        command = ["-n", self.namespace, "exec", "-i", "store", "--", "/venv/bin/python", "-c", unpack]
        kubectl(*command, given=buffer.getvalue())

    # rollouts

    def rollout(self, name: str, model: str, **changes: Any) -> None:
        """Ask for a release of `model`. `candidate` among the changes is added to the candidate."""
        candidate = {"storageUri": f"pvc://{CLAIM}/{model}", **changes.pop("candidate", {})}
        spec = {"service": self.service_name, "candidate": candidate, "plan": QUICK, "judge": LENIENT, **changes}
        self.apply(
            {
                "apiVersion": "serin.dev/v1alpha1",
                "kind": "ModelRollout",
                "metadata": {"name": name},
                "spec": spec,
            }
        )
        self.tell(f"$ kubectl apply: ModelRollout {name}, candidate {candidate}")

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.get("modelrollout", name).get("status", {}))

    def until(self, name: str, *phases: str, traffic: int | None = None, limit_s: float = 240) -> dict[str, Any]:
        """Wait for a phase (and for a share of traffic that KServe shows); tell what happens on the way."""
        told: object = None
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            status = self.status(name)
            if (key := (status.get("phase"), status.get("traffic"))) != told:
                self.tell(f"  {name}: {key[0]} at {key[1]} %: {status.get('reason', '')}")
                told = key
            if status.get("phase") in phases and (traffic is None or self.share(status) == traffic):
                return status
            if status.get("phase") in TERMINAL:
                break
            time.sleep(0.5)
        raise Missing(f"{name}: not {' or '.join(phases)}, but {status.get('phase')}: {status.get('reason')}")

    def share(self, status: Mapping[str, Any]) -> int:
        candidate = status.get("candidateRevision")
        return sum(row.get("percent", 0) for row in self.rows() if row["revisionName"] == candidate)

    def ended(self, name: str, limit_s: float = 420) -> dict[str, Any]:
        return self.until(name, *TERMINAL, limit_s=limit_s)

    # load

    @contextmanager
    def load(self, image: str, rate: int = RATE) -> Iterator[Callable[[], Answers]]:
        """Constant load from inside the cluster; the callable gives the answers once the block has ended."""
        self.loads += 1
        pod = f"load-{self.service_name}-{self.loads}"
        url = self.service()["status"]["url"]
        script = (Path(__file__).parent / "loader.py").read_text(encoding="utf-8")
        gateway = "http://kourier-internal.kourier-system.svc.cluster.local"
        host = str(url).split("//", 1)[1]
        arguments = [gateway, host, self.service_name, str(rate), json.dumps(self.records)]
        self.apply(pod_document(pod, image, ["/venv/bin/python", "-c", script, *arguments]), self._clients)
        found: list[Answers] = []
        try:
            wait(f"pod {pod} sends", lambda: self._lines(pod), 120)
            yield lambda: found[0]
        finally:
            stop = "open('/tmp/stop', 'w').close()"
            kubectl("-n", self._clients, "exec", pod, "--", "/venv/bin/python", "-c", stop, check=False)
            lines = wait(f"{pod} ends", lambda: self._ended(pod), 60)
            seen = tuple((line["at"], *answer) for line in lines for answer in line["answers"])
            found.append(Answers(lines[-1]["sent"], seen))
            kubectl("-n", self._clients, "delete", "pod", pod, "--wait=false")

    @property
    def _clients(self) -> str:
        return self.clients or self.namespace

    def _lines(self, pod: str) -> list[dict[str, Any]]:
        text = kubectl("-n", self._clients, "logs", pod, check=False)
        return [json.loads(line) for line in text.splitlines() if line.startswith('{"at"')]

    def _ended(self, pod: str) -> list[dict[str, Any]] | None:
        lines = self._lines(pod)
        return lines if lines and lines[-1].get("done") else None


def pod_document(name: str, image: str, command: Sequence[str], claim: str | None = None) -> dict[str, Any]:
    mounts = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    if claim:
        mounts.append({"name": "models", "mountPath": "/models"})
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": claim}})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "serin-cluster-test"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": list(command),
                    "volumeMounts": mounts,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": volumes,
        },
    }


def plugin(cluster: Cluster, *arguments: str, kubeconfig: Path | None = None) -> tuple[int, str]:
    """As a user types it: kubectl finds the plugin on the PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), str(Path(KUBECTL).parent), os.environ["PATH"]))
    extra = {"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}
    done = subprocess.run(
        [KUBECTL, "serin", *arguments, "-n", cluster.namespace],
        env={**os.environ, "PATH": path, **extra}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    cluster.tell(f"$ kubectl serin {' '.join(arguments)}")
    for line in (done.stdout + done.stderr).splitlines():
        cluster.tell(f"  {line}")
    return done.returncode, done.stdout + done.stderr
