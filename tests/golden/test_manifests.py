"""What `kubectl apply -k` would send, and that every pod in it is as restricted as a pod can be."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "manifests"
RENDERED = ("overlays/single-node", "serving", "monitoring")
ALIKE = ("overlays/kind", "overlays/minikube")
"""Overlays that give what single-node gives."""
CRD = "modelrollouts.yaml"
"""Another test compares it."""
KUBECTL = os.environ.get("KUBECTL") or shutil.which("kubectl")
UPDATE = "write it anew: KUBECTL=kubectl python tests/golden/test_manifests.py"


def golden(name: str) -> Path:
    return GOLDEN / f"{Path(name).name}.yaml"


def inputs(folder: Path) -> Iterator[Path]:
    """Files that a kustomization is made of, but for the CustomResourceDefinition."""
    file = folder / "kustomization.yaml"
    yield file
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    generated = [each for generator in document.get("configMapGenerator", []) for each in generator["files"]]
    for each in (*document.get("resources", []), *document.get("components", []), *generated):
        path = (folder / each).resolve()
        if path.is_dir():
            yield from inputs(path)
        elif path.name != CRD:
            yield path


def digest(name: str) -> str:
    """Says without kubectl whether anything changed."""
    total = hashlib.sha256()
    for path in sorted(set(inputs(ROOT / "manifests" / name))):
        total.update(path.read_bytes())
    return f"# of manifests/{name}, {total.hexdigest()}\n"


def rendered(name: str) -> str:
    return digest(name) + yaml.safe_dump_all(documents(name), sort_keys=False, width=118)


def documents(name: str) -> list[Any]:
    assert KUBECTL is not None
    folder = ROOT / "manifests" / name
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True, timeout=60)
    return [each for each in yaml.safe_load_all(done.stdout) if each["kind"] != "CustomResourceDefinition"]


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_manifests_are_what_was_reviewed(name: str) -> None:
    kept = golden(name).read_text(encoding="utf-8")
    if KUBECTL:
        assert rendered(name) == kept, UPDATE
    else:
        assert kept.startswith(digest(name)), UPDATE


@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
@pytest.mark.parametrize("name", ALIKE)
def test_the_other_overlays_give_the_same(name: str) -> None:
    assert documents(name) == documents("overlays/single-node")


DOCUMENTS = [
    pytest.param(document, id=f"{Path(name).name} {document['kind']} {document['metadata']['name']}")
    for name in RENDERED
    if golden(name).exists()
    for document in yaml.safe_load_all(golden(name).read_text(encoding="utf-8"))
]


def of_kind(*kinds: str) -> list[Any]:
    return [each for each in DOCUMENTS if each.values[0]["kind"] in kinds]


PODS = [each for each in DOCUMENTS if "containers" in str(each.values[0].get("spec", {}))]


def pod(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def test_there_are_pods_to_look_at() -> None:
    assert {each.values[0]["kind"] for each in PODS} == {"Deployment", "ClusterServingRuntime"}


@pytest.mark.parametrize("document", PODS)
def test_pods_are_restricted_and_bounded(document: dict[str, Any]) -> None:
    spec = pod(document)
    for container in spec["containers"]:
        context = {**spec.get("securityContext", {}), **container["securityContext"]}
        assert context["runAsNonRoot"] is True
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert container["readinessProbe"]
        assert not container["image"].endswith(":latest")
        assert "command" not in container  # no shell: the image's own program
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("hostPath" not in volume for volume in spec.get("volumes", []))


@pytest.mark.parametrize("document", of_kind("Role", "ClusterRole"))
def test_no_rights_by_wildcard_or_to_secrets(document: dict[str, Any]) -> None:
    for rule in document["rules"]:
        assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        assert not {"secrets", "pods/exec"} & set(rule["resources"])


@pytest.mark.parametrize("document", of_kind("Namespace"))
def test_namespaces_enforce_it_and_deny_what_no_policy_allows(document: dict[str, Any]) -> None:
    name = document["metadata"]["name"]
    assert document["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = [
        each.values[0]["spec"] for each in of_kind("NetworkPolicy") if each.values[0]["metadata"]["namespace"] == name
    ]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in RENDERED:
        golden(each).write_text(rendered(each), encoding="utf-8")
