"""The subjects in words: prompts that name them all, and what a LoRA file says of whom it knows.

Appendix B of the paper: each subject is named by its token and its class noun, a start such as "2 dogs:" helps with
more subjects, and the negative prompt is "sticker, collage", since Seg-Mix's training images are collages.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .types import LONGEST_NOUN, LONGEST_TOKEN, MAX_SUBJECTS, MudiError, misread_in_prompts
from .weights import BadWeights, check_header

SUBJECTS = "{subjects}"
"""Where a text has the subjects' names."""
TEXT = f"a photo of {SUBJECTS}"
NEGATIVE = "sticker, collage"
MOST_ORDERS = 120
"""Of five subjects."""
_BASE = re.compile(r"[^\x00-\x1f\x7f-\x9f<>]{0,255}")
"""A file's name, or a folder's."""
_LARGEST = 8192
"""Pixels of a side that a file can talk anybody into."""


class TooManyOrders(MudiError):
    """More orders of the subjects than anybody would make pictures of."""


class UnknownLora(MudiError):
    """A LoRA file that cannot be read, or that does not say whom it knows."""


def listed(names: Sequence[str]) -> str:
    """ "olis corgi, hta cat and lun toy"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def write_prompt(names: Sequence[str], text: str = TEXT, kind: str = "") -> str:
    """ "2 dogs: a photo of olis corgi and hta chow chow playing in the snow".

    ``names``: each subject's token and class noun; ``text`` has ``{subjects}`` where they stand, or it is only what
    they do ("playing in the snow"); ``kind``: what they are together ("dogs"), if that is to be said.
    """
    text = text.strip()
    if SUBJECTS not in text:
        text = f"{TEXT} {text}".strip()
    counted = f"{len(names)} {kind.strip()}: " if kind.strip() else ""
    return counted + text.replace(SUBJECTS, listed(names))


def write_prompts(names: Sequence[str], text: str = TEXT, kind: str = "", every_order: bool = False) -> list[str]:
    """One prompt, or one for every order of the subjects, as the paper's scores are averaged over. `TooManyOrders`."""
    orders = math.factorial(len(names)) if every_order else 1
    if orders > MOST_ORDERS:
        raise TooManyOrders(f"{len(names)} subjects have {orders} orders. Up to five subjects can have every order.")
    return [write_prompt(order, text, kind) for order in itertools.islice(itertools.permutations(names), orders)]


@dataclass(frozen=True)
class LoraSubjects:
    """Whom a LoRA of ours knows, and how it was trained."""

    tokens: tuple[str, ...]
    class_nouns: tuple[str, ...]
    base: str
    """The base model's name."""
    size: tuple[int, int]
    """Width and height of its training images in pixels: what pictures of it do best at."""

    @property
    def names(self) -> list[str]:
        """As the prompt writes them: "olis corgi"."""
        return [f"{token} {noun}" for token, noun in zip(self.tokens, self.class_nouns, strict=True)]

    def disagreements(self, names: Sequence[str]) -> list[str]:
        """A sentence for each of these names that this LoRA does not know as such."""
        nouns, found = dict(zip(self.tokens, self.class_nouns, strict=True)), []
        for name in names:
            token, _, noun = name.partition(" ")
            if token not in nouns:
                found.append(f"The LoRA was not trained on '{name}'; it knows {listed(self.names)}.")
            elif nouns[token] != noun:
                found.append(f"The LoRA knows '{token}' as a {nouns[token]}, not as a {noun}.")
        return found


def read_lora_subjects(path: Path) -> LoraSubjects:
    """What a LoRA file's metadata says; its tensors are not read.

    Whoever made the file may have written anything there, and a prompt gets it: what are no plain words is refused.
    Raises `UnknownLora`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
    except (OSError, SafetensorError, BadWeights) as error:
        raise UnknownLora(f"{path} is not a safetensors file that can be read ({error}).") from None
    try:
        tokens, nouns = (json.loads(about[key]) for key in ("mudi_tokens", "mudi_class_nouns"))
        sides = json.loads(about["mudi_config"])["resolution"]
        width, height = sides if isinstance(sides, list) else (sides, sides)
        base = about["mudi_base"]
        if not (isinstance(tokens, list) and isinstance(nouns, list) and _BASE.fullmatch(base)):
            raise ValueError
        if not 0 < len(tokens) == len(nouns) <= MAX_SUBJECTS:
            raise ValueError
        if not all(map(_is_name, tokens, [LONGEST_TOKEN] * len(tokens))):
            raise ValueError
        if not all(map(_is_name, nouns, [LONGEST_NOUN] * len(nouns))):
            raise ValueError
        if any(len(token.split()) != 1 for token in tokens) or not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
            raise ValueError
        return LoraSubjects(tuple(tokens), tuple(nouns), base, (int(width), int(height)))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UnknownLora(
            f"{path.name} does not say whom it knows: it was not trained here, or its names are no plain words. "
            "Connect the subjects that the prompt is to name, or write the prompt by hand."
        ) from None


def _is_name(name: object, longest: int) -> bool:
    """Whether a `Subject` may be called so: what trains is known again."""
    return isinstance(name, str) and 0 < len(name.strip()) <= len(name) <= longest and not misread_in_prompts(name)
