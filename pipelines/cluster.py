"""`make cluster-run`: the compiled pipeline on a KFP backend, its releases on KServe, followed from here."""

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
import kfp_server_api
import urllib3
from kfp import client as kfp_client

from components import storage
from components.config import Store
from components.deploy.core import needed_store
from components.preprocess.sources import Source
from components.shell import IMAGE
from pipelines import COMPILED
from pipelines.execution import Execution, Tell
from pipelines.progress import Progress
from pipelines.run import CONFIG, RUNS, TRAFFIC, place_of, prepare, rate_of, story
from serin.cli import main as cli
from serin.errors import TryAgain, UserError
from serin.platforms.embedded.client import home_folder

NAME: Final = "train-and-release"
EXPERIMENT: Final = "serin"
POLL_S: Final = 2.0
TIMEOUT_S: Final = 10.0
STEPS: Final = ("preprocess", "train", "evaluate", "deploy")
LOOP: Final = "for-loop-1"
"""How KFP calls the loop over learners."""
LOGS: Final = "executor-logs"
"""What KFP keeps of a step's output: executor-logs-0, and one more for each time it was tried again."""
DONE: Final = ("SUCCEEDED", "SKIPPED")
FAILED: Final = ("FAILED", "CANCELED")
_IMAGE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._:/-]*(:[\w.-]+|@sha256:[0-9a-f]{64})")


def with_image(compiled: str, image: str) -> str:
    """The compiled pipeline with `image` for all its steps. KFP's cache keys on the image's name: a name that changes
    with the code is what keeps results of old code from being taken for new ones."""
    if not _IMAGE_NAME.fullmatch(image) or image.endswith(":latest"):
        raise UserError(
            f"IMAGE={image}: name the pipeline image with a tag that changes with its content, as `make images` does."
        )
    return compiled.replace(IMAGE, image)


class Kfp:
    """A KFP backend; what its steps read and leave lies in `store`."""

    def __init__(self, endpoint: str, image: str, store: Store, *, ui: str | None = None) -> None:
        """`ui`: URL of the dashboard where it is not that of the API."""
        self._package = with_image(COMPILED.read_text(encoding="utf-8"), image)
        self._store = store
        self._endpoint = endpoint.rstrip("/")
        self._ui = (ui or endpoint).rstrip("/")
        with _asking(self._endpoint):
            # the client would try five times, with a traceback each, before it says that nobody is there
            urllib3.request("GET", f"{self._endpoint}/apis/v2beta1/healthz", timeout=TIMEOUT_S, retries=False)
            self._client = kfp_client.Client(host=self._endpoint)

    def data(self, source: Source) -> str:
        """Copied into the store, under its digest: what a run learned from stays as it was."""
        folder, name = f"{storage.canonical(self._store.uri)}/data", f"{source.sha256[:16]}-{source.path.name}"
        if name not in storage.names(folder):
            storage.put(source.path, folder, name)
        return f"{folder}/{name}"

    @contextmanager
    def start(self, arguments: Mapping[str, Any], folder: Path, tell: Tell) -> Iterator[Execution]:
        """The run goes on when the block is left early."""
        package = folder / "pipeline.yaml"
        package.write_text(self._package, encoding="utf-8")
        (folder / "arguments.json").write_text(json.dumps(arguments, indent=1), encoding="utf-8")
        root = f"{self._store.uri.rstrip('/')}/runs"
        with _asking(self._endpoint):
            pipeline, version = self._upload(package)
            run = self._client.run_pipeline(
                self._client.create_experiment(EXPERIMENT).experiment_id,
                job_name=f"{NAME} {folder.parent.name} {folder.name}",
                params=dict(arguments),
                pipeline_id=pipeline,
                version_id=version,
                pipeline_root=root,
            )
        log = f"{self._ui}/#/runs/details/{run.run_id}"
        tell(f"run {log}")
        artifacts = storage.canonical(f"{root}/{NAME}/{run.run_id}")
        yield _KfpExecution(self._client, run.run_id, log, artifacts, folder, tell)

    def _upload(self, package: Path) -> tuple[str, str]:
        """Ids of the pipeline and of the version that is this very file."""
        version = hashlib.sha256(self._package.encode()).hexdigest()[:12]
        pipeline = self._client.get_pipeline_id(NAME)
        if pipeline is None:
            pipeline = self._client.upload_pipeline(str(package), NAME).pipeline_id
        wanted = {"operation": "EQUALS", "key": "display_name", "stringValue": version}
        found = self._client.list_pipeline_versions(pipeline, filter=json.dumps({"predicates": [wanted]}))
        if found.pipeline_versions:
            return pipeline, found.pipeline_versions[0].pipeline_version_id
        uploaded = self._client.upload_pipeline_version(str(package), version, pipeline_id=pipeline)
        return pipeline, uploaded.pipeline_version_id


