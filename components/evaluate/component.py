"""The pipeline step that chooses the challenger and compares it with the champion."""

from typing import List  # noqa: UP035  kfp reads this spelling only

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: str,
    champion: str,
    test_data: dsl.Input[dsl.Dataset],
    models: dsl.Input[List[dsl.Model]],  # noqa: UP006
    challenger: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
) -> str:
    """The verdict: promote, hold or reject. `champion`: the directory of the model that serves now, or empty.
    `challenger` is a copy of the chosen model's directory."""
    import shutil
    from pathlib import Path

    from components.config import Config
    from components.evaluate import core
    from components.shell import user_errors

    candidates = [Path(model.path) for model in models]
    with user_errors():
        result = core.evaluate(
            Config.model_validate_json(config),
            candidates,
            Path(champion) if champion else None,
            Path(test_data.path),
        )
    shutil.copytree(core.choose(candidates), challenger.path, dirs_exist_ok=True)
    Path(evaluation.path).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name, value in result.figures().items():
        metrics.log_metric(name, value)
    if result.challenger and result.challenger.curves.roc:
        roc.log_roc_curve(*map(list, zip(*result.challenger.curves.roc, strict=True)))
    return result.verdict.value
