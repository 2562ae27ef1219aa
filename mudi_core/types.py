"""The values that travel between the rooms of the library: frozen, and checked when they are made.

Images are float tensors ``[h, w, 3]``, RGB, 0..1; masks are float tensors ``[h, w]``, 0..1; boxes are ``xyxy`` in
pixels, except in a `Placement`, which has fractions of its canvas.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MAX_SUBJECTS = 11
"""The most subjects that the paper composes in one picture (appendix B.9)."""


LONGEST_TOKEN, LONGEST_NOUN, LONGEST_CAPTION = 100, 200, 4000
"""Most letters: more than any text encoder reads, and few enough to show and print."""
LONGEST_MESSAGE = 4000
"""Most letters of an error: a page of text."""
SMALLEST_SIDE = 8
"""Pixels: a model can see nothing in a narrower picture."""

_HALF_LETTERS = re.compile("[\ud800-\udfff]")


def readable(text: object) -> str:
    """Return a text that can be printed and stored anywhere: bytes of a file name that are no letters become U+FFFD."""
    return _HALF_LETTERS.sub("\ufffd", str(text))


_PROMPT_SIGNS = "()[]{}<>|:\\"
_JOINERS = "\u200c\u200d"
"""Invisible letters that belong inside words of Persian and Hindi, and inside emoji."""


def misread_in_prompts(name: str) -> str:
    """Return the letters of a name that are invisible, or that a prompt reads as something else; "" if there are none.

    Prompts read brackets, bars, colons and backslashes as weights, choices, ``embedding:`` and ``<lora:>``.
    """
    odd = [x for x in name if x in _PROMPT_SIGNS or (unicodedata.category(x)[0] == "C" and x not in _JOINERS)]
    return "".join(dict.fromkeys(odd)) + ("\n" if len(name.splitlines()) > 1 and "\n" not in odd else "")


class MudiError(Exception):
    """A mistake of the user or a missing file, explained in a sentence: what happened, to what, and what to do.

    The command line prints it without a traceback; nodes show it as their error. Each cause has its own subclass. What
    it quotes from a file may be megabytes long: the middle of such a text is left out.
    """

    def __str__(self) -> str:
        words = readable(super().__str__())  # a file name may hold bytes that no terminal and no page can show
        half = LONGEST_MESSAGE // 2
        return words if len(words) <= LONGEST_MESSAGE else f"{words[:half]} ... {words[-half:]}"


class BadSubject(MudiError):
    """Subjects that cannot be used: no token, no photos, the same token twice, or a mask of another size."""


class BadLayout(MudiError):
    """A layout with a box outside the canvas, or with a subject that is not in the set."""


def _check_image(image: Tensor, owner: str) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or not image.is_floating_point():
        raise BadSubject(f"{owner}: expected a float image [h, w, 3], got {image.dtype} {list(image.shape)}.")
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise BadSubject(
            f"{owner} is {image.shape[1]}x{image.shape[0]} px; a picture needs at least {SMALLEST_SIDE} px a side."
        )
    # Both are NaN when any value is NaN.
    if not getattr(image, "finite", False) and not all(
        math.isfinite(float(value)) for value in (image.amin(), image.amax())
    ):
        raise BadSubject(
            f"{owner} has values that are not numbers (NaN or infinity). Make it again; a VAE in fp16 can cause this."
        )


@dataclass(frozen=True, eq=False)
class Photo:
    """One picture of one subject."""

    name: str
    """File name, unique within a subject; used in messages and when the set is written."""
    image: Tensor
    """Float ``[h, w, 3]``, RGB, 0..1, upright (EXIF rotation applied)."""
    caption: str = ""
    """What a training step reads; empty means "a photo of {token} {class noun}"."""
    source: Path | None = None
    """The file this photo was read from, if any: writing the set copies it instead of encoding again."""

    def __post_init__(self) -> None:
        if not self.name:
            raise BadSubject("A photo needs a name.")
        if len(self.caption) > LONGEST_CAPTION or self.caption != readable(self.caption):
            raise BadSubject(
                f"{self.name}: its caption has {len(self.caption)} letters, or a letter that cannot be saved. "
                f"Write one of up to {LONGEST_CAPTION} letters."
            )
        _check_image(self.image, self.name)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, eq=False)
class Subject:
    """One subject: its token, its class noun, and its references (photos, each with a mask of the subject)."""

    token: str
    """The rare word that names it in a prompt, e.g. "olis"."""
    class_noun: str
    """What it is, e.g. "corgi"; may be several words ("red monster plush")."""
    photos: tuple[Photo, ...]
    masks: tuple[Tensor, ...]
    """One float mask ``[h, w]``, 0..1, per photo and of its size."""

    def __post_init__(self) -> None:
        if not self.token or any(letter.isspace() for letter in self.token):
            raise BadSubject(f"A subject needs a token of one word, such as 'olis'; got {self.token!r}.")
        # A prompt and a saved set lose spaces at the ends, so with them the name would not match again.
        object.__setattr__(self, "class_noun", self.class_noun.strip())
        if not self.class_noun:
            raise BadSubject(f"Subject '{self.token}' needs a class noun, such as 'dog'.")
        for what, text, longest in (
            ("token", self.token, LONGEST_TOKEN),
            ("class noun", self.class_noun, LONGEST_NOUN),
        ):
            if len(text) > longest or text != readable(text):
                raise BadSubject(
                    f"The {what} '{text[:20]}...' has {len(text)} letters, or a letter that cannot be saved. "
                    f"Take one of up to {longest} letters, such as {'olis' if what == 'token' else 'corgi'}."
                )
            if odd := misread_in_prompts(text):
                raise BadSubject(
                    f"The {what} {text[:40]!r} contains {odd!r}, which a prompt would read as something else. "
                    "Use plain words."
                )
        if not self.photos:
            raise BadSubject(f"Subject '{self.token}' has no photos.")
        if len(self.photos) != len(self.masks):
            raise BadSubject(f"Subject '{self.token}': {len(self.photos)} photos but {len(self.masks)} masks.")
        for photo, mask in zip(self.photos, self.masks, strict=True):
            if tuple(mask.shape) != tuple(photo.image.shape[:2]):
                got = "x".join(str(side) for side in reversed(mask.shape))
                raise BadSubject(
                    f"{photo.name}: the mask is {got} px, the photo {photo.size[0]}x{photo.size[1]} px. "
                    "Draw the mask on the photo itself, at its own size."
                )

    @property
    def name(self) -> str:
        """The name as a prompt writes it: "olis corgi"."""
        return f"{self.token} {self.class_noun}"


def check_tokens(tokens: Sequence[str]) -> None:
    """Raise `BadSubject` when subjects with these tokens cannot be one set."""
    if not 1 <= len(tokens) <= MAX_SUBJECTS:
        raise BadSubject(f"A subject set holds 1 to {MAX_SUBJECTS} subjects, got {len(tokens)}.")
    for token in tokens:
        if tokens.count(token) > 1:
            raise BadSubject(f"The token '{token}' is used by two subjects. Give each subject its own token.")


@dataclass(frozen=True, eq=False)
class SubjectSet:
    """The subjects of one picture, 1 to 11, each with its own token."""

    subjects: tuple[Subject, ...]

    def __post_init__(self) -> None:
        check_tokens([subject.token for subject in self.subjects])

    def __len__(self) -> int:
        return len(self.subjects)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.subjects)

    def __getitem__(self, token: str) -> Subject:
        """Return the subject with this token. Raise `BadSubject` with the tokens of the set."""
        for subject in self.subjects:
            if subject.token == token:
                return subject
        raise BadSubject(f"No subject has the token '{token}'; there are: {', '.join(self.tokens)}.")

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of the subjects, in the order of the set."""
        return tuple(subject.token for subject in self.subjects)


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes that a detector found in one picture, most confident first."""

    xyxy: Tensor
    """Float ``[n, 4]``, pixels of the picture."""
    confidence: Tensor
    """Float ``[n]``, 0..1."""
    labels: tuple[str, ...]
    """The text query that each box matches."""
    best_confidence: float = 0.0
    """The highest confidence of any box, also below the threshold; error messages show it."""

    def __post_init__(self) -> None:
        n = len(self.labels)
        if tuple(self.xyxy.shape) != (n, 4) or tuple(self.confidence.shape) != (n,):
            raise ValueError(
                f"expected xyxy [{n}, 4] and confidence [{n}], "
                f"got {list(self.xyxy.shape)} and {list(self.confidence.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Placement:
    """Where one subject stands on a canvas, and which of its photos is shown there."""

    token: str
    xyxy: tuple[float, float, float, float]
    """The box that the cut-out fills, in fractions of the canvas, 0..1."""
    photo: int = 0
    """Index into the subject's photos."""
    mirror: bool = False
    rotation: float = 0.0
    """Degrees clockwise, after mirroring; the box is around the turned cut-out."""

    def __post_init__(self) -> None:
        if not -360 <= self.rotation <= 360:
            raise BadLayout(f"{self.token}: the rotation must be -360 to 360 degrees, got {self.rotation}.")
        x0, y0, x1, y1 = self.xyxy
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise BadLayout(f"{self.token}: its box must lie inside 0..1 and have an area, got {self.xyxy}.")


