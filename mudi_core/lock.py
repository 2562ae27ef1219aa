"""One lock for everything that two processes must not do at the same time.

The lock ends with its process, however the process ends. The kernel keeps the lock. The number of a process would not
do: numbers return after each start of a container, and on two machines that share a folder.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PAUSE = 0.2
"""Seconds between two attempts."""
_FAR = 2**30
"""The position of the byte that Windows locks: nobody reads or writes it."""


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Claim the file ``path`` for this process; yield whether that worked; remove the file when the block ends.

    The file is made for this. Whoever wants to use another file claims the lock file named after it. A link of its name
    is removed, not followed: it could lead anywhere. ``wait``: wait
    until the other process lets go. On a file system without locks every claim works. Raise `OSError` when the file
    cannot be made.
    """
    while True:
        if path.is_symlink():
            path.unlink(missing_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            ours = _lock(file)
            # The earlier owner may have removed the file in between: then this lock protects nothing.
            if not ours or not _is(file, path):
                if not wait and not ours:
                    yield False
                    return
                time.sleep(0 if ours else _PAUSE)
                continue
            try:
                yield True
            finally:
                if os.name != "nt":
                    with suppress(OSError):
                        path.unlink()
            return
        finally:
            os.close(file)
            if os.name == "nt":  # Windows keeps a file as long as it is open
                with suppress(OSError):
                    path.unlink()


@contextmanager
def beginning(folder: Path, locks: re.Pattern[str]) -> Iterator[None]:
    """Yield while this process may claim locks of this pattern in a folder; remove the locks of dead processes first.

    One process at a time is inside, so that nobody mistakes a lock that is being removed for a lock that is held. Raise
    `OSError` when the folder cannot be used.
    """
    with claimed(folder / ".mudi.lock", wait=True):
        sweep(path for path in folder.iterdir() if locks.fullmatch(path.name))
        yield


def sweep(paths: Iterable[Path]) -> None:
    """Remove those of these lock files that no process claims: dead processes left them."""
    for path in list(paths):
        with suppress(OSError), claimed(path):
            pass


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _lock(file: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file, _FAR, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
    return True
