"""Photos and masks from picture files: upright, RGB, 0..1, or a sentence about what is wrong with the file."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from ..levels import Levels
from ..names import leads_out
from ..types import MudiError, Photo, readable
from .captions import SUFFIXES as CAPTIONS
from .captions import caption_file, read_caption

log = logging.getLogger(__name__)

_AVIF: tuple[tuple[str, ...], tuple[str, ...]] = (
    ((".avif",), ("AVIF",)) if "avif" in features.get_supported() else ((), ())
)
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".jfif", ".bmp", ".tif", ".tiff", *_AVIF[0])
OTHER_PICTURES = frozenset(
    ".heic .heif .avif .gif .jxl .jp2 .psd .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .tga .svg".split()
) - frozenset(SUFFIXES)
"""Picture files that cannot be read; a warning names them, because the user may rely on them."""
MASK_PREFIX = "mask_"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *_AVIF[1])
"""Formats that are read, whatever the file name says: others that Pillow knows, such as PostScript, start programs."""
MOST_PIXELS = 65_000_000
"""Most pixels of a picture: photos from phones with 64 megapixels."""
MOST_PIXELS_TOGETHER = 1_000_000_000
"""Most pixels of all photos read at once: 40 photos of 24 megapixels, 3 GB when decoded."""
MOST_SCANS = 40
"""Most scans of a JPEG: cameras and editors write up to 14. Each scan takes as long as the whole picture."""
MOST_SEGMENTS = 10_000
"""Most segments of a JPEG: a colour profile has several, and Pillow reads each."""
MOST_TAG_BYTES = 64_000_000
"""Most bytes of the tags of a TIFF or of EXIF data: a malicious file names the same bytes thousands of times."""
MIN_SIDE = 32
"""Pixels: a photo with a shorter side shows too little to learn from."""
ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was rotated."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to make a photo of each EXIF orientation upright; those from 5 on swap width and height."""
_PUT_PHOTOS = "Put at least one photo of the subject there; five are better."
_SMALLER = f"Make it smaller than {MOST_PIXELS // 1_000_000} megapixels."
_TAG_SIZES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)
"""Bytes of one value of each type of TIFF tag."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""Begins a segment of a JPEG; the coded pixels between segments never contain these bytes."""


class BadPhoto(MudiError):
    """A picture file that cannot be used: not a picture, damaged, animated, or too small."""


class NoPhotos(MudiError):
    """A folder without photos, or a folder that does not exist."""


class MissingMask(MudiError):
    """A photo whose mask is not in the folder."""


def read_photo(path: Path, within: Path | None = None) -> Photo:
    """Read a picture file: rotated as its EXIF data say, transparency on white, 16 bits and CMYK as 8-bit RGB.

    ``within``: the folder that no link may lead out of. Raise `BadPhoto` with the name of the file.
    """
    picture = _read_picture(path, within)
    if min(picture.size) < MIN_SIDE:
        raise BadPhoto(
            f"{path} is only {picture.size[0]}x{picture.size[1]} px: a photo needs sides of at least {MIN_SIDE} px, "
            "better 512. Use the original instead of a thumbnail."
        )
    name = readable(path.name)
    if picture.mode == "CMYK":
        log.warning("%s is CMYK, for print. It is read as RGB; its colours may change a little.", name)
    pixels = _pixels(_on(picture, "white", "RGB"))
    return Photo(name, Levels(torch.from_numpy(pixels)), source=path)


def read_mask(path: Path, photo: Photo, within: Path | None = None) -> Tensor:
    """Read the mask of `photo`: float ``[h, w]``, 0..1, white where the subject is, upright like the photo.

    A mask without EXIF data that has the size of the photo before rotation is rotated with the photo. ``within``: the
    folder that no link may lead out of. Raise `BadPhoto`, also for a mask of another size, before it is decoded.
    """
    picture = _read_picture(path, within, photo)
    if picture.size != photo.size and picture.size == photo.size[::-1] and photo.source is not None:
        with Image.open(photo.source, formats=FORMATS) as taken:
            picture = _upright(picture, taken)
    levels = _pixels(_on(picture, "black", "L"))
    if levels.max() == 1:  # an array of 0 and 1 saved unscaled: it looks black, but 1 is meant as white
        levels = levels * np.uint8(255)
    return Levels(torch.from_numpy(levels))


