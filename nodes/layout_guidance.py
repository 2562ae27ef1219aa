"""Layout Guidance: the words of each subject are seen where it stands (Cones 2)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mudi_core.types import MudiError
from . import host
from .attention import place_inputs, places, tokens_of_each, with_part
from .attention.blocks import blocks_of
from .generate import CATEGORY
from .sockets import PlacedSubjects


class NoWords(MudiError):
    """Places without words that belong there."""


class LayoutGuidance(io.ComfyNode):  # type: ignore[misc]
    """Pull each subject's words to its place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLayoutGuidance",
            display_name="Layout Guidance (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="The prompt's words for each subject count where the subject stands, and not elsewhere, inside "
            "the model's cross-attention (Cones 2). For SD and SDXL; SDXL follows it less.",
            search_aliases=["cones 2", "paint with words", "attention guidance", "layout control", "eDiff-I"],
            inputs=[
                io.Model.Input("model", tooltip="An SD or SDXL model, with its LoRAs."),
                io.Clip.Input("clip", tooltip="What CLIP Text Encode gets, too."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The positive prompt, letter by letter: it must name every subject as the layout does.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.08,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Of the whole; the authors use 0.05 to 0.1. 0 is none.",
                ),
                io.Float.Input(
                    "pull",
                    default=2.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly a subject's words are pulled into its place.",
                ),
                io.Float.Input(
                    "push",
                    default=1e8,
                    min=0.0,
                    max=1e8,
                    step=0.1,
                    tooltip="How strongly they are pushed out of everywhere else. The authors' 100000000 is a wall: a "
                    "subject's words are seen in its place alone.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A line for each place with the words of the prompt that belong there, such as 'red cat'. "
                    "Empty: the subjects' names.",
                ),
                *place_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                io.Mask.Output(display_name="masks", tooltip="The subjects' places in the first picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        strength: float,
        pull: float,
        push: float,
        words: str = "",
        layout: PlacedSubjects | None = None,
        masks: Any = None,
        latent: dict[str, Any] | None = None,
        shape: str = "figures",
        grow: float = 0.1,
        start: float = 0.0,
        end: float = 1.0,
    ) -> io.NodeOutput:
        from ..mudi_core.attention.guidance import LayoutGuidance as Guidance

        blocks_of(model)
        found = places(layout, masks, latent, shape, grow)
        names: list[tuple[str, ...]] = [(line.strip(),) for line in words.splitlines() if line.strip()]
        names = names or found.names()
        if len(names) != found.count or not all(names):
            raise NoWords(
                f"There are {found.count} places and words for {sum(map(bool, names))}. Write a line of words for each "
                "place, or connect a layout, whose subjects have names."
            )
        tokens = tokens_of_each(clip, prompt, names)
        part = Guidance(tokens, found.regions(), strength, pull, push)
        told = [f"{some[0]}: {int(one.sum())} tokens" for some, one in zip(names, tokens, strict=True)]
        worn = with_part(model, part, start, end)
        return io.NodeOutput(worn, found.shown(), ui=host.preview([], cls, "\n".join(told)))
