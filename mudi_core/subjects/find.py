"""Photos become a `Subject`: find it in each photo, cut it out, and check that it is there exactly once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from .. import boxes
from ..eyes import Detector, Segmenter
from ..levels import Levels, stacked
from ..masks import coverage, large_pieces, mask_box
from ..types import BadSubject, Detections, MudiError, Photo, Subject, SubjectSet
from ..vocabulary import TOKENIZER

log = logging.getLogger(__name__)

Which = Literal["exactly one", "best"]
"""What to do when a photo does not show the subject exactly once: refuse it, or take the most confident box."""
WHOLE = 0.95
"""A box or a mask that covers more than this share of a photo says nothing about where the subject is."""
CUT_OFF = 0.2
"""A subject that touches the photo's edge along more than this share of its own side is cut off there."""
INVERTED = (
    "the mask is white all around the photo's edge, as Load Image gives transparency. It was inverted, so that the "
    "subject is white."
)
VOCABULARY = TOKENIZER / "vocab.json"
COMMON = 40_000
"""CLIP's vocabulary is sorted by frequency: a whole word with a lower number already has a meaning."""
RARE_IN_SPITE = frozenset({"ult", "amg"})
"""Two of the paper's tokens are common: they often end words ("result") but have no meaning alone."""


class NotFound(MudiError):
    """A photo in which the detector or the segmenter found nothing."""


class SeveralFound(MudiError):
    """A photo in which the detector found the subject more than once."""


class CoversAll(MudiError):
    """A box or a mask that covers the whole photo."""


def find_boxes(
    photo: Photo, query: str, detector: Detector, threshold: float = 0.25, which: Which | Literal["all"] = "exactly one"
) -> Detections:
    """Find `query` in a photo: return one box, or with "all" every box, never none.

    ``threshold``: least confidence of the detector, 0..1. Raise `NotFound`, `SeveralFound` or `CoversAll`, with the
    name of the photo and the best score, or `BadSubject` for an empty query.
    """
    if not query.strip():
        raise BadSubject(f"{photo.name}: the text to look for is empty. Write one, such as 'dog'.")
    found = detector(photo.image, [query], threshold)
    with _with_limits(detector):
        return _wanted(found, photo, query, threshold, which)


def _wanted(found: Detections, photo: Photo, query: str, threshold: float, which: Which | Literal["all"]) -> Detections:
    if len(found) == 0:
        raise NotFound(
            f"{photo.name}: no '{query}' was found (best score {found.best_confidence:.2f}, threshold {threshold:g}). "
            "Lower the threshold, use a more general word (e.g. 'dog' for 'corgi'), or draw the mask by hand."
        )
    if which == "all":
        return found
    row = _one_box(found, photo, query, threshold, which)
    one = slice(row, row + 1)
    return Detections(found.xyxy[one], found.confidence[one], found.labels[one], found.best_confidence)


@contextmanager
def _with_limits(model: Detector | Segmenter) -> Iterator[None]:
    """Inside the block, errors about what a model found also say what it cannot find."""
    try:
        yield
    except (NotFound, SeveralFound, CoversAll) as error:
        limits = getattr(model, "limits", "")
        raise type(error)(f"{error} {limits}".rstrip()) from error


def segment_boxes(photo: Photo, xyxy: Tensor, segmenter: Segmenter, which: Which = "exactly one") -> Tensor:
    """Segment what stands in the boxes ``[n, 4]`` (pixels) of a photo: return masks ``[n, h, w]``, 0 or 1.

    Small specks are removed. Raise `NotFound` when a mask is empty, and `CoversAll` when it covers the whole photo,
    unless `which` is "best".
    """
    with _with_limits(segmenter):
        masks = (segmenter(photo.image, xyxy) > 0.5).to(torch.uint8)
        found = [_checked(_without_specks(mask), photo, which) for mask in masks]
    return stacked([Levels(mask * 255) for mask in found])


def subject_from_masks(
    photos: Sequence[Photo], masks: Sequence[Tensor], token: str, class_noun: str, which: Which = "exactly one"
) -> Subject:
    """Make a subject from masks drawn by hand, float ``[h, w]``, 0..1. Raise `NotFound`, `CoversAll` or `BadSubject`.

    A mask that is `inverted` is turned around, with a warning.
    """
    turned = [inverted(mask) for mask in masks]
    masks = [1 - mask if wrong else mask for mask, wrong in zip(masks, turned, strict=True)]
    subject = checked_subject(photos, masks, token, class_noun)
    for photo in (photo for photo, wrong in zip(photos, turned, strict=True) if wrong):
        log.warning("%s: %s", photo.name, INVERTED)
    for photo, mask in zip(photos, masks, strict=True):
        _checked(mask, photo, which)
    return subject


def inverted(mask: Tensor) -> bool:
    """Return whether a mask ``[h, w]`` shows the background: white all around the photo's edge and dark inside.

    ComfyUI's Load Image gives the transparency of a picture that way.
    """
    if min(mask.shape) < 3:
        return False
    edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return float((edge > 0.5).float().mean()) > 0.95 and coverage(mask <= 0.5) > 1 - WHOLE


def doubts(subjects: Iterable[Subject]) -> list[str]:
    """Return a sentence for each photo whose mask would teach something wrong: empty, with specks, or cut off."""
    return [
        f"{photo.name} of {subject.name}: {doubt}."
        for subject in subjects
        for photo, mask in zip(subject.photos, subject.masks, strict=True)
        for doubt in _doubts(mask)
    ]


