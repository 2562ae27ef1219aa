"""The photos of a folder, and the masks drawn for them: which files they are, and which are passed over."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..types import MudiError, Photo, readable
from .captions import SUFFIXES as CAPTIONS
from .captions import caption_file, read_caption
from .picture_file import SUFFIXES, BadPhoto, pixel_count, read_mask, read_photo

log = logging.getLogger(__name__)

OTHER_PICTURES = frozenset(
    ".heic .heif .avif .gif .jxl .jp2 .psd .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .tga .svg".split()
) - frozenset(SUFFIXES)
"""Picture files that cannot be read; a warning names them, because the user may rely on them."""
MASK_PREFIX = "mask_"
MOST_PIXELS_TOGETHER = 1_000_000_000
"""Most pixels of all photos read at once: 40 photos of 24 megapixels, 3 GB when decoded."""
MOST_PIXELS_DECODED = 60_000_000
"""More pixels than these together stay packed, where that is asked for: 180 MB when decoded."""
_PUT_PHOTOS = "Put at least one photo of the subject there; five are better."


class NoPhotos(MudiError):
    """A folder without photos, or a folder that does not exist."""


class MissingMask(MudiError):
    """A photo whose mask is not in the folder."""


def read_photos(
    folder: Path,
    on_step: Callable[[int, int], None] | None = None,
    within: Path | None = None,
    packed: bool = False,
) -> tuple[Photo, ...]:
    """Read all photos of a folder, in the order of `photo_paths`, each with the caption beside it, if there is one.

    `on_step` is called with photos done and photos in all. ``packed``: many large photos stay packed, and each is
    decoded when it is used. A warning names files that look like photos but are not read. Raise `NoPhotos`, or
    `BadPhoto` or `captions.BadCaption` with the name of the file.
    """
    paths = photo_paths(folder)
    left_out = passed_over(folder)
    if left_out:
        log.warning(left_out)
    packed = are_many(paths, within) and packed
    photos: list[Photo] = []
    for path in paths:
        caption = read_caption(path, within)  # first: it is read faster than the photo
        photos.append(replace(read_photo(path, within, packed), caption=caption))
        if on_step is not None:
            on_step(len(photos), len(paths))
    return tuple(photos)


def are_many(paths: Iterable[Path], within: Path | None = None) -> bool:
    """Return whether these pictures together have more than `MOST_PIXELS_DECODED`; only the file headers are read.

    Raise `BadPhoto` when they are too large for memory.
    """
    total = 0
    for path in paths:
        try:
            total += pixel_count(path, within)
        except BadPhoto:  # said when the file is read
            log.debug("%s does not tell its size", readable(path))
        if total > MOST_PIXELS_TOGETHER:
            raise BadPhoto(
                f"The photos up to {path} have more than {MOST_PIXELS_TOGETHER // 1_000_000:,} megapixels together, "
                "too much for the memory. Make them smaller: sides of 2000 px are enough."
            )
    return total > MOST_PIXELS_DECODED


def photo_paths(folder: Path) -> list[Path]:
    """Return the photos in a folder, in natural order ("2.jpg" before "10.jpg"), without ``mask_*``.

    Raise `NoPhotos`.
    """
    photos, others = _sorted_out(folder)
    if not photos:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others if not path.is_dir())
        found = [f"{count} file(s) with {suffix}" for suffix, count in kinds.most_common(3)]
        found += [f"the folder '{path.name}', which you can name itself" for path in others if path.is_dir()][:3]
        unread = [path.name for path in others if path.suffix.lower() in OTHER_PICTURES]
        todo = f"Save {readable(_some(unread))} as JPEG or PNG." if unread else _PUT_PHOTOS
        raise NoPhotos(
            f"{folder} holds no photo ({', '.join(SUFFIXES)}), {'only ' + ', '.join(found) if found else 'it is empty'}"
            f". {todo}"
        )
    return photos


def passed_over(folder: Path) -> str:
    """Return a sentence about files beside a folder's photos that are not used; "" without any. Raise `NoPhotos`."""
    photos, others = _sorted_out(folder)
    stems = {path.stem for path in photos}
    pictures = [path.name for path in others if path.suffix.lower() in OTHER_PICTURES and path.stem not in stems]
    masks = [path.name for path in others if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    masks = [name for name in masks if Path(name).stem.removeprefix(MASK_PREFIX) not in stems]
    used = [caption_file(photo) for photo in photos]
    captions = [path.name for path in others if path.suffix in CAPTIONS and path.stem in stems and path not in used]
    folders = [path.name for path in others if path.is_dir() and _holds_photos(path)]
    left_out = [
        (pictures, "of a kind that cannot be read: save them as JPEG or PNG"),
        (masks, "masks by their names, without a photo: rename them if they are photos"),
        (captions, "second captions of a photo: of .txt and .caption the first is read"),
        (folders, "folders with photos inside: name each of them instead"),
    ]
    said = [f"{_some(names)} ({why})" for names, why in left_out if names]
    return readable(f"Not used in {folder.name}: {'; '.join(said)}.") if said else ""


def _some(names: list[str]) -> str:
    listed = ", ".join(sorted(names)[:5])
    return listed if len(names) <= 5 else f"{listed} and {len(names) - 5} more"


def _holds_photos(folder: Path) -> bool:
    try:
        return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
    except OSError:
        return False


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the photos of a folder in natural order, and its other contents. Raise `NoPhotos`."""
    if not folder.is_dir():
        raise NoPhotos(f"There is no folder {folder}. Make it and put photos of the subject there, or name another.")
    try:
        every = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=_natural)
        photos = [
            path
            for path in every
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(MASK_PREFIX) and path.is_file()
        ]
    except OSError as error:
        raise NoPhotos(f"{folder} cannot be read: {error.strerror or error}.") from error
    used = set(photos)
    return photos, [path for path in every if path not in used]


def read_masks(folder: Path, photos: Sequence[Photo], packed: bool = False) -> tuple[Tensor, ...]:
    """Read the hand-drawn masks of `photos`: ``mask_<photo>.png`` in `folder`, or ``<photo>.png`` in a folder of masks.

    Raise `MissingMask` with the name to save it as, or `BadPhoto`.
    """
    return tuple(read_mask(_mask_path(folder, photo), photo, packed=packed) for photo in photos)


def _mask_path(folder: Path, photo: Photo) -> Path:
    stem = (photo.source or Path(photo.name)).stem
    names = [MASK_PREFIX + stem + suffix for suffix in SUFFIXES]
    if photo.source is None or photo.source.parent.resolve() != folder.resolve():
        names += [stem + suffix for suffix in SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingMask(f"{photo.name} has no mask in {folder}: draw one and save it there as {names[2]}.")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.casefold())]
