"""A file appears under its name only when all of it is there, and what killed writers left of theirs goes."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .lock import claimed

_HALF = re.compile(r"(\..+|.+\.safetensors)\.([0-9a-f]{8}|[0-9]+)\.part", re.DOTALL)
"""Temporary names of this version and of earlier ones, which had the number of their process."""


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
        for half in [path for path in folder.iterdir() if _HALF.fullmatch(path.name)]:
            with suppress(OSError), claimed(half):
                pass
