"""Photos and masks from picture files: upright, RGB, 0..1, or a sentence about what is wrong with the file."""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .types import MudiError, Photo

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MASK_PREFIX = "mask_"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What is read, whatever a file's name says: Pillow knows others that start programs, such as PostScript."""
MOST_PIXELS = 50_000_000
"""Of a picture: what the largest cameras of phones take; decoded, it is 600 MB."""
MIN_SIDE = 32
"""Pixels: a photo with a shorter side shows too little to learn from."""
ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
QUARTER_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The EXIF orientations that swap width and height, and what sets them upright."""
_SMALLER = f"Make it smaller than {MOST_PIXELS // 1_000_000} megapixels."


class BadPhoto(MudiError):
    """A picture file that cannot be used: no picture, damaged, animated, too small."""


class NoPhotos(MudiError):
    """A folder without photos, or no folder at all."""


class MissingMask(MudiError):
    """A photo whose mask is not in the folder."""


def read_photo(path: Path) -> Photo:
    """Read a JPEG, PNG or WebP: rotated as its EXIF data say, transparency on white, 16 bits and CMYK as 8-bit RGB.

    Raises `BadPhoto` with the file's name.
    """
    picture = _read_picture(path)
    if min(picture.size) < MIN_SIDE:
        raise BadPhoto(
            f"{path} is only {picture.size[0]}x{picture.size[1]} px: a photo needs at least {MIN_SIDE} px a side, "
            "better 512. Use the original instead of a thumbnail."
        )
    if picture.mode == "F":
        raise BadPhoto(f"{path} holds floating-point values, not colours. Save it as PNG or JPEG.")
    if picture.mode == "CMYK":
        log.warning("%s is CMYK, made for print; it is read as RGB, its colours may shift a little", path.name)
    if picture.mode.startswith("I"):
        image = torch.from_numpy(np.array(picture, dtype=np.float32) / 65535)[:, :, None].repeat(1, 1, 3)
    else:
        image = torch.from_numpy(np.array(_on(picture, "white", "RGB"))).float() / 255
    return Photo(path.name, image, source=path)


def read_mask(path: Path, photo: Photo) -> Tensor:
    """Read the mask of `photo`: float ``[h, w]``, 0..1, white where the subject is, upright like the photo.

    A mask without EXIF data that has the size of the photo's unrotated pixels is turned with the photo. The size is not
    checked here: a `Subject` does that.
    """
    picture = _read_picture(path)
    if picture.size != photo.size and picture.size == photo.size[::-1] and photo.source is not None:
        turn = QUARTER_TURNS.get(_orientation(photo.source))
        picture = picture.transpose(turn) if turn is not None else picture
    if picture.mode.startswith("I"):
        return torch.from_numpy(np.array(picture, dtype=np.float32) / 65535)
    levels = np.array(_on(picture, "black", "L"))
    if levels.max() == 1:  # an array of 0 and 1 saved as it was: black to the eye, and not meant so
        levels = levels * np.uint8(255)
    return torch.from_numpy(levels).float() / 255


def read_photos(folder: Path, on_step: Callable[[int, int], None] | None = None) -> tuple[Photo, ...]:
    """All photos of a folder, in the order of `photo_paths`.

    `on_step` hears photos done and photos in all. Raises `NoPhotos`, and `BadPhoto` with the file's name.
    """
    paths = photo_paths(folder)
    photos: list[Photo] = []
    for path in paths:
        photos.append(read_photo(path))
        if on_step is not None:
            on_step(len(photos), len(paths))
    return tuple(photos)


def photo_paths(folder: Path) -> list[Path]:
    """The photos in a folder, in natural order ("2.jpg" before "10.jpg"), without ``mask_*``. Raises `NoPhotos`."""
    if not folder.is_dir():
        raise NoPhotos(f"There is no folder {folder}. Make it and put photos of the subject there, or name another.")
    try:
        files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", MASK_PREFIX))]
    except OSError as error:
        raise NoPhotos(f"{folder} cannot be read: {error.strerror or error}.") from error
    paths = sorted((path for path in files if path.suffix.lower() in SUFFIXES), key=_natural)
    if not paths:
        others = Counter(path.suffix.lower() or "no suffix" for path in files)
        found = ", ".join(f"{count} file(s) with {suffix}" for suffix, count in others.most_common(3))
        raise NoPhotos(
            f"{folder} holds no photo ({', '.join(SUFFIXES)}), {'only ' + found if found else 'it is empty'}. "
            "Put at least one photo of the subject there; five are better."
        )
    return paths


def read_masks(folder: Path, photos: Sequence[Photo]) -> tuple[Tensor, ...]:
    """The masks of `photos` drawn by hand: ``mask_<photo>.png`` in `folder`, or ``<photo>.png`` in a folder of its own.

    Raises `MissingMask` with the names that were looked for.
    """
    return tuple(read_mask(_mask_path(folder, photo), photo) for photo in photos)


def _mask_path(folder: Path, photo: Photo) -> Path:
    stem = Path(photo.name).stem
    names = [MASK_PREFIX + stem + suffix for suffix in SUFFIXES]
    if photo.source is None or photo.source.parent.resolve() != folder.resolve():
        names += [stem + suffix for suffix in SUFFIXES]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingMask(f"{photo.name} has no mask in {folder}: draw one and save it there as {names[2]}.")


def _read_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise BadPhoto(f"{path} is too large ({picture.width}x{picture.height} px). {_SMALLER}")
            # A phone's "MPO" is a JPEG whose further frames are previews or depth.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise BadPhoto(
                    f"{path} is animated or has several pages ({picture.n_frames}): which one shows the subject? "  # type: ignore[attr-defined]
                    "Save that one as PNG."
                )
            picture.load()
            return ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise BadPhoto(f"There is no file {path}.") from None
    except UnidentifiedImageError:
        raise BadPhoto(f"{path} is not a picture, whatever its name says. Remove it or save it again.") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto(f"{path} is too large ({error}). {_SMALLER}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what Pillow's decoders raise
        raise BadPhoto(f"{path} is damaged or cut off ({error}). Copy or download it again.") from None


def _on(picture: Image.Image, colour: str, mode: str) -> Image.Image:
    """Lay a picture with transparency on a colour, and convert it."""
    if picture.has_transparency_data:
        layer = Image.new("RGBA", picture.size, colour)
        layer.alpha_composite(picture.convert("RGBA"))
        picture = layer
    return picture.convert(mode)


def _orientation(path: Path) -> int:
    with Image.open(path, formats=FORMATS) as picture:
        return int(picture.getexif().get(ORIENTATION, 1))


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name.casefold())]
