"""Names of files and folders: which names every system accepts, and where an opened file really lies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from .types import MudiError

LONGEST = 200
"""Most bytes of a name: systems accept 255, and some room is needed for an ending."""
_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_URL_ENCODED = re.compile(r"%[0-9a-fA-F]{2}")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
"""Names of Windows devices, with any ending."""
# Unicode's Default_Ignorable_Code_Point, and letters and signs that are shown as nothing.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u2800\U00013441\U00013442\U00016fe4\U0001d159]"
)


class BadName(MudiError):
    """A name that could leave its folder, or that some operating system refuses."""


def plain_name(name: str, what: str) -> str:
    """Return the name if a file or folder can have it on every system and it stays inside its folder.

    ``what``: the word for it in the error. Raise `BadName` otherwise.
    """
    if not name.strip():
        raise BadName(f"The {what} needs a name.")
    strange = _FORBIDDEN.search(name) or _URL_ENCODED.search(name) or _INVISIBLE.search(name) or not name.isprintable()
    if strange or name != name.strip() or name.startswith(".") or name.endswith("."):
        raise BadName(
            f"{name!r} cannot be the name of a {what}: give a plain name such as 'two_dogs', without a path, "
            "without invisible letters, and without dots or spaces at the ends."
        )
    if _RESERVED.fullmatch(name) or len(name.encode()) > LONGEST:
        raise BadName(f"{name!r} cannot be the name of a {what} on every system. Choose another, such as 'two_dogs'.")
    return name


def taken_everywhere(name: str) -> str:
    """Return a file name that every system accepts: what one of them refuses becomes "_"."""
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    letters = "".join(letter if letter.isprintable() else "_" for letter in stem + dot + suffix)
    plain = _INVISIBLE.sub("_", _FORBIDDEN.sub("_", letters)).rstrip(" .") or "_"
    plain = "_" + plain.lstrip() if plain != plain.lstrip() or _RESERVED.fullmatch(plain) else plain
    if len(plain.encode()) > LONGEST:
        stem, dot, suffix = plain.rpartition(".")
        room = LONGEST - len((dot + suffix).encode())
        plain = (stem or plain).encode()[: max(room, 1)].decode(errors="ignore") + dot + suffix
    return plain


def leads_out(file: BinaryIO, path: Path, folder: Path) -> bool:
    """Return whether an open file lies outside the folder.

    The file itself is asked: a link may have changed since its path was checked.
    """
    real = Path(os.path.realpath(path))
    try:
        same = os.path.samestat(os.fstat(file.fileno()), os.lstat(real))
    except OSError:
        return True
    return not same or not real.is_relative_to(os.path.realpath(folder))
