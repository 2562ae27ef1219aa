"""Tensors on disk: safetensors only, never half a file under its final name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..types import MudiError


class BadTensorFile(MudiError):
    """A file of tensors that cannot be written, or that is missing or damaged."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes under a temporary name, reads back, compares to the bit, and only then renames to ``path``.

    ``tensors`` are on the CPU; missing folders are made. Raises `BadTensorFile`; an older file is then still whole.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _forget_halves(path.parent)
        _write(temporary, save({key: value.contiguous() for key, value in tensors.items()}, dict(metadata)))
        written, described = read_tensors(temporary)
        same = written.keys() == tensors.keys() and all(_same(written[key], tensors[key]) for key in written)
        if not same or described != dict(metadata):
            raise BadTensorFile(f"{path.name} was read back with other values than were written. Check the disk.")
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(f"Cannot write {path}: {error}. Choose a folder that is writable and has space.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata. Raises `BadTensorFile`."""
    if not Path(path).is_file():
        raise BadTensorFile(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(f"{path} is not a whole safetensors file ({error}). Copy it or make it again.") from error


def _forget_halves(folder: Path) -> None:
    """Removes what killed processes left of files that they wrote here."""
    for half in folder.glob("*.safetensors.*.part"):
        writer = half.suffixes[-2].removeprefix(".")
        if writer.isdecimal() and int(writer) != os.getpid() and not _runs(int(writer)):
            with suppress(OSError):
                half.unlink()


def _runs(process: int) -> bool:
    if os.name == "nt":  # where a signal ends it, and where a file that is open cannot be removed anyway
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def _write(path: Path, data: bytes) -> None:
    """Safetensors with the header's keys in order: the library does not sort them, and equal runs are equal files.

    It is written here, since the library's own temporary file is left behind when the process is killed.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = data[8:begin]
    text = json.dumps(json.loads(header), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    with open(path, "wb") as file:
        file.write(data[:8])
        # The offsets count from the header's end, so its length has to stay.
        file.write(text.ljust(len(header)) if len(text) <= len(header) else header)
        file.write(memoryview(data)[begin:])
        file.flush()
        os.fsync(file.fileno())  # before it gets its name, or a power cut may leave the name alone


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: unlike numbers, bits are also equal where both are NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
