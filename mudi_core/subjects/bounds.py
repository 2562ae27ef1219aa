"""What the file of a picture may cost to read: pixels, scans, segments and tags; and why one may not."""

from __future__ import annotations

import re
from typing import BinaryIO, Literal

from PIL import Image

MOST_PIXELS = 65_000_000
"""Most pixels of a picture: photos from phones with 64 megapixels."""
MOST_SCANS = 40
"""Most scans of a JPEG: cameras and editors write up to 14. Each scan takes as long as the whole picture."""
MOST_SEGMENTS = 10_000
"""Most segments of a JPEG: a colour profile has several, and Pillow reads each."""
MOST_TAG_BYTES = 64_000_000
"""Most bytes of the tags of a TIFF or of EXIF data: a malicious file names the same bytes thousands of times."""
SMALLER = f"Make it smaller than {MOST_PIXELS // 1_000_000} megapixels."
"""What to do with a picture of too many pixels."""
_TAG_SIZES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)
"""Bytes of one value of each type of TIFF tag."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""Begins a segment of a JPEG; the coded pixels between segments never contain these bytes."""


def of_file(file: BinaryIO) -> str:
    """Return why Pillow must not open an open file, as the end of a sentence; "" where it may.

    Pillow reads all scans of a JPEG, and all tags of a TIFF, as soon as it opens one.
    """
    begins = file.read(4)
    file.seek(0)
    reason = ""
    if begins[:2] == b"\xff\xd8":
        scans = _scans(file.read())
        if scans > MOST_SCANS:
            reason = f"is a JPEG with {scans} scans or more, which no camera writes. Save it again."
    elif begins in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and _tag_bytes(file.read()) > MOST_TAG_BYTES:
        reason = "has tags of an impossible size. Save it as PNG or JPEG."
    file.seek(0)
    return reason


def of_picture(picture: Image.Image) -> str:
    """Return why an opened picture must not be decoded, as the end of a sentence; "" where it may.

    It may have several pages, or take too much time or memory.
    """
    if picture.width * picture.height > MOST_PIXELS:
        return f"is too large ({picture.width}x{picture.height} px). {SMALLER}"
    # An "MPO" from a phone is a JPEG whose other frames are previews or depth.
    if picture.format != "MPO" and _has_pages(picture):
        return "is animated or has several pages. Save the page that shows the subject as PNG."
    if picture.format == "TIFF" and "jpeg" in str(picture.info.get("compression")):
        return "is a TIFF with JPEGs inside, which cannot be read. Save it as PNG or JPEG."
    exif = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if _tag_bytes(exif) > MOST_TAG_BYTES:
        return "has EXIF data of an impossible size. Save it again without them."
    return ""


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
