"""Tensors on disk: only safetensors, never an incomplete file under its final name, and every changed bit is noticed.

A file written here has a CRC-32 of all its bytes in its metadata; reading checks it. Files from other programs and from
earlier versions have none and are read without the check.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from .files import whole
from .types import MudiError

_AT_ONCE = 2**20
_CHECKSUM, _KIND = "mudi_checksum", "crc32:"
_NONE = f"{_KIND}{0:08x}"
"""Takes the place of the checksum in the header while the checksum is computed."""
_MARK = re.compile(rb'"mudi_checksum":"crc32:([0-9a-f]{8})"')
_OURS = b'{"data_offsets":'
"""Begins the entry of a tensor in files written here: keys are sorted, unlike in files of the safetensors library."""


LONGEST_HEADER = 16 * 2**20
"""Most bytes of the list of tensors in a safetensors file: SDXL has 0.4 MB, a LoRA of 20,000 layers 5 MB. A longer list
takes gigabytes to read."""


class BadWeights(MudiError):
    """A file of weights that cannot be read or belongs to another model."""


class BadTensorFile(MudiError):
    """A file of tensors that cannot be written, or is missing or damaged."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write under a temporary name, read back, compare every bit, and only then rename to ``path``.

    ``tensors`` are on the CPU. Make missing folders. Raise `BadTensorFile`; an older file then stays complete.
    """
    path = Path(path)
    data = save({key: value.contiguous() for key, value in tensors.items()}, {**metadata, _CHECKSUM: _NONE})
    try:
        for again in (True, False):
            try:
                with whole(path) as temporary:
                    _write(temporary, data)
                    if not _holds(temporary, tensors, metadata):
                        raise BadTensorFile(f"{path.name} does not hold the values that were written. Check the disk.")
                return
            except FileNotFoundError:
                # On a file system without locks another machine may have taken it for an incomplete file.
                if not again:
                    raise
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(f"Cannot write {path}: {error}. Choose a folder that is writable and has space.") from error


def read_tensors(
    path: Path, *, mapped: bool = False, checked: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors and the metadata without the checksum. Raise `BadTensorFile`.

    ``mapped``: the tensors are views of the file, which must then stay as it is; on Windows nobody can replace it.
    ``checked``: also refuse a file without a checksum.
    """
    if not os.path.isfile(path):
        raise BadTensorFile(f"There is no file {path}.")
    try:
        _verify(path, checked)
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BadTensorFile(
            f"{path} is not a complete safetensors file ({error}). Copy it or make it again."
        ) from error
    metadata.pop(_CHECKSUM, None)
    return tensors if mapped else {key: value.clone() for key, value in tensors.items()}, metadata


def read_foreign(path: Path, what: str) -> dict[str, Any]:
    """Return what a file of another program holds by name: safetensors, or a pickle from which only tensors are read.

    ``what`` it should be, such as "SAM checkpoint", stands in the message. Raise `BadWeights`.
    """
    if path.suffix != ".safetensors" and _torch() < (2, 6):
        raise BadWeights(
            f"{path} is a {path.suffix} file, and in torch {torch.__version__} such a file can run code even when only "
            f"tensors are read (CVE-2025-32434). Update torch to 2.6 or newer, or use the same {what} as .safetensors."
        )
    try:
        if path.suffix == ".safetensors":
            check_header(path)
            return load_file(path)
        # Tensors only: a downloaded checkpoint must not be able to run code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file can raise any error
        raise BadWeights(
            f"{path} could not be read as a {what}: damaged, or not tensors. Download it again."
        ) from error
    return state if isinstance(state, dict) else {}


def _torch() -> tuple[int, int]:
    """Return the major and minor version of torch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose list of tensors would take gigabytes to read. Raise `BadWeights`."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise BadWeights(f"{path} could not be read ({error.strerror or error}).") from error
    if length > LONGEST_HEADER:
        raise BadWeights(f"{path} is not a complete safetensors file (a header of {length} bytes). Download it again.")


def _verify(path: Path, checked: bool) -> None:
    """Raise `BadTensorFile` when the bytes of a file do not match its checksum."""
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if length > LONGEST_HEADER:
            raise BadTensorFile(
                f"{path} is not a complete safetensors file (a header of {length} bytes). Copy it or make it again."
            )
        header = file.read(length)
        mark = _MARK.search(header)
        # A program that rewrites the file keeps our metadata but not the order of the keys.
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
    raise BadTensorFile(f"{path} is damaged: its bytes have changed since it was written. Copy it or make it again.")


def _holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Return whether a file that was just written has exactly these tensors and metadata."""
    _verify(path, checked=False)
    with safe_open(path, framework="pt") as file:
        described = dict(file.metadata() or {})
        del described[_CHECKSUM]
        # One by one, so that no part of the file is still mapped when it is renamed.
        return (
            described == dict(metadata)
            and set(file.keys()) == tensors.keys()
            and all(_same(file.get_tensor(key), tensors[key]) for key in tensors)
        )


def _write(path: Path, data: bytes) -> None:
    """Write safetensors with sorted keys in the header and the checksum in it.

    The library does not sort the keys, and equal runs must give equal files. The file is written here because the
    temporary file of the library stays behind when the process is killed.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(json.loads(data[8:begin]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # tensors start at a multiple of 8 bytes
    first, body = len(text).to_bytes(8, "little"), memoryview(data)[begin:]
    checksum = zlib.crc32(body, zlib.crc32(first + text))
    text = text.replace(f'"{_CHECKSUM}":"{_NONE}"'.encode(), f'"{_CHECKSUM}":"{_KIND}{checksum:08x}"'.encode())
    with open(path, "wb") as file:
        file.write(first + text)
        file.write(body)
        file.flush()
        os.fsync(
            file.fileno()
        )  # before the rename: after a power cut there could otherwise be an empty file of this name


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have equal bits: unlike numbers, bits are also equal where both are NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
