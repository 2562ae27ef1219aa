"""A `SubjectSet` as the dataset folder of the official MuDI code, read and written without loss.

The folder holds photos, their masks and ``metadata.jsonl``: first ``{"id": {"a": "<token> <class noun>", ...}}``, then
one line per photo with ``id``, ``file_name``, ``mask_path`` and ``text``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .levels import to_bytes
from .photos import MASK_PREFIX, SUFFIXES, check_sum, read_mask, read_masks, read_photo, read_photos
from .saving import METADATA, CannotWrite, held, is_ours, stage, unchanged
from .types import MAX_SUBJECTS, MudiError, Photo, Subject, SubjectSet

__all__ = [
    "METADATA",
    "CannotWrite",
    "change_subjects",
    "read_masks",
    "read_photo",
    "read_photos",
    "read_priors",
    "read_subjects",
    "write_subjects",
]

CLASS_METADATA = "class_metadata.jsonl"
"""The official code's for priors: the names in it are classes, without tokens."""
IDS = "abcdefghijk"
MOST_PHOTOS = 10_000
LONGEST = 16_000_000
"""Bytes of a metadata.jsonl: far more than so many photos need."""

OnPhoto = Callable[[int, int], None]
"""``(photos done, photos in all)``; an exception from it ends the work and leaves the folder as it was."""


class BadDataset(MudiError):
    """A folder that is no dataset, or a line of its metadata that cannot be used; the sentence has its number."""


@dataclass(frozen=True)
class _Record:
    """One photo's line."""

    line: int
    id: str
    photo: str
    mask: str
    text: str


def read_subjects(folder: Path, on_step: OnPhoto | None = None, written: SubjectSet | None = None) -> SubjectSet:
    """Read a dataset folder. Photo names are the file names of the metadata, in its order.

    Pixels that are those of the set that was just ``written`` there share its memory.
    Raises `BadDataset` with the number of the line, `BadPhoto` with the name of the file, `BadSubject`.
    """
    return unchanged(folder, lambda: _read(folder, on_step, written))


def read_priors(folder: Path, subjects: SubjectSet, on_step: OnPhoto | None = None) -> SubjectSet:
    """Read pictures of the classes of ``subjects`` from a folder of ours or of the official code.

    Names that do not begin with the subjects' tokens are classes; theirs become tokens that nobody reads. Raises as
    `read_subjects` does.
    """

    def read() -> SubjectSet:
        names, _ = _read_metadata(folder, classes=True)
        is_theirs = any(name.split()[1] not in subjects.tokens for name in names.values())
        return _read(folder, on_step, classes=is_theirs)

    return unchanged(folder, read)


def _read(
    folder: Path, on_step: OnPhoto | None = None, written: SubjectSet | None = None, classes: bool = False
) -> SubjectSet:
    names, records = _read_metadata(folder, classes)
    check_sum(folder / record.photo for record in records)
    one_more = _counted(on_step, len(records))
    known = iter([] if written is None else [one for subject in written for one in _pixels(subject)])
    return SubjectSet(
        tuple(_read_subject(folder, names[id], [r for r in records if r.id == id], known, one_more) for id in names)
    )


def _pixels(subject: Subject) -> list[tuple[Tensor, Tensor]]:
    return [(photo.image, mask) for photo, mask in zip(subject.photos, subject.masks, strict=True)]


def _shared(read: Tensor, known: Tensor | None) -> Tensor:
    return known if known is not None and torch.equal(read, known) else read


def _counted(on_step: OnPhoto | None, photos: int) -> Callable[[], None]:
    """Tells `on_step` of one more photo at each call."""
    numbers = count(1)
    return lambda: None if on_step is None else on_step(next(numbers), photos)


def _read_subject(
    folder: Path,
    name: str,
    records: list[_Record],
    known: Iterator[tuple[Tensor, Tensor]],
    one_more: Callable[[], None],
) -> Subject:
    token, _, class_noun = name.partition(" ")
    photos, masks = [], []
    for record in records:
        photo = read_photo(folder / record.photo)
        image, mask = next(known, (None, None))
        masks.append(_shared(read_mask(folder / record.mask, photo), mask))
        caption = "" if record.text == default_caption(name) else record.text
        photos.append(replace(photo, name=record.photo, image=_shared(photo.image, image), caption=caption))
        one_more()
    return Subject(token, class_noun, tuple(photos), tuple(masks))


def default_caption(name: str) -> str:
    """What the file says of a photo without a caption; such a text is read as no caption again."""
    return f"a photo of {name}"


