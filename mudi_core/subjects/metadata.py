"""The ``metadata.jsonl`` of a dataset folder: the names of the subjects, and the files of each photo.

First ``{"id": {"a": "<token> <class noun>", ...}}``, then one line per photo with ``id``, ``file_name``, ``mask_path``
and ``text``.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import NotText, decoded
from ..names import leads_out
from ..types import MAX_SUBJECTS, MudiError
from .saving import METADATA

CLASS_METADATA = "class_metadata.jsonl"
"""The official code's file for priors: its names are class nouns without tokens."""
IDS = "abcdefghijk"
MOST_PHOTOS = 10_000
_CHECKSUMS = "crc32"
"""The key of the checksums of a line, its photo and its mask. The official code ignores it."""
LONGEST = 16_000_000
"""Most bytes of a metadata.jsonl: far more than this many photos need."""


class BadDataset(MudiError):
    """A folder that is not a dataset, or a metadata line that cannot be used; the sentence has its number."""


@dataclass(frozen=True)
class Record:
    """The line of one photo."""

    line: int
    id: str
    photo: str
    mask: str
    text: str
    checksums: tuple[str, str] | None = None
    """Checksums of the two files when they were saved."""


def read_metadata(
    folder: Path, classes: bool = False, within: Path | None = None
) -> tuple[dict[str, str], list[Record]]:
    """Return the names of the subjects by their letters, and the photos.

    Raise `BadDataset` with the number of the line.

    ``classes``: the names are class nouns without tokens. ``within``: the folder that no link may lead out of.
    """
    path, (first, *others) = _read_lines(folder, within)
    names = _names(first[1], f"{path}, line {first[0]}", classes or path.name == CLASS_METADATA)
    records: dict[tuple[str, str], Record] = {}
    for number, fields in others:
        record = _record(number, fields, names, path)
        if (record.photo, record.id) in records:
            raise BadDataset(f"{path}, line {number}: '{record.photo}' is named twice. Remove one of the lines.")
        records[record.photo, record.id] = record
    return names, list(records.values())


def _read_lines(folder: Path, within: Path | None = None) -> tuple[Path, list[tuple[int, dict[str, Any]]]]:
    """Return the path of the file, and its lines (at least one) with their numbers."""
    path = folder / METADATA
    if not path.is_file() and (folder / CLASS_METADATA).is_file():
        path = folder / CLASS_METADATA
    if not path.is_file():
        raise BadDataset(f"{folder} is not a dataset: it has no {METADATA}. Make one with 'prepare', or name another.")
    try:
        with path.open("rb") as file:
            if within is not None and leads_out(file, path, within):
                raise BadDataset(f"{path} is a link that leads out of {within}. Replace it by a copy of its file.")
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror or error}.") from error
    too_long = f"{path} is too long: a dataset has up to {MOST_PHOTOS} photos. Split it into several."
    if len(data) > LONGEST:
        raise BadDataset(too_long)
    try:
        text = decoded(data, path).encode()  # bytes: text would also split at rare line separators
    except NotText as error:
        raise BadDataset(str(error)) from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) > MOST_PHOTOS + 1:
        raise BadDataset(too_long)
    if not lines:
        raise BadDataset(f"{path} is empty.")
    return path, [(number, _parse(line, f"{path}, line {number}")) for number, line in lines]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadDataset(f"{where} is not valid JSON: {error.msg} at column {error.colno}. Repair the line.") from None
    except (ValueError, RecursionError):  # very long numbers, or very deep brackets
        raise BadDataset(
            f"{where} cannot be read as JSON: it is nested too deeply, or its numbers are too long."
        ) from None
    if not isinstance(fields, dict):
        raise BadDataset(f"{where} should be an object in braces, got {line.decode()[:40]}.")
    return fields


