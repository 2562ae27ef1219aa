"""A `SubjectSet` as the dataset folder of the official MuDI code, read and written without loss.

The folder holds photos, their masks and ``metadata.jsonl``: first ``{"id": {"a": "<token> <class noun>", ...}}``, then
one line per photo with ``id``, ``file_name``, ``mask_path`` and ``text``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from ..levels import to_bytes
from ..names import taken_everywhere
from ..types import MudiError, Photo, Subject, SubjectSet, check_tokens
from .metadata import IDS, BadDataset, Record, changed, checksum, inside, read_metadata, with_checksums
from .photos import MASK_PREFIX, are_many, read_masks, read_photos
from .picture_file import SUFFIXES, read_mask, read_photo
from .saving import METADATA, OURS, CannotWrite, held, is_ours, stage, unchanged

__all__ = [
    "METADATA",
    "BadDataset",
    "CannotWrite",
    "add_subject",
    "changes",
    "read_masks",
    "read_photo",
    "read_photos",
    "read_priors",
    "read_subjects",
    "write_subjects",
]

log = logging.getLogger(__name__)

OnPhoto = Callable[[int, int], None]
"""``(photos done, photos in all)``; an exception from it stops the work and leaves the folder as it was."""


def read_subjects(
    folder: Path,
    on_step: OnPhoto | None = None,
    written: SubjectSet | None = None,
    within: Path | None = None,
    packed: bool = False,
) -> SubjectSet:
    """Read a dataset folder. The photos have the file names of the metadata as names, in its order.

    Pixels equal to those of the set just ``written`` there share its memory. ``within``: the folder that no link may
    lead out of. ``packed``: many large photos stay packed, and each is decoded when it is used. Raise `BadDataset` with
    the number of the line, `BadPhoto` with the name of the file, or `BadSubject`.
    """
    return _with_warning(folder, lambda: _read(folder, on_step, written, within=within, packed=packed))


def changes(folder: Path) -> str:
    """Return a sentence that names what has changed in a set since it was saved, or "".

    Raise as `read_subjects` does.
    """
    return unchanged(folder, lambda: changed(folder))


def _with_warning(folder: Path, read: Callable[[], SubjectSet]) -> SubjectSet:
    """Return what is read; warn when files have changed since they were saved: a mask may be redrawn on purpose."""
    subjects, warning = unchanged(folder, lambda: (read(), changed(folder)))
    if warning:
        log.warning(warning)
    return subjects


def read_priors(folder: Path, subjects: SubjectSet, on_step: OnPhoto | None = None, packed: bool = False) -> SubjectSet:
    """Read pictures of the classes of ``subjects`` from a folder of ours or of the official code.

    Names that do not begin with the tokens of the subjects are class nouns; they get the subjects' tokens, which no
    caption uses. ``packed``, and what is raised: as in `read_subjects`.
    """

    def read() -> SubjectSet:
        names, _ = read_metadata(folder, classes=True)
        is_theirs = any(name.split()[1] not in subjects.tokens for name in names.values())
        return _read(folder, on_step, classes=is_theirs, packed=packed)

    return _with_warning(folder, read)


def _read(
    folder: Path,
    on_step: OnPhoto | None = None,
    written: SubjectSet | None = None,
    within: Path | None = None,
    classes: bool = False,
    packed: bool = False,
) -> SubjectSet:
    names, records = read_metadata(folder, classes, within)
    packed = are_many((folder / record.photo for record in records), within) and packed
    one_more = _counted(on_step, len(records))
    known = iter([] if written is None else [one for subject in written for one in _pixels(subject)])
    of = {id: [record for record in records if record.id == id] for id in names}
    return SubjectSet(tuple(_read_subject(folder, names[id], of[id], known, one_more, within, packed) for id in names))


def _pixels(subject: Subject) -> list[tuple[Tensor, Tensor]]:
    return [(photo.image, mask) for photo, mask in zip(subject.photos, subject.masks, strict=True)]


def _shared(read: Tensor, known: Tensor | None) -> Tensor:
    return known if known is not None and torch.equal(read, known) else read


def _counted(on_step: OnPhoto | None, photos: int) -> Callable[[], None]:
    """Return a function that tells `on_step` of one more photo at each call."""
    numbers = count(1)
    return lambda: None if on_step is None else on_step(next(numbers), photos)


def _read_subject(
    folder: Path,
    name: str,
    records: list[Record],
    known: Iterator[tuple[Tensor, Tensor]],
    one_more: Callable[[], None],
    within: Path | None,
    packed: bool,
) -> Subject:
    token, _, class_noun = name.partition(" ")
    photos, masks = [], []
    for record in records:
        photo = read_photo(folder / record.photo, within, packed)
        image, mask = next(known, (None, None))
        masks.append(_shared(read_mask(folder / record.mask, photo, within, packed), mask))
        caption = "" if record.text == default_caption(name) else record.text
        photos.append(replace(photo, name=record.photo, image=_shared(photo.image, image), caption=caption))
        one_more()
    return Subject(token, class_noun, tuple(photos), tuple(masks))


def default_caption(name: str) -> str:
    """Return the text in the file for a photo without a caption; reading it gives no caption again."""
    return f"a photo of {name}"


def write_subjects(
    subjects: SubjectSet, folder: Path, on_step: OnPhoto | None = None, within: Path | None = None
) -> Path:
    """Write the set to `folder`, which is new, empty, or a dataset to be replaced; return its full path.

    A photo whose file still has the same pixels is copied byte for byte, any other becomes an 8-bit PNG; masks become
    8-bit PNGs. When two photos share a name, it gets the subject's letter in front. The new set is made beside the old
    one and then replaces it; other files there stay. Other writers wait. ``within``: the folder that no link may lead
    out of. Raise `CannotWrite`.
    """
    with _writable(folder, within) as folder:
        _write(subjects, folder, on_step)
    return folder


def add_subject(folder: Path, subject: Subject, replace: bool = False) -> tuple[list[tuple[str, int]], Path]:
    """Add a subject to the set in `folder`, which may be new; return each name with its number of photos, and the path.

    ``replace``: the subject replaces one with the same token. The files of other subjects are copied as they are, not
    decoded. Other writers wait, so that nothing is lost when two add a subject at the same time. Raise `BadSubject`
    when the token is already used and for a twelfth subject, otherwise as `read_subjects` and `write_subjects` do.
    """
    with _writable(folder) as folder:
        there = _on_disk(folder) if (folder / METADATA).exists() else []
        tokens = [one.token for one in there]
        together: list[Subject | _OnDisk] = list(there)
        if replace and subject.token in tokens:
            together[tokens.index(subject.token)] = subject
        else:
            check_tokens([*tokens, subject.token])
            together.append(subject)
        _write(together, folder)
    return [(one.name, len(one.photos)) for one in together], folder


@dataclass(frozen=True)
class _OnDisk:
    """A subject whose files are copied as they are."""

    name: str
    folder: Path
    photos: tuple[Record, ...]

    @property
    def token(self) -> str:
        return self.name.split()[0]


def _on_disk(folder: Path) -> list[_OnDisk]:
    if warning := changed(folder):
        log.warning(warning)
    names, records = read_metadata(folder)
    return [_OnDisk(name, folder, tuple(record for record in records if record.id == id)) for id, name in names.items()]


@contextmanager
def _writable(named: Path, within: Path | None = None) -> Iterator[Path]:
    """Yield the full path of the folder, for one writer at a time. Raise `CannotWrite`."""
    folder = Path(os.path.realpath(named))
    if within is not None and Path(os.path.realpath(within)) not in folder.parents:
        raise CannotWrite(f"{named} is a link that leads out of {within}. Remove it, or choose another name.")
    try:
        if folder.exists() and not folder.is_dir():
            raise _no_dataset(folder)
        with held(folder):  # only now no files of a set are still moving
            if not (_is_empty(folder) or (folder / METADATA).exists()):
                raise _no_dataset(folder)
            yield folder
    except OSError as error:
        raise CannotWrite(
            f"{folder} cannot be written: {error.strerror or error}. Its contents are unchanged. "
            "Choose another folder, or free some space."
        ) from error


def _no_dataset(folder: Path) -> CannotWrite:
    return CannotWrite(f"{folder} exists and is not a dataset. Choose a new folder; nothing was changed.")


def _is_empty(folder: Path) -> bool:
    return all(is_ours(path) for path in folder.iterdir())


def _write(subjects: Iterable[Subject | _OnDisk], folder: Path, on_step: OnPhoto | None = None) -> None:
    subjects = list(subjects)
    with stage(folder) as fresh:
        _write_files(subjects, fresh, _counted(on_step, sum(len(subject.photos) for subject in subjects)))
        read_metadata(fresh)  # a set that cannot be read back must not replace anything


@dataclass(frozen=True)
class _Entry:
    """One photo of a set to write, and its mask: pixels, or files to copy."""

    name: str
    photo: Tensor | Path
    mask: Tensor | Path
    text: str
    checksums: tuple[str, str] | None = None
    """The earlier checksums of copied files, so that damage since then is still noticed."""


def _entries(subject: Subject | _OnDisk, copy: Path) -> Iterator[_Entry]:
    """Yield the photos of a subject; ``copy`` is a free name for a copy, which is taken over before the next one."""
    if isinstance(subject, _OnDisk):
        for one in subject.photos:
            photo, mask = subject.folder / one.photo, subject.folder / one.mask
            yield _Entry(_file_name(one.photo, True), photo, mask, one.text, one.checksums)
        return
    for given, pixels in zip(subject.photos, subject.masks, strict=True):
        unchanged = _copied_unchanged(given, copy)
        text = given.caption or default_caption(subject.name)
        yield _Entry(_file_name(given.name, unchanged), copy if unchanged else given.image, pixels, text)


def _write_files(subjects: Sequence[Subject | _OnDisk], folder: Path, one_more: Callable[[], None]) -> None:
    lines = [with_checksums({"id": {id: subject.name for id, subject in zip(IDS, subjects, strict=False)}})]
    taken, copy = {METADATA}, folder / f"{OURS}copy"
    for id, subject in zip(IDS, subjects, strict=False):
        for entry in _entries(subject, copy):
            name = _free_name(entry.name, f"{id}_", taken)
            path = PurePosixPath(name)
            suffix = entry.mask.suffix if isinstance(entry.mask, Path) else ".png"
            mask_name = _free_name(str(path.with_name(f"{MASK_PREFIX}{path.stem}{suffix}")), f"{id}_", taken)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if entry.photo is copy:
                copy.rename(folder / name)
            else:
                _put(entry.photo, folder / name)
            _put(entry.mask, folder / mask_name)
            line = {"id": id, "file_name": name, "mask_path": mask_name, "text": entry.text}
            sums = entry.checksums or (checksum(folder / name), checksum(folder / mask_name))
            lines.append(with_checksums(line, sums))
            one_more()
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / METADATA).write_text(text, encoding="utf-8", newline="\n")


def _put(content: Tensor | Path, path: Path) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        _write_png(content, path)


def _copied_unchanged(photo: Photo, copy: Path) -> bool:
    """Copy the file of a photo; return whether the copy has the same pixels, and keep it only then.

    The copy is looked at, not the file: that may be replaced between the look and the copying, also by a link.
    """
    if photo.source is None or not photo.source.is_file():
        return False
    try:
        shutil.copyfile(photo.source, copy)
        if torch.equal(read_photo(copy).image, photo.image):
            return True
    except (MudiError, FileNotFoundError):
        pass  # the file is missing or was replaced: the user means the pixels in memory
    copy.unlink(missing_ok=True)
    return False


def _file_name(of_photo: str, unchanged: bool) -> str:
    name = inside(of_photo)
    if name is None:
        raise CannotWrite(f"'{of_photo}' cannot be the name of a file in a dataset. Rename the photo.")
    path = PurePosixPath(*(_not_ours(taken_everywhere(part)) for part in PurePosixPath(name).parts))
    name = str(path)
    if unchanged or path.suffix == ".png":
        return name
    return str(path.with_suffix(".png")) if path.suffix.lower() in SUFFIXES else f"{name}.png"


def _not_ours(name: str) -> str:
    """Return a name that nobody takes for a file of a writer, which would be moved or removed."""
    return f"_{name}" if is_ours(Path(name)) else name


def _free_name(name: str, prefix: str, taken: set[str]) -> str:
    """Return the name, with `prefix` in front until it is free; case does not count, as on most disks."""
    while name.casefold() in taken:
        path = PurePosixPath(name)
        name = str(path.with_name(prefix + path.name))
    taken.add(name.casefold())
    return name


def _write_png(values: Tensor, path: Path) -> None:
    Image.fromarray(to_bytes(values)).save(path, format="PNG")
