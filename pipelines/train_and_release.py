"""The graph: the same on this machine and on a KFP backend."""

from typing import List  # noqa: UP035 - KFP reads the element type of typing.List only

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask

from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.preprocess.component import preprocess
from components.train.component import train
from serin.kube.api import ACCOUNT

HOUR_S = 3600
STORE_SECRET = "serin-store"  # noqa: S105 - its name
DEPLOY_SECRET = "serin-deploy-token"  # noqa: S105 - its name
STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")


def _bounded(task: PipelineTask, *, hours: int, memory: str) -> None:
    """Without a deadline a step whose image cannot be had leaves its run running for ever."""
    kubernetes.set_timeout(task, hours * HOUR_S)
    task.set_cpu_request("100m").set_cpu_limit("2").set_memory_request("256Mi").set_memory_limit(memory)


def _with_store(task: PipelineTask) -> None:
    """The object store's address and credentials; a step that needs them and has none says so."""
    kubernetes.use_secret_as_env(task, STORE_SECRET, {key: key for key in STORE_KEYS}, optional=True)


@dsl.pipeline(
    name="train-and-release",
    description="Train candidate learners, compare the best with the champion, release it through a canary.",
)
def train_and_release(
    config: str,
    platform: str,
    data: str,
    data_source: str,
    data_sha256: str,
    learners: List[str],  # noqa: UP006
    champion: str = "",
    champion_digest: str = "",
) -> None:
    """`config`: a `components.config.Config` as JSON; `data`: path or address of the table; `data_sha256`: its
    digest, so that changed data is never taken from a cache; `champion`: path or address of the model that serves
    now, "" for none; `champion_digest`: "" where it is not known."""
    prepared = preprocess(
        config=config,
        data=data,
        data_source=data_source,
        data_sha256=data_sha256,
        champion=champion,
        champion_digest=champion_digest,
    )
    _bounded(prepared, hours=1, memory="4Gi")
    _with_store(prepared)
    with dsl.ParallelFor(learners, parallelism=2) as learner:
        trained = train(
            config=config,
            learner=learner,
            train_data=prepared.outputs["train_data"],
            test_data=prepared.outputs["test_data"],
        )
        _bounded(trained, hours=6, memory="4Gi")
    verdict = evaluate(
        config=config,
        summary=prepared.outputs["summary"],
        champion=champion,
        champion_digest=champion_digest,
        test_data=prepared.outputs["test_data"],
        models=dsl.Collected(trained.outputs["model"]),
    )
    verdict.set_caching_options(False)
    _bounded(verdict, hours=1, memory="4Gi")
    _with_store(verdict)
    # kfp.local skips conditions on other named outputs silently: a gate is one plain value, and it is called Output
    with dsl.If(verdict.outputs["Output"] == "promote", name="promote"):
        released = deploy(config=config, platform=platform, champion=champion, model=verdict.outputs["challenger"])
        released.set_caching_options(False)
        # safe, because it attaches to the rollout that it asked for
        released.set_retry(num_retries=2, backoff_duration="5s")
        _bounded(released, hours=48, memory="1Gi")
        _with_store(released)
        kubernetes.use_secret_as_volume(released, DEPLOY_SECRET, mount_path=str(ACCOUNT), optional=True)
