"""The end of a process with its parent, however the parent ends: by a signal, by `kill -9`, or just so.

The parent starts it with `stdin=subprocess.PIPE` and never writes: when it is gone, so is the pipe's other end.
"""

import os
import threading
from collections.abc import Callable


def watch(gone: Callable[[], object]) -> None:
    """Call `gone`, from a thread of its own, once standard input ends."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        gone()

    threading.Thread(target=wait, name="parent", daemon=True).start()
