"""What a LoRA file says about itself: one module writes and reads it.

Other programs show kohya's ``ss_*`` keys; the ``mudi_*`` keys are ours. A file from somebody else may contain anything
there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..stage.captions import SENTENCE, STYLES
from ..tensor_file import BadWeights, check_header
from ..types import LONGEST_NOUN, LONGEST_TOKEN, MAX_SUBJECTS, MudiError, SubjectSet, listed, misread_in_prompts

CAPTIONS = "mudi_captions"
"""The key of the style of captions."""
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f<>]")
_LONGEST_BASE = 255
"""Most letters of the name of a file or folder."""
_LARGEST = 8192
"""Most pixels of a side that a file can ask for."""


class UnknownLora(MudiError):
    """A LoRA file that cannot be read, or that does not name its subjects."""


def lora_metadata(
    settings: Mapping[str, str],
    subjects: SubjectSet,
    *,
    base: str,
    plan_hash: str,
    family: str = "sdxl_base_v1-0",
    captions: str = SENTENCE,
) -> dict[str, str]:
    """Return the metadata of a LoRA file: kohya's ``ss_*`` keys, which other programs show, and our ``mudi_*`` keys.

    ``settings``: the training's, from `train.config.TrainConfig.described`; ``base``: the name of the base model;
    ``plan_hash``: the plan's; ``family``: kohya's name of the architecture of the base model; ``captions``: the style
    of the captions, which a file without a word of it has as sentences: the files of before say nothing.
    """
    style = {} if captions == SENTENCE else {CAPTIONS: captions}
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
        **style,
    }


def plain_base(name: str) -> str:
    """Return a base model's name for a LoRA file, without letters that a page or a terminal would interpret."""
    return _ODD.sub("_", name)[:_LONGEST_BASE]


@dataclass(frozen=True)
class LoraSubjects:
    """The subjects of a LoRA from this project, and how it was trained."""

    tokens: tuple[str, ...]
    class_nouns: tuple[str, ...]
    base: str
    """The base model's name."""
    size: tuple[int, int]
    """Width and height of its training images in pixels: the best size for its pictures."""
    captions: str = SENTENCE
    """The style of its captions, one of `stage.captions.STYLES`: that of its prompts, too."""

    @property
    def names(self) -> list[str]:
        """The names as a prompt writes them: "olis corgi"."""
        return [f"{token} {noun}" for token, noun in zip(self.tokens, self.class_nouns, strict=True)]

    def disagreements(self, names: Sequence[str]) -> list[str]:
        """Return a sentence for each of these names that the LoRA was not trained on."""
        nouns, found = dict(zip(self.tokens, self.class_nouns, strict=True)), []
        for name in names:
            token, _, noun = name.partition(" ")
            if token not in nouns:
                found.append(f"The LoRA was not trained on '{name}'; it knows {listed(self.names)}.")
            elif nouns[token] != noun:
                found.append(f"The LoRA knows '{token}' as a {nouns[token]}, not as a {noun}.")
        return found


def read_about(path: Path) -> dict[str, str]:
    """Return the metadata of a LoRA file, which may come from anybody. Raise `UnknownLora`; no tensors are read."""
    from safetensors import SafetensorError, safe_open

    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, BadWeights) as error:
        raise UnknownLora(f"{path} cannot be read as a safetensors file ({error}).") from None


def read_lora_subjects(path: Path) -> LoraSubjects:
    """Return what the metadata of a LoRA file says; the tensors are not read.

    The file may come from anybody and its names go into a prompt, so names that are not plain words are refused. Raise
    `UnknownLora`.
    """
    about = read_about(path)
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
        style = about.get(CAPTIONS, SENTENCE)
        return LoraSubjects(
            tuple(tokens),
            tuple(noun.strip() for noun in nouns),
            base,
            (int(width), int(height)),
            style if style in STYLES else SENTENCE,  # a later version's own
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UnknownLora(
            f"{path.name} does not name its subjects: it was not trained here, or its names are not plain words. "
            "Connect the subjects that the prompt should name, or write the prompt by hand."
        ) from None


def _is_name(name: object, longest: int) -> bool:
    """Return whether a `Subject` may have this name: what was trained must be recognized."""
    return isinstance(name, str) and 0 < len(name.strip()) <= len(name) <= longest and not misread_in_prompts(name)
