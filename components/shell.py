"""What every component shell shares: the image it runs in, and how a user's mistake ends it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from serin.errors import UserError

IMAGE: Final = "serin/pipeline-python:0"
"""Stands in compiled pipelines; submitting to a cluster puts the image's content-hash tag in its place, so the
compiled file changes only when the graph does."""

MARK: Final = "serin: yours to fix: "
NOTE: Final = "serin: note: "
"""Before a line of a step's output that whoever started the run is to see."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage: what modules make is there to stay, and a step is mostly its imports."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def user_errors() -> Iterator[None]:
    """End the step with exit code 2 and one marked line instead of a traceback when the user has to act."""
    try:
        yield
    except UserError as error:
        print(MARK + " ".join(str(error).split()), file=sys.stderr, flush=True)
        raise SystemExit(2) from error
