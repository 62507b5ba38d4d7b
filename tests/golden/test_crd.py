"""The CRD says what the document's model says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serin.platforms.kserve.crd import definition

CRD = Path(__file__).parents[2] / "manifests/crd/modelrollouts.yaml"


def test_the_crd_is_made_from_the_model() -> None:
    assert yaml.safe_load(CRD.read_text(encoding="utf-8")) == definition(), (
        "run `python -m serin.platforms.kserve.crd > manifests/crd/modelrollouts.yaml`"
    )


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in (*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])):
        yield from nodes(inner)


def test_what_may_be_null_has_no_enum() -> None:
    """The API server refuses null where there is an enum, even one that names null. It refused every status."""
    (version,) = definition()["spec"]["versions"]
    nullable = [node for node in nodes(version["schema"]["openAPIV3Schema"]) if "nullable" in node]
    assert nullable
    assert [node for node in nullable if "enum" in node] == []
