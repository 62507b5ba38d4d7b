"""`make cluster-run`: what is submitted, and how a run is read."""

import pytest
import yaml
from click.testing import CliRunner
from kfp_server_api import V2beta1PipelineTaskDetail

from components.shell import IMAGE
from pipelines import COMPILED
from pipelines.cluster import command, follow, with_image
from pipelines.progress import Progress
from serin.errors import UserError

FIRST, SECOND = "dev.local/serin/pipeline:1111", "registry.example:5000/serin/pipeline@sha256:" + "2" * 64


def images(text: str) -> set[str]:
    pipeline, _ = yaml.safe_load_all(text)
    return {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}


def test_the_image_is_part_of_every_step_so_that_changed_code_misses_the_cache() -> None:
    compiled = COMPILED.read_text(encoding="utf-8")
    first, second = with_image(compiled, FIRST), with_image(compiled, SECOND)
    assert (images(first), images(second)) == ({FIRST}, {SECOND})
    assert first.replace(FIRST, IMAGE) == second.replace(SECOND, IMAGE) == compiled


@pytest.mark.parametrize("image", ["serin/pipeline", "serin/pipeline:latest", "Serin:1", "a: b:1", "host:5000/name"])
def test_an_image_without_a_name_of_its_own_content_is_refused(image: str) -> None:
    with pytest.raises(UserError, match="IMAGE="):
        with_image("", image)


def task(name: str, state: str | None) -> V2beta1PipelineTaskDetail:
    return V2beta1PipelineTaskDetail(display_name=name, state=state)


def test_a_run_is_told_step_by_step() -> None:
    progress = Progress()
    looks = [
        [task("root", "RUNNING"), task("preprocess-driver", "RUNNING")],
        [task("preprocess", "RUNNING"), task("executor", "PENDING")],
        [task("preprocess", "SUCCEEDED"), task("for-loop-1", "RUNNING"), task("train", "RUNNING")],
        [task("preprocess", "SUCCEEDED"), task("for-loop-1", "RUNNING"), task("train", "SUCCEEDED")],
        [
            task("preprocess", "SUCCEEDED"),
            task("for-loop-1", "FAILED"),
            task("train", "FAILED"),
            task("evaluate", None),
        ],
    ]
    told = [list(follow(progress, tasks, float(second))) for second, tasks in enumerate(looks)]
    assert told == [[], ["preprocess …"], ["preprocess done in 1 s", "train …"], [], ["train failed in 2 s"]]


@pytest.mark.parametrize(
    ("environment", "named"),
    [({}, "KFP_ENDPOINT"), ({"KFP_ENDPOINT": "http://127.0.0.1:9"}, "IMAGE")],
)
def test_what_is_not_given_is_named(environment: dict[str, str], named: str) -> None:
    missing = {"KFP_ENDPOINT": None, "IMAGE": None}
    done = CliRunner(env={**missing, **environment}).invoke(command, [])
    assert isinstance(done.exception, UserError)
    assert named in str(done.exception)
