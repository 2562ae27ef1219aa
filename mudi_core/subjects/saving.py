"""Replace a dataset folder as a whole, with one writer at a time; a killed writer loses nothing.

New files are made in a hidden folder inside, the stage. When all of them are there, the stage gets another name: from
then on the new set is saved, and its files move to their places; if that is interrupted, the next process that opens
the folder finishes it. Other files in the folder are never touched. While the folder is new, a file beside it, the
mark, says so.

A folder from elsewhere may hold names like these on purpose, with links behind them: no file moves through a link that
leads out of the folder, into it or out of it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..lock import claimed
from ..types import MudiError

METADATA = "metadata.jsonl"
OURS = ".mudi-"
"""The prefix of files that are in a folder only while it is being saved."""
_LOCK, _STAGE, _COMPLETE = f"{OURS}lock", f"{OURS}stage-", f"{OURS}complete"
_MARK = re.compile(rf"{re.escape(OURS)}(?P<name>.+)\.new", re.DOTALL)
_EARLIER = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?P<kind>old|new)", re.DOTALL)
"""Folders beside a set while earlier versions saved it: the old set, moved away, and the new one, not yet complete."""
_ATTEMPTS = 5
_PAUSE = 0.02
"""Seconds between two checks of a writer whose files move to their places."""

Found = TypeVar("Found")


class CannotWrite(MudiError):
    """A dataset folder that cannot be written; its contents are unchanged."""


class Unfinished(MudiError):
    """A folder whose new files cannot move to their places; they wait for the next attempt."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder until the block ends; wait for a writer that is in it.

    Make the folder if needed.

    Raise `OSError` or `Unfinished`.
    """
    _bring_back(folder)
    with ExitStack() as stack:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claimed(_mark(folder), wait=True))
            folder.mkdir(exist_ok=True)
            stack.callback(_remove_if_empty, folder)
        with claimed(folder / _LOCK, wait=True):
            _settle(folder)
            yield


@contextmanager
def stage(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files move to their places in ``folder`` when the block ends well: all or none.

    Only use this inside `held`. Raise `CannotWrite` or `OSError`, with nothing changed, or `Unfinished`.
    """
    place = folder / f"{_STAGE}{secrets.token_hex(4)}"
    place.mkdir()
    try:
        yield place
        _check_places(place, folder)
        place.rename(folder / _COMPLETE)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    _move_in(folder)


def take_up(folder: Path) -> None:
    """Finish what a killed writer had completed, and remove what it had not; remove the folder if it is empty then.

    Wait for a writer at work. Raise `Unfinished`.
    """
    _bring_back(folder)
    _finish(folder, wait=True)


def take_up_all(root: Path) -> None:
    """Run `take_up` on every folder in ``root`` without a writer; errors show when the folder is read.

    Links are left alone: what they lead to lies in ``root`` itself, or is none of its folders.
    """
    try:
        names = os.listdir(root)
    except OSError:
        return
    marked = {match["name"] for name in names if (match := _MARK.fullmatch(name) or _EARLIER.fullmatch(name))}
    for name in marked - {os.curdir, os.pardir}:
        if not _is_link(root / name):
            _bring_back(root / name)
    for name in names:
        with suppress(MudiError, OSError):
            if not _is_link(root / name):
                _finish(root / name, wait=False)


def _finish(folder: Path, wait: bool) -> None:
    ours = False
    while _left_in(folder) and not ours:
        complete = (folder / _COMPLETE).exists()
        try:
            with claimed(folder / _LOCK) as ours:
                if ours:
                    _settle(folder)
        except OSError as error:
            if complete:
                raise _unfinished(folder, error) from error
            return
        if not ours:
            if not (complete and wait):
                return
            time.sleep(_PAUSE)
    if ours:
        _remove_if_empty(folder)


def _mark(folder: Path) -> Path:
    """Return the file that the maker of a folder claims, so that others know why the folder is empty."""
    return folder.with_name(f"{OURS}{folder.name}.new")


def _bring_back(folder: Path) -> None:
    """Restore a set that an earlier version had moved away; remove what killed writers left beside it."""
    earlier = _earlier(folder)
    is_marked = _mark(folder).exists()
    if not (earlier or is_marked):
        return
    with suppress(OSError), claimed(_mark(folder)) as ours:
        if not ours:
            return
        if is_marked:
            _remove_if_empty(folder)
        for left in earlier:
            with suppress(OSError):
                _take_in(left, folder)


