"""Many starts, and the best of them: pictures are sampled, scored and ranked by the seeds they came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from torch import Tensor

from . import convert, drawing, host
from .compare import Judging, compared, ranking
from .host import widgets
from .painting import Painter
from .sockets import LayoutSocket, PlacedSubjects

if TYPE_CHECKING:
    from ..mudi_core.jobs.search import Found


class FindSeed(io.ComfyNode):  # type: ignore[misc]
    """Find the seeds whose pictures score best."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiFindSeed",
            display_name="Find Best Seed (MuDI)",
            category="MuDI/4 compare",
            description="Init Latent, KSampler, VAE Decode and D&C Score for many seeds, the best first. The same seed "
            "in Layout and KSampler makes the same picture again.",
            search_aliases=["best of n", "seed search", "batch", "rank", "x/y plot"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="With the LoRA on it."),
                io.Conditioning.Input("positive", tooltip="Names all subjects."),
                io.Conditioning.Input("negative", tooltip="For example 'sticker, collage'."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that samples."),
                LayoutSocket.Input("layout", tooltip="From Layout: which subjects to show, and the picture's size."),
                widgets.seed("The first seed; the others follow it."),
                io.Int.Input("count", default=16, min=1, max=1000, tooltip="Seeds that are tried."),
                io.Int.Input("keep", default=4, min=1, max=64, tooltip="Pictures that come out, the best first."),
                io.Boolean.Input(
                    "vary_places",
                    default=True,
                    tooltip="Each seed has its own places, as it has in Layout. Off: all have those that Layout shows.",
                ),
                *host.sampler_widgets("ddim_uniform", "As in KSampler. Fewer are enough to compare seeds."),
                widgets.gamma(),
                *widgets.judging(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The best pictures, best first."),
                io.Image.Output(
                    "cards", display_name="cards", tooltip="Their cards: figures, scores, verdicts, and the seed."
                ),
                io.Int.Output(
                    "seeds", display_name="seeds", is_output_list=True, tooltip="Their seeds, for Layout and KSampler."
                ),
                io.Float.Output("scores", display_name="scores", is_output_list=True, tooltip="Their scores."),
                io.Latent.Output("latent", display_name="latent", tooltip="Their latents, for a second pass."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        vae: Any,
        layout: PlacedSubjects,
        seed: int,
        count: int,
        keep: int,
        vary_places: bool,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        gamma: float,
        **judging: Any,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.search import search

        host.check_sampler(sampler_name, scheduler)
        subjects, how, latents = layout.cutouts.subjects, Judging(**judging), list[Tensor]()
        how.eyes()  # before an hour of sampling: they may be missing
        with host.progress(lambda: painter.latest)("sampling") as update:
            sampler = host.Sampler(model, positive, negative, steps, cfg, sampler_name, scheduler)
            painter = Painter(sampler, vae, layout, update, count)

            def paint(one: int) -> Tensor:
                latent, picture = painter.paint(one, gamma, None if vary_places else layout.config.seed)
                latents.append(latent)
                return picture

            seeds = [(seed + number) % 2**64 for number in range(count)]
            found = search(seeds, paint, lambda pictures: compared(pictures, subjects, how))
        return cls._given(found, latents, keep)

    @classmethod
    def _given(cls, found: list[Found], latents: list[Tensor], keep: int) -> io.NodeOutput:
        """Return what comes out of all pictures, of which ``keep`` are handed on."""
        import torch

        pictures, results = [one.picture for one in found], [one.comparison for one in found]
        _, cards, verdicts = ranking(pictures, results, [f"seed {one.seed}" for one in found])
        best = found[:keep]
        return io.NodeOutput(
            convert.image_batch(pictures[:keep]),
            convert.image_batch(drawing.stacked(cards[:keep])),
            [one.seed for one in best],
            [result.score for result in results[:keep]],
            {"samples": torch.cat([latents[one.number] for one in best])},
            ui=host.preview(cards[:keep], cls, verdicts),
        )
