"""What the file of a picture may cost to read: bytes, pixels, scans, parts and tags; and why one may not."""

from __future__ import annotations

import os
import re
from io import BytesIO
from typing import BinaryIO, Literal, NamedTuple

from PIL import Image

MOST_PIXELS = 65_000_000
"""Most pixels of a picture: photos from phones with 64 megapixels."""
MOST_BYTES, MOST_JPEG_BYTES = 550_000_000, 200_000_000
"""Most bytes of a file: so many pixels of 16 bits in four channels; a JPEG, which is searched as a whole, has fewer."""
MOST_CHUNKS = 100_000
"""Most chunks of a PNG: of so many pixels, in the 8 KB that are usual, it has up to 65,000. Pillow reads each."""
MOST_TAG_NUMBERS = 1_000_000
"""Most numbers in the tags of a TIFF, which become Python numbers: two for each of its tiles."""
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
_BYTE_TAGS = (1, 2, 6, 7)
"""Types of TIFF tags whose values stay bytes."""
_RUN_LENGTHS = (1, 2)
"""How a BMP says that it is compressed; Pillow's own decoder for it is written in Python."""
_PAGES = "is animated or has several pages. Save the page that shows the subject as PNG."
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
"""Begins a segment of a JPEG; the coded pixels between segments never contain these bytes."""


def of_file(file: BinaryIO) -> str:
    """Return why Pillow must not open an open file, as the end of a sentence; "" where it may.

    Pillow reads all scans of a JPEG, and all tags of a TIFF, as soon as it opens one.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    begins = file.read(34)
    file.seek(0)
    reason = ""
    if size > (MOST_JPEG_BYTES if begins[:2] == b"\xff\xd8" else MOST_BYTES):
        reason = f"has {size // 1_000_000} MB, more than a photo needs. Save it again as JPEG or PNG."
    elif begins[:8] == b"\x89PNG\r\n\x1a\n":
        if _chunks(file) > MOST_CHUNKS:
            reason = "is a PNG of impossibly many parts. Save it again."
    elif begins[:2] == b"BM":
        if int.from_bytes(begins[30:34], "little") in _RUN_LENGTHS:
            reason = "is a BMP in run lengths, which takes long to read. Save it as PNG."
    elif begins[:2] == b"\xff\xd8":
        scans = _scans(file.read())
        if scans > MOST_SCANS:
            reason = f"is a JPEG with {scans} scans or more, which no camera writes. Save it again."
    elif begins[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        tags = _tags(file)
        if tags.are_too_many:
            reason = "has tags of an impossible size. Save it as PNG or JPEG."
        elif tags.more:
            reason = _PAGES
    file.seek(0)
    return reason


def of_picture(picture: Image.Image) -> str:
    """Return why an opened picture must not be decoded, as the end of a sentence; "" where it may.

    It may have several pages, or take too much time or memory.
    """
    if picture.width * picture.height > MOST_PIXELS:
        return f"is too large ({picture.width}x{picture.height} px). {SMALLER}"
    # An "MPO" from a phone is a JPEG whose other frames are previews or depth.
    if picture.format not in ("MPO", "TIFF") and getattr(picture, "n_frames", 1) > 1:
        return _PAGES
    if picture.format == "TIFF" and "jpeg" in str(picture.info.get("compression")):
        return "is a TIFF with JPEGs inside, which cannot be read. Save it as PNG or JPEG."
    exif = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if _tags(BytesIO(exif)).are_too_many:
        return "has EXIF data of an impossible size. Save it again without them."
    return ""


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


def _chunks(png: BinaryIO) -> int:
    """Return how many chunks a PNG has, counted up to one more than the limit."""
    count, at = 0, png.seek(8)
    while count <= MOST_CHUNKS and len(head := png.read(8)) == 8 and head[4:] != b"IEND":
        at = png.seek(at + 12 + int.from_bytes(head[:4], "big"))
        count += 1
    return count


class _Tags(NamedTuple):
    """What the first directory of a TIFF or of EXIF data claims; values that are named again count again."""

    size: int
    """Bytes of all values."""
    numbers: int
    """Values that become Python numbers."""
    more: bool
    """Whether another directory follows: another page."""

    @property
    def are_too_many(self) -> bool:
        return self.size > MOST_TAG_BYTES or self.numbers > MOST_TAG_NUMBERS


def _tags(tiff: BinaryIO) -> _Tags:
    begins = tiff.read(16)
    length = tiff.seek(0, os.SEEK_END)
    order: Literal["little", "big"] = "little" if begins[:2] == b"II" else "big"
    big = begins[2:4] in (b"+\0", b"\0+")
    word, entry, start = (8, 20, 8) if big else (4, 12, 4)
    tiff.seek(min(int.from_bytes(begins[start : start + word], order), length))
    count = int.from_bytes(tiff.read(8 if big else 2), order)
    listed = tiff.read(min(count, 65_536) * entry)
    total = numbers = 0
    for at in range(0, len(listed) - entry + 1, entry):
        kind, values = (int.from_bytes(listed[at + i : at + j], order) for i, j in ((2, 4), (4, 4 + word)))
        size = values * (_TAG_SIZES[kind] if kind < len(_TAG_SIZES) else 0)
        total += min(size, length)
        numbers += 0 if kind in _BYTE_TAGS else min(values, length)
    return _Tags(total, numbers, any(tiff.read(word)))
