"""Mini Checkpoint and Mini Photos: the embedded model for every stock node, and photos to train it with."""

from __future__ import annotations

import random
from typing import Any

import torch
from comfy_api.latest import io

from ..mudi_core.bases import embedded as family
from ..mudi_core.toy.world import PAIRS, photo
from . import host
from .host import widgets
from .mini_models import load_clip, load_sdxl, load_vae

CATEGORY = "MuDI/mini"
PAIR_CHOICES = [f"{i}: {a.token} {a.class_noun} and {b.token} {b.class_noun}" for i, (a, b) in enumerate(PAIRS)]


class MiniCheckpoint(io.ComfyNode):  # type: ignore[misc]
    """Give MODEL, CLIP and VAE of the embedded family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMiniCheckpoint",
            display_name="Mini Checkpoint (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="A tiny model of SDXL's architecture that comes with MuDI. It draws toy characters at "
            f"{family.SIZE}x{family.SIZE} px in seconds, without a graphics card and without a download: to try out "
            "and to learn a workflow with.",
            search_aliases=["checkpoint", "load checkpoint", "mini", "tiny sdxl", "demo"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip=f"The mini model. Its pictures are {family.SIZE}x{family.SIZE} px."
                ),
                io.Clip.Output(display_name="clip", tooltip="The mini model's two text encoders."),
                io.Vae.Output(display_name="vae", tooltip="The mini model's VAE."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        parts: list[Any] = []
        with host.progress()("loading") as update:
            for load in (load_sdxl, load_clip, load_vae):
                parts.append(load())
                update(len(parts), 3)
        return io.NodeOutput(*parts, ui=host.preview([], cls, f"for pictures of {family.SIZE}x{family.SIZE} px"))


class MiniPhotos(io.ComfyNode):  # type: ignore[misc]
    """Draw photos of two similar characters that the embedded family has never seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMiniPhotos",
            display_name="Mini Photos (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Photos of two similar toy characters that the mini model has never seen: they stand "
            "for the photos of your own two subjects.",
            search_aliases=["photos", "example", "dataset", "demo", "toy"],
            inputs=[
                io.Combo.Input("pair", options=PAIR_CHOICES, tooltip="Which two characters."),
                io.Int.Input("count", default=5, min=1, max=32, tooltip="Photos of each character."),
                io.Int.Input("side", default=320, min=96, max=1024, step=8, tooltip="Width and height in pixels."),
                widgets.seed("Decides poses, places and light."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="photos_a", is_output_list=True, tooltip="Photos of the first character, one by one."
                ),
                io.Image.Output(
                    display_name="photos_b", is_output_list=True, tooltip="Photos of the second character, one by one."
                ),
                io.String.Output(display_name="token_a", tooltip="The first one's name, a word without meaning."),
                io.String.Output(display_name="class_a", tooltip="What the first character is."),
                io.String.Output(display_name="token_b", tooltip="The second one's name, a word without meaning."),
                io.String.Output(display_name="class_b", tooltip="What the second character is."),
            ],
        )

    @classmethod
    def execute(cls, pair: str, count: int, side: int, seed: int) -> io.NodeOutput:
        host.check_choice("pair", pair, PAIR_CHOICES)
        first, second = PAIRS[PAIR_CHOICES.index(pair)]
        photos: list[list[torch.Tensor]] = []
        with host.progress()("drawing photos") as update:
            for spec in (first, second):
                drawn = []
                for number in range(count):
                    pixels = photo(spec.character, random.Random(f"{seed}/{spec.token}/{number}"), side).image
                    drawn.append(torch.from_numpy(pixels.copy())[None].float() / 255)
                    update(len(photos) * count + number + 1, 2 * count)
                photos.append(drawn)
        said = f"{count} photos each of {first.token} {first.class_noun} and {second.token} {second.class_noun}"
        names = (first.token, first.class_noun, second.token, second.class_noun)
        return io.NodeOutput(*photos, *names, ui=host.preview([], cls, said))