def read_photos(
    folder: Path, on_step: Callable[[int, int], None] | None = None, within: Path | None = None
) -> tuple[Photo, ...]:
    """Read all photos of a folder, in the order of `photo_paths`, each with the caption beside it, if there is one.

    `on_step` is called with photos done and photos in all. A warning names files that look like photos but are not
    read. Raise `NoPhotos`, or `BadPhoto` or `captions.BadCaption` with the name of the file.
    """
    paths = photo_paths(folder)
    left_out = passed_over(folder)
    if left_out:
        log.warning(left_out)
    check_sum(paths)
    photos: list[Photo] = []
    for path in paths:
        caption = read_caption(path, within)  # first: it is read faster than the photo
        photos.append(replace(read_photo(path, within), caption=caption))
        if on_step is not None:
            on_step(len(photos), len(paths))
    return tuple(photos)


def check_sum(paths: Iterable[Path]) -> None:
    """Raise `BadPhoto` when these pictures together are too large for memory; only the file headers are read."""
    total = 0
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                total += picture.width * picture.height
        except Exception:  # an error follows when the file is read
            log.debug("%s does not tell its size", readable(path))
        if total > MOST_PIXELS_TOGETHER:
            raise BadPhoto(
                f"The photos up to {path} have more than {MOST_PIXELS_TOGETHER // 1_000_000:,} megapixels together, "
                "too much for the memory. Make them smaller: sides of 2000 px are enough."
            )


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


def read_masks(folder: Path, photos: Sequence[Photo]) -> tuple[Tensor, ...]:
    """Read the hand-drawn masks of `photos`: ``mask_<photo>.png`` in `folder`, or ``<photo>.png`` in a folder of masks.

    Raise `MissingMask` with the name to save it as, or `BadPhoto`.
    """
    return tuple(read_mask(_mask_path(folder, photo), photo) for photo in photos)


