"""The progress of a pipeline's steps, also from what kfp.local prints."""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from components.shell import MARK, NOTE
from serin.report import words

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_STARTED: Final = re.compile(r"Executing task '(?P<task>[^']+)'")
_RAISED: Final = re.compile(r"[\w.]*(Error|Exception): \S")
_ENDED: Final = re.compile(r"Task '(?P<task>[^']+)' finished with status (?P<status>\w+)")


class State(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class Step:
    """One task; a looped task has several runs."""

    name: str
    started_s: float
    running: int = 1
    done: int = 0
    failed: int = 0
    ended_s: float | None = None

    @property
    def state(self) -> State:
        if self.failed:
            return State.FAILED
        return State.RUNNING if self.running else State.DONE


@dataclass(slots=True)
class Progress:
    """`mistake` is the one sentence of a user's mistake, None without one; `cause` the last exception printed before
    a step failed; `notes` are lines of steps that are meant for whoever started the run. What changes returns what to
    tell a reader of plain text, None when that is nothing."""

    steps: dict[str, Step] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mistake: str | None = None
    cause: str | None = None

    def feed(self, line: str, now_s: float) -> str | None:
        """Take one line of what kfp.local prints."""
        line = _ANSI.sub("", line).strip()
        if MARK in line:
            self.mistake = line.split(MARK, 1)[1]
            return None
        if NOTE in line:
            self.notes.append(line.split(NOTE, 1)[1])
            return None
        if started := _STARTED.search(line):
            return self.start(started["task"], now_s)
        if ended := _ENDED.search(line):
            return self.end(ended["task"], ended["status"] == "SUCCESS", now_s)
        if _RAISED.match(line) and not any(step.failed for step in self.steps.values()):
            self.cause = line
        return None

    def start(self, task: str, now_s: float) -> str | None:
        step = self.steps.get(task)
        if step is None:
            self.steps[task] = Step(task, now_s)
            return f"{task} …"
        step.running += 1
        step.ended_s = None
        return None

    def end(self, task: str, success: bool, now_s: float) -> str | None:
        step = self.steps.get(task)
        if step is None:  # a group of tasks, announced only at its end
            return None
        step.running -= 1
        step.done += success
        step.failed += not success
        if step.running:
            return None
        return self._over(step, now_s)

    def observe(self, task: str, *, running: int, done: int, failed: int, now_s: float) -> str | None:
        """Take how many of a task's runs are in which state."""
        step = self.steps.get(task)
        if step is None:
            step = self.steps[task] = Step(task, now_s)
            told = f"{task} …"
        else:
            told = None
        was_running = step.running > 0
        step.running, step.done, step.failed = running, done, failed
        if running:
            step.ended_s = None
            return told
        return self._over(step, now_s) if was_running else None

    def _over(self, step: Step, now_s: float) -> str:
        step.ended_s = now_s
        return f"{step.name} {step.state} in {words.duration(now_s - step.started_s)}"