def _earlier(folder: Path) -> list[Path]:
    """Return what earlier versions left beside a folder: old sets first, the latest of them first."""
    try:
        named = [
            (match, folder.with_name(name)) for name in os.listdir(folder.parent) if (match := _EARLIER.fullmatch(name))
        ]
        left = [
            (match["kind"] == "new", -path.lstat().st_mtime, path)
            for match, path in named
            if match["name"] == folder.name
        ]
    except OSError:
        return []
    return [path for *_, path in sorted(left) if path.is_dir() and not path.is_symlink()]


def _take_in(left: Path, folder: Path) -> None:
    """Make one of `_earlier` the set if there is none; otherwise add its missing files and remove the rest."""
    match = _EARLIER.fullmatch(left.name)
    assert match is not None
    if (left / METADATA).exists() and not (folder / METADATA).exists():
        _remove_if_empty(folder)
        if not folder.exists():
            left.rename(folder)
    elif (match["kind"] == "new" or (folder / METADATA).exists()) and not _is_alive(match["process"]):
        if match["kind"] == "old":
            _add_missing(left, folder)
        shutil.rmtree(left)


def _add_missing(source: Path, folder: Path) -> None:
    for path in sorted(source.rglob("*")):
        target = folder / path.relative_to(source)
        if not _is_inside(target.parent, folder):
            raise OSError(errno.EXDEV, "a link that leads out of its folder", str(target.parent))
        if path.is_dir() and not path.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            path.rename(target)


def _is_alive(process: str) -> bool:
    """Return whether another process has the number, as far as is known. This version writes no such folders."""
    return int(process) != os.getpid() and Path("/proc", process).exists()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def unchanged(folder: Path, read: Callable[[], Found]) -> Found:
    """Return what ``read`` returns for a folder that nobody changes meanwhile; read again when somebody did."""
    for _ in range(_ATTEMPTS - 1):
        take_up(folder)
        before = _state(folder)
        try:
            found = read()
        except MudiError:
            if _state(folder) == before:
                raise
        else:
            if _state(folder) == before:
                return found
    take_up(folder)
    return read()


def is_ours(path: Path) -> bool:
    """Return whether a file or folder exists only while its folder is being saved."""
    return path.name.startswith(OURS)


def _left_in(folder: Path) -> bool:
    try:
        return any(is_ours(path) for path in folder.iterdir())
    except OSError:
        return False


def _state(folder: Path) -> object:
    """Return a value that differs when the set is another, or is about to be."""
    try:
        about = (folder / METADATA).stat()
    except (OSError, ValueError):
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size, (folder / _COMPLETE).exists()


def _settle(folder: Path) -> None:
    for link in [path for path in folder.iterdir() if is_ours(path) and path.is_symlink()]:
        link.unlink(missing_ok=True)  # nobody who saves a set makes one
    _move_in(folder)
    for left in folder.glob(f"{_STAGE}*"):
        shutil.rmtree(left, ignore_errors=True)


def _files(place: Path) -> list[Path]:
    """Return the names of the files in a stage; the one that names the others is last."""
    files = (path.relative_to(place) for path in place.rglob("*") if not path.is_dir())
    return sorted(files, key=lambda name: (name == Path(METADATA), name))


def _is_link(path: Path) -> bool:
    """Return whether a path leads elsewhere, also as a junction of Windows."""
    return os.path.realpath(path) != os.path.join(os.path.realpath(path.parent), path.name)


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _check_links(place: Path, folder: Path) -> None:
    """Raise `CannotWrite` when a file of a stage would move through a link to a place outside of the folder."""
    for above in {place, *((folder / name).parent for name in _files(place))}:
        if not _is_inside(above, folder):
            raise CannotWrite(f"{above} is a link that leads out of {folder}. Remove it, or choose another folder.")


def _check_places(place: Path, folder: Path) -> None:
    _check_links(place, folder)
    for name in _files(place):
        above = (folder / name).parent
        if (folder / name).is_dir() or (above.exists() and not above.is_dir()):
            raise CannotWrite(f"{folder / name} has the name of a photo or mask but is something else. Rename it.")


def _move_in(folder: Path) -> None:
    complete = folder / _COMPLETE
    if not complete.is_dir():
        return
    _check_links(complete, folder)
    try:
        for name in _files(complete):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(complete / name, folder / name)
    except OSError as error:
        raise _unfinished(folder, error) from error
    shutil.rmtree(complete, ignore_errors=True)


def _unfinished(folder: Path, error: OSError) -> Unfinished:
    return Unfinished(
        f"The new set is complete, but its files cannot move to their places in {folder}: {error.strerror or error} "
        f"({error.filename}). Close the programs that use the folder, or make it writable, and try again."
    )
