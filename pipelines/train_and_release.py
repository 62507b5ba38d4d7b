"""The graph: the same on this machine and on a KFP backend."""

from typing import List  # noqa: UP035 - KFP reads the element type of typing.List only

from kfp import dsl

from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.preprocess.component import preprocess
from components.train.component import train


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
    champion: str,
    learners: List[str],  # noqa: UP006
) -> None:
    """`config`: a `components.config.Config` as JSON; `data`: path or address of the table; `data_sha256`: its
    digest, so that changed data is never taken from a cache; `champion`: folder of the model that serves now, ""
    for none."""
    prepared = preprocess(
        config=config, data=data, data_source=data_source, data_sha256=data_sha256, champion=champion
    )
    with dsl.ParallelFor(learners, parallelism=2) as learner:
        trained = train(
            config=config,
            learner=learner,
            train_data=prepared.outputs["train_data"],
            test_data=prepared.outputs["test_data"],
        )
    verdict = evaluate(
        config=config,
        champion=champion,
        test_data=prepared.outputs["test_data"],
        models=dsl.Collected(trained.outputs["model"]),
    )
    verdict.set_caching_options(False)
    # kfp.local skips conditions on other named outputs silently: a gate is one plain value, and it is called Output
    with dsl.If(verdict.outputs["Output"] == "promote", name="promote"):
        deploy(config=config, platform=platform, model=verdict.outputs["challenger"]).set_caching_options(False)
