"""What may be in a model directory that somebody else made: regular files, and not too many of them."""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from serin.errors import UserError

MAX_ENTRIES: Final = 1000
MAX_DOCUMENT_BYTES: Final = 256 * 2**20
"""Of a file in `meta/`: these are read into memory as a whole."""


def regular_files(root: Path) -> Mapping[Path, int]:
    """Size in bytes of every file below `root`, by relative path; nothing is opened for its content or followed.

    Raises `UserError` naming the first entry that is no regular file or folder (symbolic link, device, pipe, socket),
    that is sparse or too large, or the folder when it holds more than MAX_ENTRIES; `OSError` when one cannot be read.
    """
    sizes: dict[Path, int] = {}
    for count, entry in enumerate(_entries(root)):
        path = Path(entry.path)
        name = path.relative_to(root)
        if count == MAX_ENTRIES:
            raise UserError(f"Model {root} has more than {MAX_ENTRIES:,} files and folders; export the model again.")
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise UserError(f"Model {root}: {name} is {_kind(mode)}; put the file itself there.")
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if _sparse(file.fileno(), size):
                raise UserError(f"Model {root}: file {name} is sparse (it has holes); export the model again.")
        if name.parts[0] == "meta" and size > MAX_DOCUMENT_BYTES:
            raise UserError(f"Model {root}: file {name} is larger than {MAX_DOCUMENT_BYTES // 2**20} MB.")
        sizes[name] = size
    return sizes


def open_regular(path: Path) -> BinaryIO:
    """For reading. Raises `OSError` when it is a link, or no regular file, by now."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


def _sparse(file: int, size: int) -> bool:
    return size > 0 and os.lseek(file, 0, os.SEEK_HOLE) < size


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((name for matches, name in kinds if matches(mode)), "a device")
