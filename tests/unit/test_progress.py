"""What kfp.local prints, read as progress."""

from components.shell import MARK, NOTE
from pipelines.progress import Progress, State

LINES = (
    "22:18:50.787 - INFO - Executing task \x1b[96m'preprocess'\x1b[0m",
    "    [KFP Executor] whatever a step prints",
    "22:18:52.852 - INFO - Task \x1b[96m'preprocess'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m",
    "22:18:50.923 - INFO - Executing task \x1b[96m'train'\x1b[0m",
    "22:18:50.923 - INFO - Executing task \x1b[96m'train'\x1b[0m",
    "22:18:50.988 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m",
    "22:18:50.995 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m",
    "22:18:50.996 - INFO - Pipeline \x1b[95m'p'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m",
)


def test_steps_start_run_side_by_side_and_end() -> None:
    progress = Progress()
    told = [progress.feed(line, float(second)) for second, line in enumerate(LINES)]
    assert told == [
        "preprocess …",
        None,
        "preprocess done in 2 s",
        "train …",
        None,
        None,
        "train failed in 3 s",
        None,
    ]
    assert progress.steps["preprocess"].state is State.DONE
    assert progress.steps["train"].state is State.FAILED
    assert (progress.steps["train"].done, progress.steps["train"].failed) == (1, 1)


def test_a_users_mistake_is_picked_out_of_the_log() -> None:
    progress = Progress()
    assert progress.feed(f"    {MARK}Column churn is not there.\n", 0.0) is None
    assert progress.mistake == "Column churn is not there."


def test_notes_of_steps_are_picked_out_of_the_log() -> None:
    progress = Progress()
    assert progress.feed(f"    {NOTE}Left out `a`: is a row number.\n", 0.0) is None
    assert progress.notes == ["Left out `a`: is a row number."]


def test_a_failed_step_names_the_exception_that_ended_it() -> None:
    progress = Progress()
    said = (
        "ValueError: tried again",
        "    OSError: [Errno 28] No space left on device",
        *LINES[-2:],
        "RuntimeError: p",
    )
    for line in (*LINES[:-2], *said):
        progress.feed(line, 0.0)
    assert progress.cause == "OSError: [Errno 28] No space left on device"


def test_runs_of_a_task_are_counted_as_a_backend_tells_them() -> None:
    progress = Progress()
    looks = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (0, 2, 0), (0, 2, 0), (1, 2, 0), (0, 2, 1)]
    told = [
        progress.observe("train", running=running, done=done, failed=failed, now_s=float(second))
        for second, (running, done, failed) in enumerate(looks)
    ]
    assert told == ["train …", None, None, "train done in 3 s", None, None, "train failed in 6 s"]
    assert progress.steps["train"].state is State.FAILED


def test_what_was_over_at_the_first_look_is_told_once() -> None:
    progress = Progress()
    assert progress.observe("preprocess", running=0, done=1, failed=0, now_s=1.0) == "preprocess done in 0 s"
    assert progress.observe("preprocess", running=0, done=1, failed=0, now_s=2.0) is None
