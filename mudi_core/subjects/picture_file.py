"""One picture file: its pixels, upright, RGB or grey, 0..1, or a sentence about what is wrong with the file.

Decoded, a photo of 24 megapixels takes 73 MB, and its JPEG 8 MB. Where many are wanted at once, the files' own bytes
are kept, and each is decoded while it is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from ..levels import Levels
from ..names import leads_out
from ..types import MudiError, Photo, readable
from . import bounds

log = logging.getLogger(__name__)

_AVIF: tuple[tuple[str, ...], tuple[str, ...]] = (
    ((".avif",), ("AVIF",)) if "avif" in features.get_supported() else ((), ())
)
SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".jfif", ".bmp", ".tif", ".tiff", *_AVIF[0])
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *_AVIF[1])
"""Formats that are read, whatever the file name says: others that Pillow knows, such as PostScript, start programs."""
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


class BadPhoto(MudiError):
    """A picture file that cannot be used: not a picture, damaged, animated, or too small."""


def read_photo(path: Path, within: Path | None = None, packed: bool = False) -> Photo:
    """Read a picture file: rotated as its EXIF data say, transparency on white, 16 bits and CMYK as 8-bit RGB.

    ``within``: the folder that no link may lead out of. ``packed``: keep the bytes of the file instead of the pixels,
    if they are fewer. Raise `BadPhoto` with the name of the file.
    """
    with _opened(path, within) as file:
        source: BinaryIO = BytesIO(file.read()) if packed else file
        picture = _decoded(source, path)
    if min(picture.size) < MIN_SIDE:
        raise BadPhoto(
            f"{path} is only {picture.size[0]}x{picture.size[1]} px: a photo needs sides of at least {MIN_SIDE} px, "
            "better 512. Use the original instead of a thumbnail."
        )
    name = readable(path.name)
    if picture.mode == "CMYK":
        log.warning("%s is CMYK, for print. It is read as RGB; its colours may change a little.", name)
    levels = _rgb(picture)
    if isinstance(source, BytesIO) and len(data := source.getvalue()) < levels.numel():
        return Photo(name, Levels.later(levels.shape, _unpacker(data, path)), source=path)
    return Photo(name, Levels(levels), source=path)


def pixel_count(path: Path, within: Path | None = None) -> int:
    """Return how many pixels the header of a picture file declares. Raise `BadPhoto`."""
    with _opened(path, within) as file, Image.open(file, formats=FORMATS) as picture:
        return int(picture.width) * int(picture.height)


def _unpacker(data: bytes, path: Path) -> Callable[[], Tensor]:
    return lambda: _rgb(_decoded(BytesIO(data), path))


def read_mask(path: Path, photo: Photo, within: Path | None = None, packed: bool = False) -> Tensor:
    """Read the mask of `photo`: float ``[h, w]``, 0..1, white where the subject is, upright like the photo.

    A mask without EXIF data that has the size of the photo before rotation is rotated with the photo. ``within``: the
    folder that no link may lead out of. ``packed``: keep it compressed. Raise `BadPhoto`, also for a mask of another
    size, before it is decoded.
    """
    with _opened(path, within) as file:
        picture = _decoded(file, path, photo)
    if picture.size != photo.size and picture.size == photo.size[::-1] and photo.source is not None:
        with _opened(photo.source, None) as file, Image.open(file, formats=FORMATS) as taken:
            picture = _upright(picture, taken)
    levels = _pixels(_on(picture, "black", "L"))
    if levels.max() == 1:  # an array of 0 and 1 saved unscaled: it looks black, but 1 is meant as white
        levels = levels * np.uint8(255)
    return (Levels.compressed if packed else Levels)(torch.from_numpy(levels))


@contextmanager
def _opened(path: Path, within: Path | None) -> Iterator[BinaryIO]:
    """Yield the open file, of a size that a picture may have; inside, whatever goes wrong becomes a `BadPhoto`."""
    try:
        with path.open("rb") as file:
            if within is not None and leads_out(file, path, within):
                raise BadPhoto(f"{path} is a link that leads out of {within}. Replace it by a copy of its file.")
            if reason := bounds.of_file(file):
                raise BadPhoto(f"{path} {reason}")
            yield file
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


def _decoded(file: BinaryIO, path: Path, of: Photo | None = None) -> Image.Image:
    """Return the pixels of a picture, upright, in a mode that can become RGB or grey; refuse dangerous files.

    ``of``: the photo that the picture is a mask of.
    """
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
    if upright.mode == "F":
        raise BadPhoto(f"{path} holds floating-point values, not colours. Save it as PNG or JPEG.")
    if upright.mode == "LAB":
        raise BadPhoto(f"{path} has LAB colours, which cannot be read. Save it as RGB.")
    if upright.mode == "I" and not 0 <= upright.getextrema()[0] <= upright.getextrema()[1] <= 65535:  # type: ignore[operator]
        raise BadPhoto(f"{path} holds 32-bit numbers, not colours. Save it with 8 or 16 bits per channel.")
    return upright


def _rgb(picture: Image.Image) -> Tensor:
    return torch.from_numpy(_pixels(_on(picture, "white", "RGB")))


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
