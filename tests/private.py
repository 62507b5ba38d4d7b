"""Who may read what was written."""

import stat
from pathlib import Path


def readable_by_others(folder: Path) -> list[str]:
    """`folder` and whatever is in it that group or others may read, write or enter."""
    found = [folder, *folder.rglob("*")]
    return [str(path) for path in found if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077]
