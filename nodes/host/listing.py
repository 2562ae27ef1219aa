"""What lies in a folder, for a widget's choices: what cannot be read is left out and told once, and nothing is raised.

A schema that raises takes every node of the pack away, and folders of a user hold anything: a disk's lost+found, links
that lead nowhere or in a circle, names that are no UTF-8 or that are markup.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_told: set[str] = set()


def entries(folder: Path, shown: bool = True) -> list[Path]:
    """What lies in a folder, by name; nothing where it is none or cannot be read.

    ``shown``: the names are choices, so that those which may not be sent to the page are left out.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        _tell(folder, error)
        return []
    return [folder / name for name in names if not shown or can_be_chosen(name)]


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or leads to one."""
    return _asked(path, os.path.isdir)


def is_file(path: Path) -> bool:
    """Whether it is a file, or leads to one."""
    return _asked(path, os.path.isfile)


def _asked(path: Path, question: Callable[[Path], bool]) -> bool:
    try:
        return question(path)
    except (OSError, ValueError) as error:
        _tell(path, error)
        return False


def can_be_chosen(name: str) -> bool:
    """Whether a name may be sent to the page as a choice.

    Those that are no UTF-8 have halves of letters, and the menus of frontends take a "<" for markup.
    """
    try:
        name.encode()
        if "<" in name:
            raise ValueError('a name with "<" in it')
    except ValueError as error:
        _tell(Path(name), error)
        return False
    return True


def _tell(path: Path, error: Exception) -> None:
    shown = ascii(str(path))
    if shown not in _told:
        _told.add(shown)
        log.warning("%s cannot be read and is left out (%s)", shown, error)
