"""Write and read files: a file gets its name only when it is complete; text may have the encoding of any editor."""

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
"""Temporary names of this version, and of earlier versions, whose names had the number of the process."""

LONGEST_TEXT = 16_000_000
"""Most bytes of a text file: far more than a person writes."""
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class NotText(MudiError):
    """A file that is not text, or text in an encoding that the file does not declare."""


def read_text(path: Path) -> str:
    """Return the text of a file that a person wrote, decoded by `decoded`. Raise `NotText` or `OSError`."""
    with path.open("rb") as file:
        data = file.read(LONGEST_TEXT + 1)
    if len(data) > LONGEST_TEXT:
        raise NotText(
            f"{path} is longer than {LONGEST_TEXT // 1_000_000} MB, too long for a text file. Name another file."
        )
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    """Return the text of a file's bytes: UTF-8, or UTF-8 or UTF-16 when the byte order mark says so.

    Latin-1 and similar encodings are not guessed: a wrong guess would change a name silently. Raise `NotText` with the
    number of the line when the bytes are not text.
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
    """Yield a temporary name beside ``path``, and rename the file to ``path`` when the block ends well.

    When the block fails, remove the file. Make missing folders. Raise `OSError` when the file cannot be written; an
    older file then stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    forget_halves(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    # The claim shows that the writer is still alive. Windows cannot rename an open file, so there it is not claimed.
    with claimed(temporary) if os.name != "nt" else nullcontext():
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def forget_halves(folder: Path) -> None:
    """Remove incomplete files in this folder that processes left when they were killed."""
    with suppress(OSError):
        sweep([path for path in folder.iterdir() if _HALF.fullmatch(path.name)])
