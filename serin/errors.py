"""The two kinds of failure serin knows: *yours to fix* and *try again*."""


class UserError(Exception):
    """Yours to fix: one sentence that names the offending thing and the fix. Commands end with exit code 2."""


class TryAgain(Exception):
    """A passing failure. Raise it `from` its cause; the caller waits `delay_s` and keeps its own deadline."""

    def __init__(self, message: str, *, delay_s: float) -> None:
        super().__init__(message)
        self.delay_s = delay_s
