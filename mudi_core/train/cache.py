"""Encoded images and captions of earlier runs, by content, in a folder; the oldest go when it grows too large."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from ..tensor_file import BadTensorFile, read_tensors, write_tensors

log = logging.getLogger(__name__)

LIMIT = 4 * 2**30
"""Bytes that a folder may hold before its oldest files are deleted: about ten runs of SDXL."""


def content_key(*content: bytes | str | Tensor) -> str:
    """Return a name for content: the hexadecimal SHA-256 of its parts and their lengths."""
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, Tensor):
            described = f"{part.dtype} {tuple(part.shape)}".encode()
            part = described + part.detach().contiguous().numpy().tobytes()
        elif isinstance(part, str):
            part = part.encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class Cache:
    """Safetensors files by key, each written completely or not at all. Without a folder nothing is saved.

    Its content can be made again, so no problem with it ends a training: a file that is damaged or has no checksum
    counts as missing, and when the folder cannot be written, one warning says so.
    """

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        """Open the cache in a folder. ``limit``: bytes that `prune` leaves."""
        self.folder = None if folder is None else Path(folder)
        self.limit = limit
        self._takes_more = True
        self._damaged = 0

    def read(self, key: str, *, mapped: bool = False) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Return what was saved under a key, with its metadata; None when there is nothing.

        The entry counts as new again.

        ``mapped`` as in `read_tensors`.
        """
        file = self._file(key)
        if file is None or not os.path.exists(file):
            return None
        try:
            found = read_tensors(file, mapped=mapped, checked=True)
        except BadTensorFile as error:
            self.is_damaged(str(error))
            return None
        with suppress(OSError):
            os.utime(file)
        return found

    def is_damaged(self, why: str) -> None:
        """Warn that a file is made again; only for the first file."""
        self._damaged += 1
        log.log(logging.WARNING if self._damaged == 1 else logging.DEBUG, "%s It is made again.", why)

    def write(self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Save tensors under a key, if the folder can be written."""
        file = self._file(key)
        if file is None or not self._takes_more:
            return
        try:
            write_tensors(file, tensors, metadata or {})
        except BadTensorFile as error:
            self._takes_more = False
            log.warning("%s Training goes on; the next one encodes these pictures and captions again.", error)

    def prune(self) -> None:
        """Delete the files that were not used for the longest time, until the folder is within its limit."""
        files = []
        for file in self._files():
            with suppress(OSError):  # another run may have deleted it
                about = file.stat()
                files.append((about.st_mtime_ns, about.st_size, file))
        held = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if held <= self.limit:
                return
            with suppress(OSError):
                file.unlink()
            held -= size

    def _files(self) -> list[Path]:
        try:
            return [] if self.folder is None else list(self.folder.glob("*.safetensors"))
        except OSError:  # a folder without permission to read
            return []

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"
