"""Photos and masks from picture files: upright, RGB, 0..1, or a sentence about what is wrong with the file."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from ..levels import Levels
from ..names import leads_out
from ..types import MudiError, Photo, readable
from . import bounds
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
MOST_PIXELS_TOGETHER = 1_000_000_000
"""Most pixels of all photos read at once: 40 photos of 24 megapixels, 3 GB when decoded."""
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
            if reason := bounds.of_file(file):
                raise BadPhoto(f"{path} {reason}")
            with Image.open(file, formats=FORMATS) as picture:
                if reason := bounds.of_picture(picture):
                    raise BadPhoto(f"{path} {reason}")
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
        raise BadPhoto(f"{path} is too large ({error}). {bounds.SMALLER}") from None
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
