"""Seeds: many seeds in a row, so that any graph samples once for each; and which picture came of which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..mudi_core.types import MudiError
from . import convert, host
from .host import widgets

if TYPE_CHECKING:
    from torch import Tensor


class BadSeeds(MudiError):
    """Seeds that are not those of the pictures."""


class MakeSeeds(io.ComfyNode):  # type: ignore[misc]
    """Give seeds as a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSeeds",
            display_name="Seeds (MuDI)",
            category="MuDI/4 compare",
            description="Many seeds as a list: every node behind it runs once for each. Wire it into the seed of any "
            "sampler and into D&C Score, which then says which seed is the best.",
            search_aliases=["seed list", "best seed", "seed search", "best of n", "batch of seeds"],
            inputs=[
                widgets.seed("The first seed; the others follow it."),
                io.Int.Input("count", default=8, min=1, max=1000, tooltip="How many. Each is sampled in its turn."),
            ],
            outputs=[
                io.Int.Output(
                    "seeds",
                    display_name="seeds",
                    is_output_list=True,
                    tooltip="For the seed of KSampler, Random Noise, Layout or Init Latent, and for D&C Score.",
                ),
            ],
        )

    @classmethod
    def execute(cls, seed: int, count: int) -> io.NodeOutput:
        return io.NodeOutput([(seed + number) % 2**64 for number in range(count)])


def titles(images: Sequence[Tensor], seeds: Sequence[int] | None) -> list[str]:
    """Return what each picture of a list of batches ``[b, h, w, c]`` is called: by its seed, or by its number.

    There is a seed for each batch, or one for each picture, or one for all. Raise `BadSeeds` otherwise.
    """
    sizes = [len(convert.pictures([image])) for image in images]
    if seeds is None:
        return [f"picture {number}" for number in range(1, sum(sizes) + 1)]
    if len(seeds) == sum(sizes):
        return [f"seed {seed}" for seed in seeds]
    if len(seeds) not in (1, len(sizes)):
        raise BadSeeds(
            f"There are {len(seeds)} seeds for {len(sizes)} runs with {sum(sizes)} pictures. Wire one Seeds into the "
            "sampler and into D&C Score."
        )
    runs = zip(seeds, sizes, strict=True) if len(seeds) > 1 else [(seeds[0], sum(sizes))]
    return [f"seed {seed}, {number} of its batch" for seed, size in runs for number in range(1, size + 1)]
