"""The committed pipeline is the graph of the code."""

from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from components.shell import IMAGE
from pipelines import COMPILED
from pipelines.compile import compile_to
from serin.kube.api import ACCOUNT


def test_the_committed_file_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    compile_to(tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == COMPILED.read_text(), "run `make compile` and commit the file"


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline, and what it asks of Kubernetes."""
    pipeline, platform = yaml.safe_load_all(COMPILED.read_text())
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_the_file_is_a_valid_pipeline_spec() -> None:
    spec = json_format.ParseDict(documents()[0], PipelineSpec())
    assert spec.pipeline_info.name == "train-and-release"
    assert set(spec.root.dag.tasks) >= {"preprocess", "evaluate"}


def test_every_step_runs_in_our_image_and_installs_nothing() -> None:
    text = COMPILED.read_text()
    executors = documents()[0]["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {IMAGE}
    assert "pip install" not in text


def test_the_gate_is_the_one_plain_value_that_kfp_local_understands() -> None:
    tasks = documents()[0]["root"]["dag"]["tasks"]
    conditions = [task["triggerPolicy"]["condition"] for task in tasks.values() if "triggerPolicy" in task]
    assert conditions == ["inputs.parameter_values['pipelinechannel--evaluate-Output'] == 'promote'"]


def test_every_step_ends_some_time_and_is_bounded() -> None:
    pipeline, kubernetes = documents()
    executors = pipeline["deploymentSpec"]["executors"]
    assert executors.keys() == kubernetes.keys()
    for name, executor in executors.items():
        assert int(kubernetes[name]["activeDeadlineSeconds"]) > 0
        assert {"cpuLimit", "memoryLimit"} <= executor["container"]["resources"].keys()


def test_only_the_step_that_attaches_again_is_tried_again() -> None:
    pipeline, _ = documents()
    tasks = {name: task for part in dags(pipeline) for name, task in part["tasks"].items()}
    assert [name for name, task in tasks.items() if "retryPolicy" in task] == ["deploy"]


def test_what_looks_at_the_champion_or_releases_is_never_taken_from_a_cache() -> None:
    pipeline, _ = documents()
    tasks = {name: task for part in dags(pipeline) for name, task in part["tasks"].items()}
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"preprocess", "train"}


def test_only_the_deploy_step_has_the_token_that_may_ask_for_rollouts() -> None:
    _, kubernetes = documents()
    mounts = {name: settings.get("secretAsVolume", []) for name, settings in kubernetes.items()}
    assert [name for name, volumes in mounts.items() if volumes] == ["exec-deploy"]
    assert mounts["exec-deploy"][0]["mountPath"] == str(ACCOUNT)


def dags(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    return [pipeline["root"]["dag"], *(each["dag"] for each in pipeline["components"].values() if "dag" in each)]
