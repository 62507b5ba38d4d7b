"""What a run shows while it goes: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.progress import Progress, State
from serin.cli import view
from serin.report import words
from serin.rollout.document import ModelRollout

_MARKS: Final = {State.RUNNING: ("…", "yellow"), State.DONE: ("✓", "green"), State.FAILED: ("✗", "red")}


class Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed: tuple[ModelRollout, float] | None = None

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(
        self,
        progress: Progress,
        rollout: ModelRollout | None,
        windows: Sequence[dict[str, Any]],
        problem: str | None,
    ) -> None:
        if self._live is None:
            if rollout is not None:
                self._plain(rollout, problem)
            return
        self._live.update(view.live(rollout, windows, problem, datetime.now(UTC), _steps(progress)), refresh=True)

    def _plain(self, rollout: ModelRollout, problem: str | None) -> None:
        before, at = self._printed or (None, time.monotonic())
        since_s = time.monotonic() - at
        lines = view.plain(before.status if before else None, rollout.status, since_s=since_s, problem=problem)
        if lines:
            self._printed = rollout, time.monotonic()
            self._console.print(Text("\n".join(f"  {line}" for line in lines)), soft_wrap=True)


def _steps(progress: Progress) -> Text:
    """On one line, so that a rollout has room below it."""
    line = Text()
    for step in progress.steps.values():
        seconds = (step.ended_s or time.monotonic()) - step.started_s
        count = (
            f", {step.done} of {step.done + step.running}" if step.running and step.done + step.running > 1 else ""
        )
        mark, style = _MARKS[step.state]
        line.append("   " if line else "").append(f"{mark} ", style).append(
            f"{step.name} {words.duration(seconds)}{count}"
        )
    return line
