"""What a LoRA's file says of itself: one module writes it, and reads it.

kohya's ``ss_*`` are what other programs show; ``mudi_*`` are ours. Whoever made a file may have written anything there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..tensor_file import BadWeights, check_header
from ..types import LONGEST_NOUN, LONGEST_TOKEN, MAX_SUBJECTS, MudiError, SubjectSet, listed, misread_in_prompts

_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f<>]")
_LONGEST_BASE = 255
"""Letters of a file's name, or a folder's."""
_LARGEST = 8192
"""Pixels of a side that a file can talk anybody into."""


class UnknownLora(MudiError):
    """A LoRA file that cannot be read, or that does not say whom it knows."""


def lora_metadata(
    settings: Mapping[str, str], subjects: SubjectSet, *, base: str, plan_hash: str, family: str = "sdxl_base_v1-0"
) -> dict[str, str]:
    """What the file says of itself: kohya's ``ss_*`` keys that other programs show, and our own ``mudi_*``.

    ``settings``: the training's, as `train.config.TrainConfig.described` gives them; ``family``: kohya's name for the
    architecture of the base model.
    """
    return {
        **settings,
        "ss_network_module": "networks.lora",
        "ss_base_model_version": family,
        "ss_sd_model_name": plain_base(base),
        "mudi_tokens": json.dumps(list(subjects.tokens)),
        "mudi_class_nouns": json.dumps([subject.class_noun for subject in subjects]),
        "mudi_base": plain_base(base),
        "mudi_plan_hash": plan_hash,
        "mudi_version": __version__,
    }


def plain_base(name: str) -> str:
    """A base model's name as a LoRA's file says it: without what a page or a terminal would take for more."""
    return _ODD.sub("_", name)[:_LONGEST_BASE]


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
        if not (isinstance(tokens, list) and isinstance(nouns, list) and base == plain_base(base)):
            raise ValueError
        if not 0 < len(tokens) == len(nouns) <= MAX_SUBJECTS:
            raise ValueError
        if not all(map(_is_name, tokens, [LONGEST_TOKEN] * len(tokens))):
            raise ValueError
        if not all(map(_is_name, nouns, [LONGEST_NOUN] * len(nouns))):
            raise ValueError
        if any(len(token.split()) != 1 for token in tokens) or not (0 < width <= _LARGEST and 0 < height <= _LARGEST):
            raise ValueError
        return LoraSubjects(tuple(tokens), tuple(noun.strip() for noun in nouns), base, (int(width), int(height)))
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UnknownLora(
            f"{path.name} does not say whom it knows: it was not trained here, or its names are no plain words. "
            "Connect the subjects that the prompt is to name, or write the prompt by hand."
        ) from None


def _is_name(name: object, longest: int) -> bool:
    """Whether a `Subject` may be called so: what trains is known again."""
    return isinstance(name, str) and 0 < len(name.strip()) <= len(name) <= longest and not misread_in_prompts(name)
