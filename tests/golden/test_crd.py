"""The CRD says what the document's model says."""

from pathlib import Path

import yaml

from serin.platforms.kserve.crd import definition

CRD = Path(__file__).parents[2] / "manifests/crd/modelrollouts.yaml"


def test_the_crd_is_made_from_the_model() -> None:
    assert yaml.safe_load(CRD.read_text(encoding="utf-8")) == definition(), (
        "run `python -m serin.platforms.kserve.crd > manifests/crd/modelrollouts.yaml`"
    )
