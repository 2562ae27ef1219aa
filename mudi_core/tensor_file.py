"""Tensors on disk: safetensors only, never half a file under its final name, and never a bit that has flipped.

A file that is written here carries a CRC-32 of all its bytes in its metadata; reading verifies it. Files of others, and
of earlier versions, have none and are read as they are.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import whole
from .types import MudiError

_AT_ONCE = 2**20
_CHECKSUM, _KIND = "mudi_checksum", "crc32:"
_NONE = f"{_KIND}{0:08x}"
"""Stands in the header while the checksum is taken."""
_MARK = re.compile(rb'"mudi_checksum":"crc32:([0-9a-f]{8})"')
_OURS = b'{"data_offsets":'
"""Begins a tensor's entry here, where keys are in order, and in no file of the safetensors library."""


LONGEST_HEADER = 16 * 2**20
"""Bytes of a safetensors file's list of tensors; SDXL's has 0.4 MB, one of 20,000 LoRA layers 5 MB. A longer one costs
gigabytes to read."""


class BadWeights(MudiError):
    """A file of weights that cannot be read, or that belongs to another model."""


class BadTensorFile(MudiError):
    """A file of tensors that cannot be written, or that is missing or damaged."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes under a temporary name, reads back, compares to the bit, and only then renames to ``path``.

    ``tensors`` are on the CPU; missing folders are made. Raises `BadTensorFile`; an older file is then still whole.
    """
    path = Path(path)
    data = save({key: value.contiguous() for key, value in tensors.items()}, {**metadata, _CHECKSUM: _NONE})
    try:
        for again in (True, False):
            try:
                with whole(path) as temporary:
                    _write(temporary, data)
                    if not _holds(temporary, tensors, metadata):
                        raise BadTensorFile(
                            f"{path.name} was read back with other values than were written. Check the disk."
                        )
                return
            except FileNotFoundError:
                # Another machine took it for a half, where the folder's file system knows no locks.
                if not again:
                    raise
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(f"Cannot write {path}: {error}. Choose a folder that is writable and has space.") from error


def read_tensors(
    path: Path, *, mapped: bool = False, checked: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata, without the checksum. Raises `BadTensorFile`.

    ``mapped``: the tensors are parts of the file, which must then stay as it is: nobody can replace it on Windows.
    ``checked``: refuse a file without a checksum, too.
    """
    if not os.path.isfile(path):
        raise BadTensorFile(f"There is no file {path}.")
    try:
        _verify(path, checked)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(f"{path} is not a whole safetensors file ({error}). Copy it or make it again.") from error
    metadata.pop(_CHECKSUM, None)
    return tensors if mapped else {key: value.clone() for key, value in tensors.items()}, metadata


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose list of tensors would take gigabytes to read. Raises `BadWeights`."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise BadWeights(f"{path} could not be read ({error.strerror or error}).") from error
    if length > LONGEST_HEADER:
        raise BadWeights(f"{path} is not a whole safetensors file (a header of {length} bytes). Download it again.")


def _verify(path: Path, checked: bool) -> None:
    """Raises `BadTensorFile` where the bytes of a file are not those that its checksum was taken of."""
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if length > LONGEST_HEADER:
            raise BadTensorFile(
                f"{path} is not a whole safetensors file (a header of {length} bytes). Copy it or make it again."
            )
        header = file.read(length)
        mark = _MARK.search(header)
        # Another program that writes the file anew keeps our words, but not the order of the keys.
        if _OURS not in header or not (mark or _CHECKSUM.encode() in header or _KIND.encode() in header):
            if checked:
                raise BadTensorFile(f"{path} has no checksum.")
            return
        if mark is not None:
            found = zlib.crc32(first + header[: mark.start(1)] + b"0" * 8 + header[mark.end(1) :])
            while part := file.read(_AT_ONCE):
                found = zlib.crc32(part, found)
            if int(mark[1], 16) == found:
                return
    raise BadTensorFile(f"{path} is damaged: its bytes are not those that were written. Copy it or make it again.")


def _holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether a file that was just written has these and no others."""
    _verify(path, checked=False)
    with safe_open(path, framework="pt") as file:
        described = dict(file.metadata() or {})
        del described[_CHECKSUM]
        # One by one, so that no part of the file is still mapped when it gets its name.
        return (
            described == dict(metadata)
            and set(file.keys()) == tensors.keys()
            and all(_same(file.get_tensor(key), tensors[key]) for key in tensors)
        )


def _write(path: Path, data: bytes) -> None:
    """Safetensors with the header's keys in order, and its checksum in it.

    The library does not sort the keys, and equal runs are equal files. It is written here, since the library's own
    temporary file is left behind when the process is killed.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(json.loads(data[8:begin]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors begin at a multiple of 8
    first, body = len(text).to_bytes(8, "little"), memoryview(data)[begin:]
    checksum = zlib.crc32(body, zlib.crc32(first + text))
    text = text.replace(f'"{_CHECKSUM}":"{_NONE}"'.encode(), f'"{_CHECKSUM}":"{_KIND}{checksum:08x}"'.encode())
    with open(path, "wb") as file:
        file.write(first + text)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())  # before it gets its name, or a power cut may leave the name alone


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: unlike numbers, bits are also equal where both are NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
