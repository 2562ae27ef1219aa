"""Runs that were stopped: what one is made of, on disk, and its pictures in a folder of their own until it ends."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files import whole
from ..lock import claimed
from ..types import MudiError
from .picture_shelf import FolderShelf, cannot_write

MADE_OF = "made-of.json"


class InUse(MudiError):
    """The same run is under way in another process."""


def remember(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Write what a run depends on, by name, into its folder. Raise `OSError`."""
    with whole(folder / MADE_OF) as part:
        part.write_text(_text(made_of), encoding="utf-8")


def differences(folder: Path, made_of: Mapping[str, Any]) -> list[str]:
    """Return the names of what is different in the run that a folder holds: all where that cannot be read."""
    try:
        there = json.loads((folder / MADE_OF).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        there = None
    now = json.loads(_text(made_of))
    return [name for name in sorted(now) if not isinstance(there, dict) or there.get(name) != now[name]]


@contextmanager
def unfinished(root: Path, made_of: Mapping[str, Any]) -> Iterator[FolderShelf]:
    """Yield the pictures of the stopped run below ``root`` that is made of the same, or a place for those of a new one.

    Whatever ends the block, they stay there; a run that has ended well moves them away (`FolderShelf.move`). Raise
    `InUse` and `CannotWriteShelf`.
    """
    key = hashlib.sha256(_text(made_of).encode()).hexdigest()[:12]
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            ours = stack.enter_context(claimed(root / f".{key}.lock"))
        except OSError as error:
            raise cannot_write(root, error) from error
        if not ours:
            raise InUse("The same pictures are made in another process now. Wait for it, or change the seed.")
        shelf = FolderShelf(root / key)
        try:
            remember(shelf.folder, made_of)
        except OSError as error:
            raise cannot_write(shelf.folder, error) from error
        yield shelf
    with suppress(OSError):  # other runs were stopped, too
        root.rmdir()


def how_it_begins(shelf: FolderShelf, made_of: Mapping[str, Any]) -> str:
    """Return from which picture a run goes on, or why it begins anew although another was stopped; else nothing."""
    if shelf.begun:
        return f"going on from picture {shelf.begun + 1}"
    others = [path.parent for path in shelf.folder.parent.glob(f"*/{MADE_OF}") if path.parent != shelf.folder]
    if not others:
        return ""
    latest = max(others, key=lambda folder: folder.stat().st_mtime)
    return f"begun anew, since the stopped run in {latest} has other {', '.join(differences(latest, made_of))}"


def _text(made_of: Mapping[str, Any]) -> str:
    return json.dumps(made_of, indent=1, sort_keys=True)
