"""What kfp.local prints, read as progress."""

from components.shell import MARK
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
        "preprocess done in 2.0 s",
        "train …",
        None,
        None,
        "train failed in 3.0 s",
        None,
    ]
    assert progress.steps["preprocess"].state is State.DONE
    assert progress.steps["train"].state is State.FAILED
    assert (progress.steps["train"].done, progress.steps["train"].failed) == (1, 1)


def test_a_users_mistake_is_picked_out_of_the_log() -> None:
    progress = Progress()
    assert progress.feed(f"    {MARK}Column churn is not there.\n", 0.0) is None
    assert progress.mistake == "Column churn is not there."
