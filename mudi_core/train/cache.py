"""What was encoded before, kept in a folder by its content and let go when the folder grows too large."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from .tensor_file import BadTensorFile, read_tensors, write_tensors

log = logging.getLogger(__name__)

LIMIT = 4 * 2**30
"""Bytes that a folder may hold before its oldest files go: some ten runs of SDXL."""


def content_key(*content: bytes | str | Tensor) -> str:
    """A name for content: hexadecimal SHA-256 of its parts and their lengths."""
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
    """Safetensors files by key, each written whole or not at all. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, limit: int = LIMIT) -> None:
        """``limit``: bytes that `prune` leaves."""
        self.folder = None if folder is None else Path(folder)
        self.limit = limit

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """What was kept under a key, with its metadata; it counts as new again."""
        file = self._file(key)
        if file is None or not file.exists():
            return None
        try:
            found = read_tensors(file)
        except BadTensorFile as error:
            log.warning("%s It is made again.", error)
            return None
        with suppress(OSError):
            os.utime(file)
        return found

    def write(self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        """Keeps tensors under a key. Raises `BadTensorFile`."""
        file = self._file(key)
        if file is not None:
            write_tensors(file, tensors, metadata or {})

    def prune(self) -> None:
        """Lets the files go that were not used for the longest time, until the folder keeps to its limit."""
        if self.folder is None or not self.folder.is_dir():
            return
        files = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(OSError):  # another run may have let it go
                about = file.stat()
                files.append((about.st_mtime_ns, about.st_size, file))
        held = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if held <= self.limit:
                return
            with suppress(OSError):
                file.unlink()
            held -= size

    def _file(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"