@dataclass(frozen=True)
class Layout:
    """Which subject stands where on a canvas of a given size."""

    size: tuple[int, int]
    """Width and height in pixels."""
    placements: tuple[Placement, ...]
    """Back to front: the last one is on top."""

    def __post_init__(self) -> None:
        if min(self.size) < 8:
            raise BadLayout(f"A canvas of {self.size[0]}x{self.size[1]} px is too small.")


@dataclass(frozen=True, eq=False)
class Mix:
    """A composition of cut-out subjects on a plain canvas: a training image, or the start of a picture."""

    image: Tensor
    """Float ``[h, w, 3]``, 0..1."""
    masks: Tensor
    """Float ``[n, h, w]``, 0..1: the visible part of each placement, in the layout's order; they sum to at most 1."""
    layout: Layout
    caption: str = ""

    @cached_property
    def mask(self) -> Tensor:
        """Float ``[h, w]``, 0..1: where any subject is visible."""
        return self.masks.sum(0).clamp(max=1)


@dataclass(frozen=True)
class Verdict:
    """What Detect-and-Compare says about one subject, in words."""

    token: str
    status: str
    """"found", "unlike" (its photos), "mixed", "missing" or "duplicated"."""
    share: float
    """0..1: how much of the likeness belongs to this subject, and not to the other subject that it resembles most."""
    text: str
    """A sentence for the user."""


