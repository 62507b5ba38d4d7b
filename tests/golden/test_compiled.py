"""The committed pipeline is the graph of the code."""

from pathlib import Path

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.shell import IMAGE
from pipelines import COMPILED
from pipelines.compile import compile_to


def test_the_committed_file_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    compile_to(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == COMPILED.read_text(), "run `make compile` and commit the file"


def test_the_file_is_a_valid_pipeline_spec() -> None:
    spec = json_format.ParseDict(yaml.safe_load(COMPILED.read_text()), PipelineSpec())
    assert spec.pipeline_info.name == "train-and-release"
    assert set(spec.root.dag.tasks) >= {"preprocess", "evaluate"}


def test_every_step_runs_in_our_image_and_installs_nothing() -> None:
    text = COMPILED.read_text()
    executors = yaml.safe_load(text)["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {IMAGE}
    assert "pip install" not in text


def test_the_gate_is_the_one_plain_value_that_kfp_local_understands() -> None:
    tasks = yaml.safe_load(COMPILED.read_text())["root"]["dag"]["tasks"]
    conditions = [task["triggerPolicy"]["condition"] for task in tasks.values() if "triggerPolicy" in task]
    assert conditions == ["inputs.parameter_values['pipelinechannel--evaluate-Output'] == 'promote'"]
