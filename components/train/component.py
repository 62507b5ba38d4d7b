"""The pipeline step that trains one learner."""

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    config: str,
    learner: str,
    train_data: dsl.Input[dsl.Dataset],
    test_data: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> None:
    """`config`: the config as JSON. `learner`: one of its training.learners."""
    from pathlib import Path
    from typing import cast

    from components.shell import quick_imports, user_errors

    with quick_imports():
        from components.config import Config, Learner
        from components.train import core

    with user_errors():
        result = core.train(
            Config.model_validate_json(config),
            cast(Learner, learner),
            train=Path(train_data.path),
            test=Path(test_data.path),
            out=Path(model.path),
        )
    model.metadata.update(learner=learner, digest=result.digest)
    metrics.log_metric("log_loss", result.record.log_loss)
    metrics.log_metric("auc", result.record.auc)
    metrics.log_metric("cost", result.record.cost)
    metrics.log_metric("trials", result.record.trials)
    metrics.log_metric("seconds", result.seconds)
