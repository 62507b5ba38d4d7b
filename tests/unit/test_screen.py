"""What a run prints while its steps go on."""

import io
import time

import pytest
from rich.console import Console

from pipelines import screen
from pipelines.progress import Progress


def test_a_long_step_is_heard_of_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    out = io.StringIO()
    shown = screen.Screen(Console(file=out, width=80))
    progress = Progress()
    progress.observe("train", running=2, done=1, failed=0, now_s=100)
    for _ in range(80):
        shown.update(progress, None, (), None)
        now_s[0] += 0.5
    assert out.getvalue() == "  train 15 s, 1 of 3\n  train 30 s, 1 of 3\n"
