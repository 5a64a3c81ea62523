"""Changing a file of the user's."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
# The folder takes no other file in its place: it may not be written, or one file of it is mounted.
_ONLY_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS)


def rewrite(path: Path, change: Callable[[str], tuple[str, T]]) -> T:
    """Read UTF-8 text, change it and write it back, as it is to the last line end: whoever reads
    meanwhile sees the old text or the new one, and of two who change it both changes stay. Owner,
    mode and links are kept. Raises OSError, UnicodeDecodeError and what ``change`` raises; then
    the file is as before.
    """
    file = path.resolve()
    with _alone(file.parent), file.open("r+b") as old:  # fails where the file may not be written
        text = old.read().decode()
        made, result = change(text)
        if made != text:
            _replace(file, made.encode(), os.fstat(old.fileno()))
    return result


def _replace(file: Path, content: bytes, old: os.stat_result) -> None:
    try:
        if old.st_nlink > 1:
            raise PermissionError(errno.EPERM, "has another name, too")
        number, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(number, "wb") as new:
                new.write(content)
                new.flush()
                os.fchown(number, old.st_uid, old.st_gid)
                os.fchmod(number, old.st_mode & 0o7777)
                os.fsync(number)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as e:
        if e.errno not in _ONLY_IN_PLACE:
            raise
        file.write_bytes(content)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time in a folder."""
    import fcntl  # which not every system has where only the other commands are used

    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks of folders
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
