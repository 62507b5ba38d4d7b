"""The pipeline step that chooses the challenger and compares it with the champion."""

from typing import List  # noqa: UP035  kfp reads this spelling only

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    config: str,
    champion: str,
    champion_digest: str,
    summary: dsl.Input[dsl.Artifact],
    test_data: dsl.Input[dsl.Dataset],
    models: dsl.Input[List[dsl.Model]],  # noqa: UP006
    challenger: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    data: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    roc: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    card: dsl.Output[dsl.Markdown],
) -> str:
    """The verdict: promote, hold or reject. `champion`: the address of the model that serves now, or empty; its
    digest, unless empty, is checked. `challenger` is a copy of the chosen model's directory, `card` its model card.
    `data` is a copy of preprocess' `summary`: a preprocess that came from a cache leaves nothing in its run."""
    import shutil
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from components.shell import quick_imports, user_errors

    with quick_imports():
        from components import storage
        from components.config import Config
        from components.evaluate import core
        from components.report import evaluation_html
        from serin.model import CARD_FILE

    candidates = [Path(model.path) for model in models]
    settings = Config.model_validate_json(config)
    with user_errors(), TemporaryDirectory() as scratch:
        serving = storage.champion(champion, champion_digest, Path(scratch), settings.store)
        result = core.evaluate(settings, candidates, serving, Path(test_data.path))
    chosen = core.choose(candidates)
    shutil.copytree(chosen, challenger.path, dirs_exist_ok=True)
    shutil.copyfile(chosen / CARD_FILE, card.path)
    shutil.copyfile(summary.path, data.path)
    Path(evaluation.path).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    Path(report.path).write_text(evaluation_html(result.model_dump(mode="json")), encoding="utf-8")
    for name, value in result.figures().items():
        metrics.log_metric(name, value)
    if result.challenger and result.challenger.curves.roc:
        roc.log_roc_curve(*map(list, zip(*result.challenger.curves.roc, strict=True)))
    return result.verdict.value
