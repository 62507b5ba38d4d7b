"""Commands in messages, spelled as this user must type them here."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

_PLUGIN: Final = "kubectl-serin"


def typed(arguments: str) -> str:
    """`serin` with `arguments` in backquotes, for a sentence."""
    found = shutil.which("serin")
    try:
        here = Path.cwd()
    except FileNotFoundError:  # deleted meanwhile
        here = Path("/")
    serin = spelled(sys.argv[0], Path(sys.executable), here, on_path=Path(found) if found else None)
    return f"`{serin} {arguments}`"


def spelled(program: str, python: Path, here: Path, *, on_path: Path | None) -> str:
    """The command that ran as `program` with the interpreter `python`, in the folder `here`; of another program, the
    `serin` that was installed beside its interpreter. `on_path`: what a shell runs as plain `serin`."""
    run = Path(program)
    if run.name == _PLUGIN:
        return "kubectl serin"
    file = run if run.name == "serin" else python.parent / "serin"
    installed = here / file
    if not installed.exists() or (on_path is not None and on_path.samefile(installed)):
        return "serin"
    return shlex.quote(str(file.relative_to(here) if file.is_relative_to(here) else file))
