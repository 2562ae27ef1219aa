"""LoRAs of single subjects that are to become one: their words, and whether a prompt can tell them apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import __version__
from ..stage.captions import SENTENCE, STYLES
from ..types import MudiError, listed
from .metadata import CAPTIONS, plain_base
from .names import TEXT
from .reading import Lora
from .together import PARENTS, parent


class CannotFuse(MudiError):
    """LoRAs that cannot become one; the sentence says which and why."""


@dataclass(frozen=True, eq=False)
class Concept:
    """A LoRA, what a prompt calls its subjects, and how strongly it acts."""

    lora: Lora
    names: tuple[tuple[str, str], ...]
    """Token and class noun of each of its subjects."""
    strength: float = 1.0
    text_strength: float | None = None
    """Of its changes of the text encoders; None: the same."""

    @property
    def words(self) -> str:
        """Its subjects as a prompt names them: "olis corgi"."""
        return listed([f"{token} {noun}" for token, noun in self.names])

    def strength_of(self, layer: str) -> float:
        """Return how strongly its change of a layer acts."""
        text = self.strength if self.text_strength is None else self.text_strength
        return text if layer.startswith(TEXT) else self.strength


def check_concepts(concepts: Sequence[Concept], least: int = 2) -> None:
    """Raise `CannotFuse` for fewer LoRAs than ``least``, and for some that cannot be told apart or that add nothing."""
    if len(concepts) < least:
        raise CannotFuse("There is one LoRA, and fusing needs two or more. Add another LoRA.")
    tensors: dict[str, str] = {}
    tokens: dict[str, str] = {}
    for concept in concepts:
        name = concept.lora.name
        if concept.strength == 0:
            raise CannotFuse(f"{name} has strength 0, so nothing of it would be in the result. Leave it out.")
        if other := tensors.get(concept.lora.fingerprint()):
            raise CannotFuse(f"{other} and {name} are the same LoRA. Give each LoRA once, with a higher strength.")
        tensors[concept.lora.fingerprint()] = name
        if not concept.names:
            raise CannotFuse(
                f"{name} does not say what its subject is called. Give its trigger word and class noun, such as "
                "'olis corgi'."
            )
        for token, noun in concept.names:
            if not noun.strip():
                raise CannotFuse(
                    f"{name} names the trigger word '{token}' and no class noun. Give both, such as '{token} dog'."
                )
            if other := tokens.get(token.casefold()):
                raise CannotFuse(
                    f"{other} and {name} have one trigger word, '{token}': no prompt could tell their subjects apart. "
                    "Train one of them anew with another word."
                )
            tokens[token.casefold()] = name


def fused_metadata(
    concepts: Sequence[Concept], about: Mapping[str, str], *, base: str, family: str, side: int
) -> dict[str, str]:
    """Return the metadata of a LoRA that was made of others, which it names as its parents with their strengths.

    ``about``: how it was made; ``side``: of the base model's square pictures in pixels. `read_lora_subjects` finds
    all subjects in it.
    """
    names = [name for concept in concepts for name in concept.names]
    parents = [parent(one.lora, one.words, one.strength) for one in concepts]
    styles = {one.lora.about.get(CAPTIONS, SENTENCE) for one in concepts}
    style = {CAPTIONS: styles.pop()} if len(styles) == 1 and styles <= set(STYLES) - {SENTENCE} else {}
    return {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": family,
        "ss_sd_model_name": plain_base(base),
        "mudi_tokens": json.dumps([token for token, _ in names]),
        "mudi_class_nouns": json.dumps([noun for _, noun in names]),
        "mudi_base": plain_base(base),
        PARENTS: json.dumps(parents),
        "mudi_config": json.dumps({**about, "resolution": side}),
        "mudi_version": __version__,
        **style,
    }
