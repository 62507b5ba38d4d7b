"""What every component shell shares: the image it runs in, and how a user's mistake ends it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serin.errors import UserError

IMAGE: Final = "serin/pipeline-python:0"
"""Stands in compiled pipelines; submitting to a cluster puts the image's content-hash tag in its place, so the
compiled file changes only when the graph does."""

MARK: Final = "serin: yours to fix: "
TERMINATION_LOG: Final = Path("/dev/termination-log")
"""What a container writes there, Kubernetes shows as the reason of its end."""


@contextmanager
def user_errors() -> Iterator[None]:
    """End the step with exit code 2 and one marked line instead of a traceback when the user has to act."""
    try:
        yield
    except UserError as error:
        told = MARK + " ".join(str(error).split())
        print(told, file=sys.stderr, flush=True)
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(told, encoding="utf-8")
        raise SystemExit(2) from error
