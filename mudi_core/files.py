"""Files: each appears under its name only when all of it is there; text is read as editors of any system save it."""

from __future__ import annotations

import codecs
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .lock import claimed, sweep
from .types import MudiError

_HALF = re.compile(r"(\..+|.+\.safetensors)\.([0-9a-f]{8}|[0-9]+)\.part", re.DOTALL)
"""Temporary names of this version and of earlier ones, which had the number of their process."""

LONGEST_TEXT = 16_000_000
"""Bytes of a text file: far more than anybody writes."""
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class NotText(MudiError):
    """A file whose bytes are no text, or text in an encoding that it does not name."""


def read_text(path: Path) -> str:
    """The text of a file that a person has written, see `decoded`. Raises `NotText` and `OSError`."""
    with path.open("rb") as file:
        data = file.read(LONGEST_TEXT + 1)
    if len(data) > LONGEST_TEXT:
        raise NotText(f"{path} is longer than {LONGEST_TEXT // 1_000_000} MB, which no text for this is. Name another.")
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    """The text of a file's bytes: UTF-8, or what its byte order mark says, UTF-8 or UTF-16.

    Latin-1 and its like are not guessed: a wrong guess would change a name in silence. Raises `NotText` with the line.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
        stop = text.find("\0")
        before = text[:stop] if stop >= 0 else None
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
    if before is not None:
        line = before.count("\n") + 1
        raise NotText(f"{path}, line {line} is not UTF-8 text. Save the file as UTF-8.")
    return text


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; what is written there gets its name if the block ends well, else it goes.

    Missing folders are made. Raises `OSError` with an older file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    forget_halves(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # Claimed until it has its name, which shows that its writer lives; Windows renames no file that is open.
    with claimed(temporary) if os.name != "nt" else nullcontext():
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def forget_halves(folder: Path) -> None:
    """Remove what killed processes left of files that they wrote here: nobody claims those any more."""
    with suppress(OSError):
        sweep([path for path in folder.iterdir() if _HALF.fullmatch(path.name)])
