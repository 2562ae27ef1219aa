"""Regional Prompts: each subject's place looks at a prompt of its own (Mix-of-Show; in FLUX by a mask, Chen et al.)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..mudi_core.types import MudiError, listed
from . import host
from .attention import Places, place_inputs, places, sees_jointly, with_part, with_prompts
from .attention.blocks import blocks_of
from .convert import BadModel
from .generate import CATEGORY
from .sockets import PlacedSubjects

NAME = "{}"
"""Stands for a subject's name in a line."""
LINE = f"a photo of {NAME}"


class BadLines(MudiError):
    """Lines of prompts that do not fit the subjects."""


class RegionalPrompts(io.ComfyNode):  # type: ignore[misc]
    """Give each subject's place a prompt of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiRegionalPrompts",
            display_name="Regional Prompts (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Each subject's place looks at a prompt of its own, inside the model's attention and in the "
            "same pass. For SDXL and SD (Mix-of-Show), FLUX, FLUX.2 and Chroma; everything else of the picture follows "
            "the usual prompt.",
            search_aliases=["regional prompt", "area composition", "attention couple", "mix of show", "region control"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL, SD, FLUX, FLUX.2 or Chroma model, with its LoRAs."),
                io.Clip.Input("clip", tooltip="What CLIP Text Encode gets, too."),
                io.String.Input(
                    "prompts",
                    default=LINE,
                    multiline=True,
                    tooltip="A line for each subject, in the layout's order; {} is its name, token and class noun. One "
                    "line is for all. The whole sentence with only that subject works best.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the picture's own prompt is replaced inside.",
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
        prompts: str,
        strength: float,
        layout: PlacedSubjects | None = None,
        masks: Any = None,
        latent: dict[str, Any] | None = None,
        shape: str = "figures",
        grow: float = 0.1,
        start: float = 0.0,
        end: float = 1.0,
    ) -> io.NodeOutput:
        import torch

        from ..mudi_core.attention.prompts import RegionalPrompts as Prompts

        wear = _wear(model)
        found = places(layout, masks, latent, shape, grow)
        lines = _lines(prompts, found)
        with torch.inference_mode():
            contexts = [_context(clip, line) for line in lines]
        part = Prompts(contexts, found.regions(), strength)
        worn = wear(model, part, start, end)
        return io.NodeOutput(worn, found.shown(), ui=host.preview([], cls, "\n".join(lines)))


def _wear(model: Any) -> Callable[..., Any]:
    """Return how this MODEL gets prompts of regions. Raise `BadModel` for one that cannot have them."""
    if sees_jointly(model):
        return with_prompts
    try:
        blocks_of(model)
    except BadModel:
        raise BadModel(
            f"This MODEL ({type(model.model.model_config).__name__}) has no attention that could be told which place "
            "looks at which prompt. Regional Prompts works with SDXL, SD, FLUX, FLUX.2 and Chroma; Init Latent works "
            "with every model."
        ) from None
    return with_part


def _lines(prompts: str, found: Places) -> list[str]:
    """Return the prompt of each place. Raise `BadLines`."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [LINE]
    if len(lines) == 1:
        lines *= found.count
    names = found.names()
    if len(lines) != found.count:
        whom = f" ({listed([one[0] for one in names])})" if any(names) else ""
        raise BadLines(
            f"There are {len(lines)} lines for {found.count} places{whom}. Write one line for each, or one for all."
        )
    if not all(names) and any(NAME in line for line in lines):
        raise BadLines("With masks alone nobody has a name for {}. Connect a layout, or write the names.")
    return [line.replace(NAME, some[0]) if some else line for line, some in zip(lines, names, strict=True)]


def _context(clip: Any, line: str) -> Any:
    """Return what the text encoders give for a prompt, ``[1, t, c]``."""
    if not hasattr(clip, "encode_from_tokens"):
        raise BadModel("This CLIP reads no text. Connect the CLIP of the model's own checkpoint.")
    context, *_ = clip.encode_from_tokens(clip.tokenize(line), return_pooled=True)
    return context.clone()