def _names(fields: dict[str, Any], where: str, classes: bool) -> dict[str, str]:
    names = fields.get("id")
    if not isinstance(names, dict) or not names:
        raise BadDataset(f'{where} should name the subjects: {{"id": {{"a": "<token> <class noun>"}}}}.')
    if len(names) > MAX_SUBJECTS:
        raise BadDataset(f"{where} names {len(names)} subjects; a set holds up to {MAX_SUBJECTS}.")
    for id, name in names.items():
        if not isinstance(name, str) or len(name.split(maxsplit=1)) < 2 - classes:
            raise BadDataset(
                f"{where}: subject '{id}' should be '<token> <class noun>' such as 'olis corgi', got {name!r}."
            )
    if classes:
        return {id: f"class_{IDS[place]} {name.strip()}" for place, (id, name) in enumerate(names.items())}
    return {id: " ".join(name.split(maxsplit=1)) for id, name in names.items()}


def _record(number: int, fields: dict[str, Any], names: dict[str, str], metadata: Path) -> Record:
    where, folder = f"{metadata}, line {number}", metadata.parent
    id, text = fields.get("id"), fields.get("text", "")
    if not isinstance(id, str) or id not in names:
        raise BadDataset(f"{where}: there is no subject {id!r}; line 1 names: {', '.join(names)}.")
    if not isinstance(text, str):
        raise BadDataset(f"{where}: 'text' should be a text, got {text!r}.")
    paths = []
    for key in ("file_name", "mask_path"):
        if key not in fields:
            raise BadDataset(f"{where} has no '{key}'.")
        name = inside(fields[key])
        if name is None:
            raise BadDataset(
                f"{where}: the {key} {fields[key]!r} leads out of the dataset folder. Put the file into the folder."
            )
        if not _is_file(folder / name):
            raise BadDataset(f"{where}: there is no file '{name}' in {folder}.")
        paths.append(name)
    sums = _checksums(fields)
    return Record(number, id, paths[0], paths[1], text, (sums[1], sums[2]) if len(sums) == 3 else None)


def with_checksums(fields: dict[str, Any], files: Sequence[str] = ()) -> dict[str, Any]:
    """Return a line with checksums: of itself, and of the files that it names."""
    return {**fields, _CHECKSUMS: [_of_line(fields), *files]}


def checksum(path: Path) -> str:
    """Return the CRC-32 of a file, hexadecimal. Raise `OSError`."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def changed(folder: Path) -> str:
    """Return a sentence that names what has changed in a set since it was saved; "" when nothing has.

    Sets without checksums give "". Raise `BadDataset`.
    """
    path, lines = _read_lines(folder)
    if not any(_CHECKSUMS in fields for _, fields in lines):
        return ""
    found = []
    for number, fields in lines:
        names = [inside(fields.get(key)) for key in ("file_name", "mask_path") if key in fields]
        first, *sums = _checksums(fields) or [""]
        if first != _of_line(fields) or len(sums) != len(names):
            found.append(f"{path.name}, line {number}")
        found += [name for name, was in zip(names, sums, strict=False) if name and _sum_of(folder / name) != was]
    listed = "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return (
        f"Changed since it was saved in {folder.name}: {listed}. If you did not change it, it is damaged: use a copy."
        if found
        else ""
    )


def _checksums(fields: dict[str, Any]) -> list[str]:
    sums = fields.get(_CHECKSUMS)
    return [str(one) for one in sums] if isinstance(sums, list) else []


def _of_line(fields: dict[str, Any]) -> str:
    text = json.dumps({key: value for key, value in fields.items() if key != _CHECKSUMS}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _sum_of(path: Path) -> str:
    try:
        return checksum(path)
    except OSError:
        return ""


def _is_file(path: Path) -> bool:
    """Return whether a file has this name; a name that no file system accepts belongs to no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def inside(name: object) -> str | None:
    """Return a relative path with forward slashes that stays inside its folder, or None."""
    if not isinstance(name, str) or "\0" in name or re.match(r"[A-Za-z]:", name):
        return None
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path) if path.parts and not path.is_absolute() and ".." not in path.parts else None
