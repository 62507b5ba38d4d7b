"""From documents to pages."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.config import Config
from components.evaluate.evaluation import Evaluation
from components.preprocess.core import Summary
from components.report import evaluation as evaluations
from components.report import run
from serin.report.page import environment
from serin.report.story import tell as tell_rollout
from serin.rollout.document import ModelRollout


def run_html(
    config: Config,
    *,
    result: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
    rollout: ModelRollout | None,
    windows: Sequence[Mapping[str, Any]],
) -> str:
    """The page of a whole run. `result`: its result.json; `data`: the summary preprocess left; `evaluation`: the
    document evaluate left, None or empty if it left none; `windows`: the rollout's timeline."""
    found = Evaluation.model_validate(evaluation) if evaluation else None
    challenger = found.challenger.learner if found and found.challenger else None
    return (
        environment("components.report")
        .get_template("run_page.html")
        .render(
            service=config.service,
            run=run.tell(config, result, Summary.model_validate(data), challenger),
            evaluation=evaluations.tell(found, config.costs) if found else None,
            story=tell_rollout(rollout, windows) if rollout is not None else None,
        )
    )


def evaluation_html(evaluation: Mapping[str, Any]) -> str:
    """The page of an evaluation alone, for the pipeline's dashboard."""
    story = evaluations.tell(Evaluation.model_validate(evaluation), costs=None)
    return environment("components.report").get_template("evaluation_page.html").render(evaluation=story)
