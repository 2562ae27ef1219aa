"""Separate LoRAs: several characters' LoRAs in one picture, each where its subject stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.types import listed
from . import host
from .attention import Places, place_inputs, places, with_part, word_tokens
from .attention.blocks import blocks_of
from .attention.loras import take_apart
from .generate import CATEGORY
from .own_loras import NobodysLora, doubts, subjects_of
from .sockets import LorasSocket, PlacedSubjects, SubjectLora

if TYPE_CHECKING:
    from torch import Tensor

    from .attention.loras import TakenApart


class SeparateLoras(io.ComfyNode):  # type: ignore[misc]
    """Let each LoRA act only where its subject stands."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSeparateLoras",
            display_name="Separate LoRAs (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Characters' LoRAs in one picture without mixing: each acts only where the layout has its "
            "subject. For SDXL and SD; it takes the place of several Load LoRA and costs no second pass.",
            search_aliases=["regional lora", "lora mask", "multiple loras", "lora stack", "lora bleeding", "FreeFuse"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL or SD model, without these LoRAs."),
                io.Clip.Input("clip", tooltip="The CLIP of its checkpoint."),
                LorasSocket.Input("loras", tooltip="From the last LoRA Subject."),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Of all LoRAs together."
                ),
                io.Float.Input(
                    "rest",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the layers that no region can hold, such as convolutions: they are merged "
                    "and act in the whole picture. 0 leaves them out. LoRAs of Train LoRA have none.",
                ),
                *place_inputs(),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The positive prompt, letter by letter: then each LoRA changes only the words that name "
                    "its subject. Empty: it changes every word, as Load LoRA does, where its subject stands.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                io.Clip.Output(display_name="clip", tooltip="With the LoRAs' parts for the text encoders."),
                io.Mask.Output(display_name="masks", tooltip="The subjects' places in the first picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        loras: tuple[SubjectLora, ...],
        strength: float,
        rest: float,
        layout: PlacedSubjects | None = None,
        masks: Any = None,
        latent: dict[str, Any] | None = None,
        shape: str = "figures",
        grow: float = 0.1,
        start: float = 0.0,
        end: float = 1.0,
        prompt: str = "",
    ) -> io.NodeOutput:
        from ..mudi_core.attention import lora as attention
        from ..mudi_core.attention.regions import Regions

        blocks = blocks_of(model)
        found = places(layout, masks, latent, shape, grow)
        whose = subjects_of(loras, found.names())
        text_clip, merged = clip, model
        changes, where, words, lines = [], [], [], []
        for one, place in zip(loras, whose, strict=True):
            acts, reads = one.strength * strength, one.text_strength * strength
            if not acts and not reads:
                lines.append(f"{one.path.name}: its strength is 0, so nothing is changed")
                continue
            part = take_apart(model, clip, one.path, acts, blocks.values())
            if acts:
                changes.append(part.changes)
                where.append(place)
                words.append(_words(clip, prompt, one, found, place))
            if acts and rest and part.rest:
                merged = model.clone() if merged is model else merged
                merged.add_patches(part.rest, acts * rest)
            if reads and part.text:
                text_clip = clip.clone() if text_clip is clip else text_clip
                text_clip.add_patches(part.text, reads)
            lines += [_told(one, found, place, part, rest), doubts(one, found.names()[place])]
        lines += _twice(loras, whose)
        if any(changes):
            separate = attention.SeparateLoras(changes, Regions(found.masks[:, where]), words)
            merged = with_part(merged, separate, start, end)
        return io.NodeOutput(merged, text_clip, found.shown(), ui=host.preview([], cls, "\n".join(filter(None, lines))))


def _words(clip: Any, prompt: str, one: SubjectLora, found: Places, place: int) -> Tensor | None:
    if not prompt.strip():
        return None
    names = found.names()[place] or (one.subject,) * bool(one.subject)
    if not names:
        raise NobodysLora(
            f"With masks alone nobody knows which words of the prompt name whom {one.path.name} was taught. Write them "
            "into LoRA Subject, or empty the prompt here."
        )
    return word_tokens(clip, prompt, names)


def _told(one: SubjectLora, found: Places, place: int, part: TakenApart, rest: float) -> str:
    """Return what became of a LoRA, in a line."""
    names = found.names()[place]
    line = f"{one.path.name}: {len(part.changes)} layers where {names[0] if names else f'mask {place + 1}'} stands"
    if part.rest:
        line += f", {len(part.rest)} others " + (f"merged at {rest:g}" if rest else "left out")
    if not one.strength:
        line = f"{one.path.name}: its strength is 0, so no layers of the network are changed"
    if part.text:
        line += f", {len(part.text)} of text" + ("" if one.text_strength else " left out")
    if not found.masks[:, place].any():
        line += "; the place is empty, so it does nothing"
    return "; ".join([line, *part.left])


def _twice(loras: tuple[SubjectLora, ...], whose: list[int]) -> list[str]:
    """Return a line for each LoRA that a subject has several times, and for each subject that has several LoRAs."""
    pairs = [(one.path, place) for one, place in zip(loras, whose, strict=True) if one.strength or one.text_strength]
    again = dict.fromkeys(pair for pair in pairs if pairs.count(pair) > 1)
    lines = [f"{path.name} is there {pairs.count((path, place))} times for one subject." for path, place in again]
    for place in dict.fromkeys(whom for _, whom in pairs):
        some = list(dict.fromkeys(path.name for path, whom in pairs if whom == place))
        if len(some) > 1:
            lines.append(
                f"{listed(some)} are of one subject. If each is of another, say in LoRA Subject whom it was taught."
            )
    return lines