def _read_metadata(folder: Path, classes: bool = False) -> tuple[dict[str, str], list[_Record]]:
    """The subjects' names by their letters, and the photos; ``classes``: what is named has no token."""
    path = folder / METADATA
    if not path.is_file() and (folder / CLASS_METADATA).is_file():
        path, classes = folder / CLASS_METADATA, True
    if not path.is_file():
        raise BadDataset(f"{folder} is not a dataset: it has no {METADATA}. Make one with 'prepare', or name another.")
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1).removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(text) > LONGEST or len(lines) > MOST_PHOTOS + 1:
        raise BadDataset(f"{path} is too long: a dataset has up to {MOST_PHOTOS} photos. Make several of it.")
    if not lines:
        raise BadDataset(f"{path} is empty.")
    first, *others = ((number, _parse(line, f"{path}, line {number}")) for number, line in lines)
    names = _names(first[1], f"{path}, line {first[0]}", classes)
    records: dict[tuple[str, str], _Record] = {}
    for number, fields in others:
        record = _record(number, fields, names, path)
        if (record.photo, record.id) in records:
            raise BadDataset(f"{path}, line {number}: '{record.photo}' was named before. Remove one of the lines.")
        records[record.photo, record.id] = record
    return names, list(records.values())


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError:
        raise BadDataset(f"{where} is not UTF-8 text. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise BadDataset(f"{where} is not valid JSON: {error.msg} at column {error.colno}. Repair the line.") from None
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets a thousand deep
        raise BadDataset(
            f"{where} is no JSON of a photo: it is nested too deeply, or its numbers are too long."
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


def _record(number: int, fields: dict[str, Any], names: dict[str, str], metadata: Path) -> _Record:
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
        inside = _inside(fields[key])
        if inside is None:
            raise BadDataset(f"{where}: the {key} {fields[key]!r} leaves the dataset folder. Put the file into it.")
        if not _is_file(folder / inside):
            raise BadDataset(f"{where}: there is no file '{inside}' in {folder}.")
        paths.append(inside)
    return _Record(number, id, paths[0], paths[1], text)


def _is_file(path: Path) -> bool:
    """Names that no file system takes are those of no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _inside(name: object) -> str | None:
    """A relative path with forward slashes that stays below its folder, or None."""
    if not isinstance(name, str) or "\0" in name or re.match(r"[A-Za-z]:", name):
        return None
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path) if path.parts and not path.is_absolute() and ".." not in path.parts else None


def write_subjects(subjects: SubjectSet, folder: Path, on_step: OnPhoto | None = None) -> Path:
    """Write the set to `folder`, which is new, empty, or a dataset that it replaces; return its full path.

    A photo whose file still has the same pixels is copied byte for byte, any other becomes an 8-bit PNG; masks become
    8-bit PNGs. A name that two photos share gets the subject's letter in front. The new set is made beside the old one
    and then takes its place; files there that are not overwritten stay. Other writers wait. Raises `CannotWrite`.
    """
    with _writable(folder) as folder:
        _write(subjects, folder, on_step)
    return folder


def change_subjects(folder: Path, change: Callable[[SubjectSet | None], SubjectSet]) -> tuple[SubjectSet, Path]:
    """Write what ``change`` makes of the set in `folder`, or of None where none is; give both as they are then.

    Nobody else writes in between, so that two who add a subject at once do not lose one. Raises as `read_subjects` and
    `write_subjects` do, and what ``change`` raises.
    """
    with _writable(folder) as folder:
        together = change(_read(folder) if (folder / METADATA).exists() else None)
        _write(together, folder)
    return together, folder


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """The folder's full path, for one writer at a time. Raises `CannotWrite`."""
    folder = Path(os.path.realpath(folder))
    try:
        if folder.exists() and not (folder.is_dir() and (_is_empty(folder) or (folder / METADATA).exists())):
            raise CannotWrite(f"{folder} is there and is no dataset. Choose a new folder; nothing was changed.")
        with held(folder):
            yield folder
    except OSError as error:
        raise CannotWrite(
            f"{folder} cannot be written: {error.strerror or error}. What was there is unchanged. "
            "Choose another folder, or make room."
        ) from error


def _is_empty(folder: Path) -> bool:
    return all(is_ours(path) for path in folder.iterdir())


def _write(subjects: SubjectSet, folder: Path, on_step: OnPhoto | None = None) -> None:
    with stage(folder) as fresh:
        _write_files(subjects, fresh, _counted(on_step, sum(len(subject.photos) for subject in subjects)))
        _read_metadata(fresh)  # what cannot be read back must not replace anything


def _write_files(subjects: SubjectSet, folder: Path, one_more: Callable[[], None]) -> None:
    lines: list[dict[str, Any]] = [{"id": {id: subject.name for id, subject in zip(IDS, subjects, strict=False)}}]
    taken = {METADATA}
    for id, subject in zip(IDS, subjects, strict=False):
        for photo, mask in zip(subject.photos, subject.masks, strict=True):
            unchanged = _is_unchanged(photo)
            name = _free_name(_file_name(photo, unchanged), f"{id}_", taken)
            path = PurePosixPath(name)
            mask_name = _free_name(str(path.with_name(f"{MASK_PREFIX}{path.stem}.png")), f"{id}_", taken)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if unchanged and photo.source is not None:
                shutil.copyfile(photo.source, folder / name)
            else:
                _write_png(photo.image, folder / name)
            _write_png(mask, folder / mask_name)
            text = photo.caption or default_caption(subject.name)
            lines.append({"id": id, "file_name": name, "mask_path": mask_name, "text": text})
            one_more()
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / METADATA).write_text(text, encoding="utf-8", newline="\n")


def _is_unchanged(photo: Photo) -> bool:
    if photo.source is None:
        return False
    try:
        return torch.equal(read_photo(photo.source).image, photo.image)
    except MudiError:
        return False  # the file is gone or was replaced: the pixels in memory are what the user means


def _file_name(photo: Photo, unchanged: bool) -> str:
    name = _inside(photo.name)
    if name is None:
        raise CannotWrite(f"'{photo.name}' cannot be the name of a file in a dataset. Rename the photo.")
    path = PurePosixPath(name)
    if unchanged or path.suffix == ".png":
        return name
    return str(path.with_suffix(".png")) if path.suffix.lower() in SUFFIXES else f"{name}.png"


def _free_name(name: str, prefix: str, taken: set[str]) -> str:
    """The name, with `prefix` in front until it is free; case does not count, as on most people's disks."""
    while name.casefold() in taken:
        path = PurePosixPath(name)
        name = str(path.with_name(prefix + path.name))
    taken.add(name.casefold())
    return name


def _write_png(values: Tensor, path: Path) -> None:
    Image.fromarray(to_bytes(values)).save(path, format="PNG")
