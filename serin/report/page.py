"""Self-contained HTML: no script, nothing loaded from elsewhere, light and dark, good on paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from serin.report.story import tell
from serin.rollout.document import ModelRollout


def environment(*packages: str) -> Environment:
    """Templates of `packages` and of this one; whatever they are given is escaped."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "serin.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def rollout_html(rollout: ModelRollout, windows: Sequence[Mapping[str, Any]]) -> str:
    """The page of one rollout. `windows`: its timeline, as the store gives it."""
    template = environment().get_template("rollout_page.html")
    return template.render(rollout=rollout, story=tell(rollout, windows))
