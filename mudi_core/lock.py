"""One lock for whatever two processes must not do at once. It ends with its process, however that dies.

The kernel keeps it, not a process's number: numbers come again, after each start in a container and on two machines
that share a folder.
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
"""Seconds between two tries."""
_FAR = 2**30
"""The byte that Windows locks: one that nobody reads or writes."""


@contextmanager
def claimed(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process has the file ``path``, which is made, to itself; it is removed when the block ends.

    Other files are named by it: whoever wants one of them claims this one. ``wait``: until whoever has it lets go.
    Where a file system knows no locks everybody has it. Raises `OSError` where the file cannot be made.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            ours = _lock(file)
            # Whoever had it may have removed the file in between: then this is a lock on nothing.
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
            if os.name == "nt":  # where a file that is open stays
                with suppress(OSError):
                    path.unlink()


@contextmanager
def beginning(folder: Path, locks: re.Pattern[str]) -> Iterator[None]:
    """Within the block this process claims locks of this pattern in a folder; those of the dead are removed before.

    One at a time, so that nobody takes a lock that is being swept for one that is held. Raises `OSError`.
    """
    with claimed(folder / ".mudi.lock", wait=True):
        sweep(path for path in folder.iterdir() if locks.fullmatch(path.name))
        yield


def sweep(paths: Iterable[Path]) -> None:
    """Remove of these files, which are claimed while they are of use, those that nobody claims: the dead left them."""
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
