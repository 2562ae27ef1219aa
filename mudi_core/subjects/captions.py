"""The captions of photos: text files beside them, the name that a caption must say, and names that folders offer.

Trainers' datasets have a caption for each photo in ``<photo>.txt`` (or ``.caption``), and folders such as ``10_olis
dog``: how often kohya's trainer repeats each photo, a token, and a class noun.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import NotText, decoded
from ..names import leads_out
from ..stage.captions import with_name
from ..types import LONGEST_CAPTION, LONGEST_NOUN, LONGEST_TOKEN, MudiError, Photo, misread_in_prompts
from ..vocabulary import tokenizer

SUFFIXES = (".txt", ".caption")
"""Of caption files. Where a photo has both, the first is read."""
LARGEST = 64_000
"""Most bytes of a caption file."""
READ_AT_MOST = 75
"""Tokens that the text encoders of SD and SDXL read, without the two at the ends."""
_KOHYA = re.compile(r"(\d{1,3})_(\S+)(?:\s+(.+))?")


class BadCaption(MudiError):
    """A caption file that cannot be used: not text, too long, or a link to elsewhere."""


@dataclass(frozen=True)
class Offer:
    """What a folder's name says of the subject in it."""

    token: str
    class_noun: str
    """Empty where the name has only a token."""
    repeats: int

    @property
    def words(self) -> str:
        """The offer as a sentence for the user."""
        noun = f" and the class noun '{self.class_noun}'" if self.class_noun else ""
        return (
            f"The folder's name offers the token '{self.token}'{noun}. Its number, {self.repeats}, is ignored: all "
            "photos are shown equally often."
        )


def offer_of(folder: str) -> Offer | None:
    """Return what the name of a folder in kohya's form, "10_olis dog", offers; None for other names."""
    match = _KOHYA.fullmatch(folder.strip())
    if match is None:
        return None
    token, noun = match[2], match[3] or ""
    if len(token) > LONGEST_TOKEN or len(noun) > LONGEST_NOUN or misread_in_prompts(token + noun):
        return None
    return Offer(token, noun, int(match[1]))


def caption_file(photo: Path) -> Path | None:
    """Return the path of the caption of a photo; None where it has none."""
    return next((path for suffix in SUFFIXES if (path := photo.with_suffix(suffix)).is_file()), None)


def read_caption(photo: Path, within: Path | None = None) -> str:
    """Return the text beside a photo, as one line; "" without a file, and for an empty one.

    ``within``: the folder that no link may lead out of. Raise `BadCaption` with the name of the file.
    """
    path = caption_file(photo)
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            if within is not None and leads_out(file, path, within):
                raise BadCaption(f"{path} is a link that leads out of {within}. Replace it by a copy of its file.")
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise BadCaption(f"{path} cannot be read: {error.strerror or error}.") from error
    too_long = BadCaption(
        f"{path} is too long for a caption, which has up to {LONGEST_CAPTION} letters. Shorten it, or give the file "
        "another name."
    )
    if len(data) > LARGEST:
        raise too_long
    try:
        caption = " ".join(decoded(data, path).split())
    except NotText as error:
        raise BadCaption(str(error)) from None
    if len(caption) > LONGEST_CAPTION:
        raise too_long
    return caption


def named(photos: Sequence[Photo], token: str, class_noun: str) -> tuple[tuple[Photo, ...], list[str]]:
    """Return the photos with captions that all say the token, and remarks for the user.

    A caption that says the token stays to the letter. Tags that do not get the name first; in a sentence the token goes
    before the class noun, or the name to the beginning. No caption stays none.
    """
    captions = [photo.caption and with_name(photo.caption, (token, class_noun)) for photo in photos]
    captioned = tuple(
        photo if caption == photo.caption else replace(photo, caption=caption)
        for photo, caption in zip(photos, captions, strict=True)
    )
    changed = [new.name for old, new in zip(photos, captioned, strict=True) if new is not old]
    remarks = []
    if changed:
        which = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        remarks.append(
            f"The captions of {which} did not say '{token}', so they would not have taught that name: it was put in."
        )
    missing = [photo.name for photo in captioned if not photo.caption]
    if missing and len(missing) < len(captioned):
        remarks.append(f"Without a caption: {', '.join(missing[:5])}. Training writes one with the name alone.")
    return captioned, remarks + too_long(captioned)


def too_long(photos: Sequence[Photo]) -> list[str]:
    """Return a sentence for each photo whose caption the text encoders of SD and SDXL do not read to its end."""
    long = [photo for photo in photos if len(photo.caption) > READ_AT_MOST]  # a token has a letter or more
    if not long:
        return []
    count = tokenizer(length=10**6)
    tokens = [len(count(photo.caption).input_ids) - 2 for photo in long]
    return [
        f"{photo.name}: its caption has {number} tokens, and the text encoders of SD and SDXL read the first "
        f"{READ_AT_MOST}. Put what matters first, or shorten it."
        for photo, number in zip(long, tokens, strict=True)
        if number > READ_AT_MOST
    ]
