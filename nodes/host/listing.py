"""What lies in a folder, for a widget's choices. What cannot be read is left out and logged once; nothing is raised.

A schema that raises takes every node of the pack away, and users' folders may hold anything: a disk's lost+found, links
that lead nowhere or in a circle, names that are not UTF-8 or that contain markup.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_logged: set[str] = set()


def entries(folder: Path, shown: bool = True) -> list[Path]:
    """Return what lies in a folder, sorted by name; nothing where there is no folder or it cannot be read.

    ``shown``: the names are choices, so leave out those that may not be sent to the page.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        _log_once(folder, error)
        return []
    return [folder / name for name in names if not shown or can_be_chosen(name)]


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder or a link to one; False where it cannot be read."""
    return _answer_or_no(path, os.path.isdir)


def is_file(path: Path) -> bool:
    """Return whether a path is a file or a link to one; False where it cannot be read."""
    return _answer_or_no(path, os.path.isfile)


def _answer_or_no(path: Path, question: Callable[[Path], bool]) -> bool:
    try:
        return question(path)
    except (OSError, ValueError) as error:
        _log_once(path, error)
        return False


def can_be_chosen(name: str) -> bool:
    """Return whether a name may be sent to the page as a choice.

    A name that is not UTF-8 cannot be sent, and the menus of frontends read a "<" as markup.
    """
    try:
        name.encode()
        if "<" in name:
            raise ValueError('a name with "<" in it')
    except ValueError as error:
        _log_once(Path(name), error)
        return False
    return True


def _log_once(path: Path, error: Exception) -> None:
    shown = ascii(str(path))
    if shown not in _logged:
        _logged.add(shown)
        log.warning("%s cannot be read and is left out (%s)", shown, error)