@dataclass(frozen=True)
class VerdictLimits:
    """When a box shows a subject as itself."""

    own: float = 2 / 3
    """Least share of its likeness that belongs to the subject, 0.5..1: below it the box is mixed with another."""
    alike: float = 2 / 3
    """Least similarity to the subject, as a share of what the subject's own photos reach, 0..1: a blob may resemble
    nobody else and still be nobody."""
    cosine: float | None = None
    """Least similarity itself, 0..1, for `alike`, where it is known whatever the subject's own photos reach."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of Detect-and-Compare for one picture (paper section 5, algorithm 3)."""

    tokens: tuple[str, ...]
    score: float
    """The paper's: 1 - squared Frobenius norm of ``s_gt - s_dc``; 0 when the count differs."""
    score_spectral: float
    """The official code's: 1 - spectral norm of the same; 0 when the count differs."""
    s_gt: Tensor
    """Float ``[n, n]``: mean similarity of the references of subject i to those of subject j."""
    s_dc: Tensor
    """Float ``[m, n]``: mean similarity of box i to the references of subject j; rows in the matched order."""
    detections: Detections
    verdicts: tuple[Verdict, ...] = field(default=())
    queries: tuple[str, ...] = ()
    """What the detector looked for."""
    remarks: tuple[str, ...] = ()
    """Sentences for the user about the references: they hold for every picture."""

    @property
    def count_is_right(self) -> bool:
        """Whether as many figures were found as there are subjects."""
        return len(self.detections) == len(self.tokens)

    @property
    def themselves(self) -> int:
        """How many subjects are found as themselves."""
        return sum(verdict.status == "found" for verdict in self.verdicts)

    @property
    def success(self) -> bool:
        """Whether every subject is there once, as itself, and nobody else."""
        return self.count_is_right and self.themselves == len(self.tokens)

    @property
    def in_words(self) -> str:
        """How many subjects are themselves, and how many are near, which is nobody else but not alike enough: "2 of 2
        themselves", "1 of 2 themselves, 1 near"."""
        near = sum(verdict.status == "unlike" for verdict in self.verdicts)
        return f"{self.themselves} of {len(self.tokens)} themselves{f', {near} near' if near else ''}"

    @property
    def figures(self) -> str:
        """How many figures were found, in words: "1 figure"."""
        return f"{len(self.detections)} figure{'' if len(self.detections) == 1 else 's'}"

    @property
    def reason(self) -> str:
        """A sentence that says why the scores are 0: the number of figures is wrong. Empty when it is right."""
        if self.count_is_right:
            return ""
        if not len(self.detections):
            best = self.detections.best_confidence
            asked = " or ".join(f"'{query}'" for query in self.queries)
            sure = f"the detector's best guess was {best:.0%} sure" if best else "the detector had no guess"
            return (
                f"Nothing was found{f' for {asked}' if asked else ''} ({sure}), so the score is 0. Lower the "
                "threshold, or look for a more general word."
            )
        return f"{self.figures}, {len(self.tokens)} expected, so the score is 0."


def listed(names: Sequence[str]) -> str:
    """Join names with commas and "and": "olis corgi, hta cat and lun toy"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