class _KfpExecution:
    def __init__(
        self, client: kfp_client.Client, run_id: str, log: str, artifacts: str, folder: Path, tell: Tell
    ) -> None:
        self.progress = Progress()
        self.log = log
        self._client = client
        self._run_id = run_id
        self._artifacts = artifacts
        self._folder = folder / "artifacts"
        self._tell = tell
        self._state = "PENDING"
        self._looked_s = 0.0

    def running(self) -> bool:
        if time.monotonic() - self._looked_s < POLL_S:
            return True
        self._looked_s = time.monotonic()
        try:
            with _asking(self.log):
                run = self._client.get_run(self._run_id)
        except TryAgain as error:
            self._tell(str(error))
            return True
        tasks = (run.run_details.task_details if run.run_details else None) or ()
        for line in follow(self.progress, tasks, time.monotonic()):
            self._tell(line)
        self._state = run.state
        if run.state in FAILED:
            self._read_logs()
        return run.state not in (*DONE, *FAILED)

    def _read_logs(self) -> None:
        """A user's mistake is in the log of the step that it ended."""
        for name in storage.names(self._artifacts):
            if name.rpartition("/")[2].startswith(LOGS):
                log = self._folder / name
                log.parent.mkdir(parents=True, exist_ok=True)
                storage.get(self._artifacts, name, log)
                for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                    self.progress.feed(line, time.monotonic())

    @property
    def succeeded(self) -> bool:
        return self._state == "SUCCEEDED"

    def artifact(self, task: str, name: str) -> Path | None:
        found = [
            each
            for each in storage.names(self._artifacts)
            if each.split("/")[0] == task and each.split("/")[2:3] == [name]
        ]
        for each in found:
            file = self._folder / Path(*each.split("/")[:1], *each.split("/")[2:])
            file.parent.mkdir(parents=True, exist_ok=True)
            storage.get(self._artifacts, each, file)
        return self._folder / task / name if found else None


Task: TypeAlias = kfp_server_api.V2beta1PipelineTaskDetail


def follow(progress: Progress, tasks: Iterable[Task], now_s: float) -> Iterator[str]:
    """Bring `progress` up to date with what KFP says of a run's tasks; give the lines to tell.

    Runs of a loop appear one after another, so that train is over when its loop is. Tasks that are left out after a
    failure have no state.
    """
    states: dict[str, list[str]] = {step: [] for step in STEPS}
    for task in tasks:
        if task.state is None:
            continue
        if task.display_name in states:
            states[task.display_name].append(task.state)
        elif task.display_name == LOOP and task.state not in (*DONE, *FAILED):
            states["train"].append(task.state)
    for step, seen in states.items():
        if seen:
            done = sum(state in DONE for state in seen)
            failed = sum(state in FAILED for state in seen)
            running = len(seen) - done - failed
            told = progress.observe(step, running=running, done=done, failed=failed, now_s=now_s)
            if told:
                yield told


@contextmanager
def _asking(endpoint: str) -> Iterator[None]:
    """KFP's errors as serin's two kinds; its client's own lines are left out."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except kfp_server_api.ApiException as error:
        told = f"KFP at {endpoint} answers {error.status} {error.reason}"
        if error.status in (401, 403):
            raise UserError(f"{told}; ask its administrator for access.") from error
        raise TryAgain(told, delay_s=POLL_S) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TryAgain(
            f"KFP does not answer at {endpoint} ({type(error).__name__}); is the port-forward running?",
            delay_s=POLL_S,
        ) from error


@click.command()
@CONFIG
@TRAFFIC
@RUNS
@click.option("--platform", default="kserve", show_default=True, help="kserve or kserve:NAMESPACE.")
@click.option("--endpoint", envvar="KFP_ENDPOINT", help="URL of the KFP API.")
@click.option("--ui", envvar="KFP_UI_ENDPOINT", help="URL of the KFP dashboard, for links. Default: the API's.")
@click.option("--image", envvar="IMAGE", help="The pipeline image, as `make images` prints it.")
def command(
    config_path: Path,
    traffic: str | None,
    runs: Path,
    platform: str,
    endpoint: str | None,
    ui: str | None,
    image: str | None,
) -> None:
    """From a table to a promoted canary, on a cluster."""
    if not endpoint:
        raise UserError(
            "KFP_ENDPOINT is not set. Without an ingress: kubectl -n kubeflow port-forward svc/ml-pipeline "
            "8888:8888, and KFP_ENDPOINT=http://127.0.0.1:8888."
        )
    if not image:
        raise UserError("IMAGE is not set; set it to the pipeline image, as `make images` prints it.")
    if not platform.startswith("kserve"):
        raise UserError(f"PLATFORM={platform}: a pipeline on KFP can only release on kserve or kserve:NAMESPACE.")
    rate = rate_of(traffic, platform)
    config, source = prepare(config_path, os.environ)
    store = needed_store(config)
    if not storage.in_object_store(store.uri):
        raise UserError(f"Config: store: steps on KFP cannot read {store.uri}; use s3://, minio:// or gs://.")
    storage.check(store)
    place = place_of(platform, home_folder())
    report, code = story(config, source, place, Kfp(endpoint, image, store, ui=ui), runs=runs, rate=rate)
    click.echo(f"report    {report}")
    sys.exit(code)


def main() -> None:
    cli.guarded(command)


if __name__ == "__main__":
    main()
