"""What the mini reference adapter does with characters that it has never seen: `python -m workshop.references FILE`.

Two held-out characters of one species, a caption that says their species only, and a box for each: how often does the
judge name the reference's colour in its box, without the adapter, with it, and with the boxes swapped?
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor

from mudi_core.bases import embedded as family
from mudi_core.eyes import embedded as eyes
from mudi_core.toy.world import DEV_PAIRS, PAIRS, SubjectSpec, photo

from .figures import checkpoint
from .judge import framed, named
from .pictures import GUIDANCE, SETTINGS, judge
from .report import levels, sheet
from .train.cast import saw
from .train.dinov2 import view
from .train.reference import Adapter, Looking, Shown, cross_attentions, phrases
from .train.views import owner_map

LEFT, RIGHT = BOXES = ((0.06, 0.3, 0.47, 0.92), (0.53, 0.3, 0.94, 0.92))
OFF, ON, SWAPPED = WAYS = ("off", "on", "boxes swapped")


@dataclass(frozen=True)
class Painted:
    """A picture, and what the judge sees in its left and its right box."""

    image: Tensor
    wanted: tuple[str, str]
    """The references' colours there."""
    seen: tuple[str, str]

    @property
    def right(self) -> float:
        """Share of the boxes with the wanted colour."""
        return sum(a == b for a, b in zip(self.wanted, self.seen, strict=True)) / 2


class Painter:
    """The embedded pipeline with an adapter of one file."""

    def __init__(self, path: Path, strength: float) -> None:
        self.pipeline: Any = checkpoint().pipeline()
        self.pipeline.set_progress_bar_config(disable=True)
        self.adapter, self.shown, self.strength = Adapter(self.pipeline.unet), Shown(), strength
        self.adapter.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        for pair in self.adapter.ms_adapter.values():
            pair["to_v_ip"].weight.data *= strength  # type: ignore[index]
        processors: dict[str, Any] = {name: AttnProcessor() for name in self.pipeline.unet.attn_processors}
        for pair, name in zip(self.adapter.ms_adapter.values(), cross_attentions(self.pipeline.unet), strict=True):
            processors[name] = Looking(pair, self.shown)
        self.pipeline.unet.set_attn_processor(processors)
        self.phrases = phrases(family.load_text_encoders(), torch.device("cpu"))
        self.eye = eyes.load_dinov2()

    @torch.no_grad()
    def __call__(self, pair: tuple[SubjectSpec, SubjectSpec], way: str, seeds: range) -> list[Painted]:
        """Paint a picture for each seed."""
        who = pair if way != SWAPPED else pair[::-1]
        if way == OFF:
            self.shown.tokens = None
        else:
            self._show(who, len(seeds))
        noun = pair[0].class_noun
        latents = self.pipeline(
            prompt=[f"a photo of a {noun} and a {noun}, simple background"] * len(seeds),
            negative_prompt=[""] * len(seeds),
            width=family.SIZE,
            height=family.SIZE,
            num_inference_steps=SETTINGS.sampler_steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
        ).images
        wanted = (who[0].character.color, who[1].character.color)
        found = []
        for image in checkpoint().decode(latents):
            crops = [framed(image, torch.tensor(box) * family.SIZE) for box in BOXES]
            first, second = named(judge(), crops)
            found.append(Painted(image, wanted, (first[1], second[1])))
        return found

    def _show(self, who: tuple[SubjectSpec, ...], count: int) -> None:
        """Show a reference of each in its box to the positive prompt's rows, which come second."""
        pictures = [reference(one) for one in who]
        phrase = torch.stack([self.phrases[one.class_noun] for one in who])
        tokens = self.adapter.image_proj(saw(self.eye, pictures, torch.device("cpu")), phrase, torch.tensor(BOXES))
        side = family.SIZE // 8
        places = torch.zeros(2, side, side)
        for place, box in zip(places, BOXES, strict=True):
            x0, y0, x1, y1 = (round(edge * side) for edge in box)
            place[y0:y1, x0:x1] = 1
        self.shown.tokens = tokens[None].expand(2 * count, -1, -1, -1)
        self.shown.places = torch.cat(
            [0 * places[None].expand(count, -1, -1, -1), places[None].expand(count, -1, -1, -1)]
        )


def reference(one: SubjectSpec) -> Any:
    """Return a picture of a held-out character, cut out on white."""
    drawn = photo(one.character, random.Random(f"shown/{one.token}/{one.character}"), 160)
    return view(drawn.image, owner_map(drawn.masks), 2, np.random.default_rng(0))[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workshop.references", description=__doc__)
    parser.add_argument("file", type=Path, help="the adapter")
    parser.add_argument("--each", type=int, default=8, help="pictures of each pair and way")
    parser.add_argument("--strength", type=float, default=0.6, help="as MS-Diffusion's authors use it")
    parser.add_argument("--dev", action="store_true", help="with the pairs for choosing settings")
    parser.add_argument("--sheet", type=Path, help="write the first pictures of every pair: off, on, swapped")
    args = parser.parse_args()
    paint, tiles = Painter(args.file, args.strength), []
    right: dict[str, list[float]] = {way: [] for way in WAYS}
    for number, pair in enumerate(DEV_PAIRS if args.dev else PAIRS):
        made = {way: paint(pair, way, range(100 * number, 100 * number + args.each)) for way in WAYS}
        for way, some in made.items():
            right[way] += [one.right for one in some]
        shots = [cv2.resize((reference(one) * 255).astype("uint8"), (family.SIZE, family.SIZE)) for one in pair]
        tiles += [*shots, *(levels(one.image) for some in made.values() for one in some[:2])]
    for way, shares in right.items():
        mean, boxes = sum(shares) / len(shares), 2 * len(shares)
        print(f"{way}: the reference's colour in {100 * mean:.0f} % of {boxes} boxes")
    if args.sheet:
        cv2.imwrite(str(args.sheet), sheet(tiles, len(tiles) // len(PAIRS))[..., ::-1])


if __name__ == "__main__":
    main()