def _doubts(mask: Tensor) -> Iterator[str]:
    whole, own = mask_box(mask), mask_box(_without_specks((mask > 0.5).to(torch.uint8)), 0)
    if whole is None or own is None:
        yield "its mask is empty. Draw it again, or leave the photo out"
        return
    if whole != own:
        yield "its mask has specks beside the subject, which are left out of the cut-out"
    inside, across, down = mask > 0.5, own[2] - own[0], own[3] - own[1]
    edges = {"left": (inside[:, 0], down), "right": (inside[:, -1], down)}
    edges |= {"top": (inside[0], across), "bottom": (inside[-1], across)}
    cut = [side for side, (edge, extent) in edges.items() if int(edge.sum()) > CUT_OFF * extent]
    if cut:
        yield f"the subject is cut off at the {' and '.join(cut)}, which a LoRA learns too. Use another photo"


def add_subject(subjects: SubjectSet | None, subject: Subject, replace: bool = False) -> SubjectSet:
    """Return the set with one more subject, or a new set. `replace`: the subject replaces one with the same token.

    Raise `BadSubject` when the token is already used, and for a twelfth subject.
    """
    present = () if subjects is None else subjects.subjects
    if replace and any(other.token == subject.token for other in present):
        return SubjectSet(tuple(subject if other.token == subject.token else other for other in present))
    return SubjectSet((*present, subject))


def token_warning(token: str) -> str | None:
    """Return a sentence when the token is a common word with a meaning for the model; None when it is fine."""
    number = _vocabulary().get(token.lower() + "</w>")
    if number is None or number >= COMMON or token.lower() in RARE_IN_SPITE:
        return None
    return (
        f"The token '{token}' is a word that the model knows: its meaning will mix with your subject. "
        "A rare word works better, such as olis, hta, ult, amg or lun."
    )


def name_doubts(names: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence for each token that would teach or call something else.

    ``names``: token and class noun of each subject. A good token is a rare word of one piece that is in no other name.
    """
    found = []
    for number, (token, noun) in enumerate(names):
        word = token.lower()
        if word in noun.lower().split():
            found.append(
                f"The token '{token}' is a word of its own class noun '{noun}', so the model cannot tell them apart. "
                "Use a rare word, such as olis, hta, ult, amg or lun."
            )
        elif warning := token_warning(token):
            found.append(warning)
        elif word + "</w>" not in _vocabulary():
            found.append(
                f"The text encoder reads the token '{token}' in several pieces, each with its own meaning. A rare word "
                "of a single piece works better, such as olis, hta, ult, amg or lun."
            )
        for other_token, other_noun in [*names[:number], *names[number + 1 :]]:
            if word in other_token.lower() or word in other_noun.lower().split():
                found.append(
                    f"The token '{token}' is also in the name '{other_token} {other_noun}', so a prompt for one calls "
                    "both. Give each subject its own token."
                )
    return found


@cache
def _vocabulary() -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads(VOCABULARY.read_text(encoding="utf-8"))
    return vocabulary


def checked_subject(photos: Sequence[Photo], masks: Sequence[Tensor], token: str, class_noun: str) -> Subject:
    """Make a subject. Raise `BadSubject` when token, class noun, photos and masks do not fit together."""
    return Subject(token, class_noun, tuple(photos), tuple(masks))


def _one_box(found: Detections, photo: Photo, query: str, threshold: float, which: Which) -> int:
    """Return the row of the box to take."""
    scores = ", ".join(f"{score:.2f}" for score in found.confidence[:5].tolist())
    if which == "exactly one" and len(found) > 1:
        raise SeveralFound(
            f"{photo.name}: '{query}' was found {len(found)} times (scores {scores}; threshold {threshold:g}), but "
            "a photo must show its subject once. Crop the photo, raise the threshold, or choose to take the best one."
        )
    shares = boxes.area(found.xyxy) / (photo.size[0] * photo.size[1])
    if which == "best":
        partial = (shares <= WHOLE).nonzero()[:, 0]
        if len(partial):
            return int(partial[0])
    if shares[0] > WHOLE:
        message = (
            f"{photo.name}: the box of '{query}' covers the whole photo ({shares[0]:.0%}, best score "
            f"{float(found.confidence[0]):.2f})."
        )
        if which == "exactly one":
            raise CoversAll(
                f"{message} Use a more exact word or a photo with some background, draw the mask by hand, or choose "
                "to take the best one."
            )
        log.warning(message)
    return 0


def _checked(mask: Tensor, photo: Photo, which: Which) -> Tensor:
    share = coverage(mask > 0.5)
    if share == 0:
        raise NotFound(f"{photo.name}: the mask is empty. Draw the subject white on black, or use another photo.")
    if share > WHOLE:
        message = f"{photo.name}: the mask covers the whole photo ({share:.0%})."
        if which == "exactly one":
            raise CoversAll(
                f"{message} Is it inverted? Draw the subject white on black, or use a photo with some background."
            )
        log.warning(message)
    return mask


def _without_specks(mask: Tensor) -> Tensor:
    """Remove the small pieces of a mask ``[h, w]``, uint8 of 0 and 1; holes stay because they may be real."""
    kept = large_pieces(mask.numpy())
    return mask if kept is None else mask * torch.from_numpy(kept)
