"""What a run shows while it goes: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipelines.progress import Progress, State, Step
from serin.cli import view
from serin.report import words
from serin.rollout.document import ModelRollout

STEP_S: Final = 15.0
"""Without a terminal, a line about running steps at most this often."""
_MARKS: Final = {State.RUNNING: ("…", "yellow"), State.DONE: ("✓", "green"), State.FAILED: ("✗", "red")}


class Screen:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._printed: tuple[ModelRollout, float] | None = None
        self._steps_at = time.monotonic()

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
            elif running := [step for step in progress.steps.values() if step.state is State.RUNNING]:
                self._plain_steps(running)
            return
        self._live.update(view.live(rollout, windows, problem, datetime.now(UTC), _steps(progress)), refresh=True)

    def _plain_steps(self, running: Sequence[Step]) -> None:
        now_s = time.monotonic()
        if now_s - max(self._steps_at, *(step.started_s for step in running)) < STEP_S:
            return
        self._steps_at = now_s
        self._console.print(Text("  " + ", ".join(_step(step) for step in running)), soft_wrap=True)

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
        mark, style = _MARKS[step.state]
        line.append("   " if line else "").append(f"{mark} ", style).append(_step(step))
    return line


def _step(step: Step) -> str:
    seconds = (step.ended_s or time.monotonic()) - step.started_s
    of = step.done + step.running
    return f"{step.name} {words.duration(seconds)}" + (f", {step.done} of {of}" if step.running and of > 1 else "")