def _mask_path(folder: Path, photo: Photo) -> Path:
    stem = (photo.source or Path(photo.name)).stem
    names = [MASK_PREFIX + stem + suffix for suffix in SUFFIXES]
    if photo.source is None or photo.source.parent.resolve() != folder.resolve():
        names += [stem + suffix for suffix in SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingMask(f"{photo.name} has no mask in {folder}: draw one and save it there as {names[2]}.")


def _unread(path: Path) -> str:
    """Return why Pillow cannot read a file, for example HEIC from a phone, or AVIF, which some Pillows cannot read."""
    with path.open("rb") as file:
        brand = re.match(rb"....ftyp(hei|hev|mif1|msf1|avi)", file.read(12), re.DOTALL)
    if brand is None:
        return (
            f"is not a picture of a kind that can be read ({', '.join(FORMATS)}). Save it as JPEG or PNG, or remove it."
        )
    if brand[1] == b"avi" and _AVIF[0]:
        return "is damaged or cut off. Copy or download it again."
    return "is HEIC or AVIF, which cannot be read, whatever its name says. Save it as JPEG."


def _read_picture(path: Path, within: Path | None, of: Photo | None = None) -> Image.Image:
    """Return the pixels of a picture, upright, in a mode that can become RGB or grey; refuse dangerous files.

    ``of``: the photo that the picture is a mask of.
    """
    try:
        with path.open("rb") as file:
            if within is not None and leads_out(file, path, within):
                raise BadPhoto(f"{path} is a link that leads out of {within}. Replace it by a copy of its file.")
            _check_tags(file, path)
            _check_scans(file, path)
            with Image.open(file, formats=FORMATS) as picture:
                _check_picture(picture, path)
                if of is not None and sorted(picture.size) != sorted(of.size):
                    raise BadPhoto(
                        f"{of.name}: the mask {path} is {picture.width}x{picture.height} px, the photo "
                        f"{of.size[0]}x{of.size[1]} px. Draw the mask on the photo itself, at its own size."
                    )
                picture.load()
                upright = _upright(picture, picture)
    except FileNotFoundError:
        raise BadPhoto(f"There is no file {path}.") from None
    except UnidentifiedImageError:
        raise BadPhoto(f"{path} {_unread(path)}") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(f"{path} is too large ({error}). {_SMALLER}") from None
    except MudiError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files
        raise BadPhoto(f"{path} is damaged or cut off ({error}). Copy or download it again.") from None
    if upright.mode == "F":
        raise BadPhoto(f"{path} holds floating-point values, not colours. Save it as PNG or JPEG.")
    if upright.mode == "LAB":
        raise BadPhoto(f"{path} has LAB colours, which cannot be read. Save it as RGB.")
    if upright.mode == "I" and not 0 <= upright.getextrema()[0] <= upright.getextrema()[1] <= 65535:  # type: ignore[operator]
        raise BadPhoto(f"{path} holds 32-bit numbers, not colours. Save it with 8 or 16 bits per channel.")
    return upright


def _check_picture(picture: Image.Image, path: Path) -> None:
    """Raise `BadPhoto` when a picture has several pages or takes too much time or memory to decode."""
    if picture.width * picture.height > MOST_PIXELS:
        raise BadPhoto(f"{path} is too large ({picture.width}x{picture.height} px). {_SMALLER}")
    # An "MPO" from a phone is a JPEG whose other frames are previews or depth.
    if picture.format != "MPO" and _has_pages(picture):
        raise BadPhoto(f"{path} is animated or has several pages. Save the page that shows the subject as PNG.")
    if picture.format == "TIFF" and "jpeg" in str(picture.info.get("compression")):
        raise BadPhoto(f"{path} is a TIFF with JPEGs inside, which cannot be read. Save it as PNG or JPEG.")
    exif = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if _tag_bytes(exif) > MOST_TAG_BYTES:
        raise BadPhoto(f"{path} has EXIF data of an impossible size. Save it again without them.")


def _has_pages(picture: Image.Image) -> bool:
    if picture.format != "TIFF":
        return getattr(picture, "n_frames", 1) > 1
    try:  # counting a TIFF's pages reads them all
        picture.seek(1)
    except EOFError:
        return False
    finally:
        picture.seek(0)
    return True


def _scans(jpeg: bytes) -> int:
    """Return how often a JPEG draws its first picture, counted up to one more than the limit.

    A JPEG with more than `MOST_SEGMENTS` segments also counts as over the limit.
    """
    scans, at = 0, 2
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(jpeg, at)
        if found is None or found[1] == b"\xd9" or scans > MOST_SCANS:
            return scans
        scans += found[1] == b"\xda"
        at = found.end() + max(int.from_bytes(jpeg[found.end() : found.end() + 2], "big"), 2)
    return MOST_SCANS + 1


def _check_scans(file: BinaryIO, path: Path) -> None:
    """Raise `BadPhoto` for a JPEG with too many scans or segments: Pillow reads all of them at once."""
    if file.read(2) == b"\xff\xd8":
        file.seek(0)
        scans = _scans(file.read())
        if scans > MOST_SCANS:
            raise BadPhoto(f"{path} is a JPEG with {scans} scans or more, which no camera writes. Save it again.")
    file.seek(0)


def _check_tags(file: BinaryIO, path: Path) -> None:
    """Raise `BadPhoto` for a TIFF whose tags claim impossible sizes: Pillow reads all of them when it opens one."""
    if file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        file.seek(0)
        if _tag_bytes(file.read()) > MOST_TAG_BYTES:
            raise BadPhoto(f"{path} has tags of an impossible size. Save it as PNG or JPEG.")
    file.seek(0)


def _tag_bytes(tiff: bytes) -> int:
    """Return how many bytes the first directory of a TIFF or EXIF claims for its values; repeats count."""
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    big = tiff[2:4] in (b"+\0", b"\0+")
    word, entry, start = (8, 20, 8) if big else (4, 12, 4)

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    at = number(start, word)
    total, first = 0, at + (8 if big else 2)
    for place in range(first, first + min(number(at, first - at), 65_536) * entry, entry):
        kind = number(place + 2, 2)
        size = number(place + 4, word) * (_TAG_SIZES[kind] if kind < len(_TAG_SIZES) else 0)
        total += min(size, len(tiff))
    return total


def _upright(picture: Image.Image, taken: Image.Image) -> Image.Image:
    """Rotate a picture as the EXIF data of the picture `taken` say; ignore missing and damaged data."""
    try:
        turn = TURNS.get(int(taken.getexif().get(ORIENTATION, 1)))
    except Exception:
        turn = None
    return picture.transpose(turn) if turn is not None else picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return a grey picture of 16 bits in 8, rounded, strip by strip: Pillow would cut the values off at 255."""
    width, height = picture.size
    levels = np.empty((height, width), np.uint8)
    for top in range(0, height, 256):
        strip = np.asarray(picture.crop((0, top, width, min(top + 256, height)))).astype(np.uint32)
        levels[top : top + 256] = (strip + 128) // 257
    return Image.fromarray(levels)


def _on(picture: Image.Image, colour: str, mode: str) -> Image.Image:
    """Put a picture with transparency on a colour, and convert it."""
    if picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        layer = Image.new("RGBA", picture.size, colour)
        layer.alpha_composite(picture.convert("RGBA"))
        picture = layer
    return picture if picture.mode == mode else picture.convert(mode)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the bytes ``[h, w, ...]`` of an 8-bit picture, strip by strip: Pillow would make three copies."""
    width, height = picture.size
    pixels = np.empty((height, width, 3) if picture.mode == "RGB" else (height, width), np.uint8)
    for top in range(0, height, 256):
        pixels[top : top + 256] = np.asarray(picture.crop((0, top, width, min(top + 256, height))))
    return pixels


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.casefold())]
