"""Train Preview: pictures of the LoRA while it is trained, by ComfyUI's own sampler, and what they score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
from comfy_api.latest import io

from . import host
from .compare import Judging, compared
from .denoiser import usual_of
from .host import widgets
from .painting import Painter
from .sockets import LayoutSocket, PlacedSubjects, PreviewSocket, TrainPreview

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.previews import Preview


class MakeTrainPreview(io.ComfyNode):  # type: ignore[misc]
    """Choose the pictures that Train LoRA makes on its way."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiTrainPreview",
            display_name="Train Preview (MuDI)",
            category="MuDI/2 train",
            description="Lets Train LoRA make and score pictures while it trains, always from the same seeds, once "
            "from a plain start and once from MuDI's. The LoRA whose pictures score best is saved, too.",
            search_aliases=["sample while training", "validation images", "best checkpoint", "early stopping"],
            inputs=[
                LayoutSocket.Input("layout", tooltip="From Layout: which subjects to show, and the pictures' size."),
                io.Conditioning.Input("positive", tooltip="Names all subjects."),
                io.Conditioning.Input("negative", tooltip="For example 'sticker, collage'."),
                io.Int.Input(
                    "every",
                    default=200,
                    min=1,
                    max=100_000,
                    tooltip="Training steps between two previews; there is one after the last step, too.",
                ),
                widgets.seed("The first seed; the others follow it. Leave it fixed, or training starts anew."),
                io.Int.Input("count", default=2, min=1, max=16, tooltip="Seeds, each of which makes two pictures."),
                *host.sampler_widgets("ddim_uniform", steps=25, auto=True),
                *widgets.judging(asks=False),
            ],
            outputs=[PreviewSocket.Output(display_name="preview", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        layout: PlacedSubjects,
        positive: Any,
        negative: Any,
        every: int,
        seed: int,
        count: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        detector: str,
        embedder: str,
        threshold: float,
        cut_out: bool,
        download: bool,
    ) -> io.NodeOutput:
        if sampler_name != host.AUTO:
            host.check_sampler(sampler_name, scheduler)
        Judging(detector, embedder, threshold, download=download).eyes()  # before hours of training: may be missing
        seeds = tuple((seed + number) % 2**64 for number in range(count))
        return io.NodeOutput(
            TrainPreview(
                layout, positive, negative, every, seeds, steps, cfg, sampler_name, scheduler, detector, embedder,
                threshold, cut_out,
            )
        )  # fmt: skip


def sampled(wanted: TrainPreview, model: Any, vae: Any) -> Preview:
    """Make and score the pictures of a MODEL with the LoRA so far on it. Afterwards no model is on the card."""
    from ..mudi_core.jobs.previews import look
    from ..mudi_core.start.init_latent import default_gamma

    subjects, seeds = wanted.layout.cutouts.subjects, wanted.seeds

    def score(pictures: Iterable[Tensor]) -> list[float]:
        how = Judging(wanted.detector, wanted.embedder, wanted.threshold, cut_out=wanted.cut_out)
        found = compared(list(pictures), subjects, how)
        return [comparison.score for comparison in found]

    steps, cfg, sampler_name, scheduler = _settings(wanted, model)
    with _as_a_node_runs(), host.progress()("sampling a preview") as update:
        sampler = host.Sampler(model, wanted.positive, wanted.negative, steps, cfg, sampler_name, scheduler)
        painter = Painter(sampler, vae, wanted.layout, update, 2 * len(seeds))
        return look(
            lambda gamma: [painter.paint(seed, gamma)[1] for seed in seeds], default_gamma(len(subjects)), score
        )


def _settings(wanted: TrainPreview, model: Any) -> tuple[int, float, str, str]:
    """Return steps, cfg, sampler and scheduler: those of the widgets, or what is usual for the MODEL's kind."""
    if wanted.sampler_name != host.AUTO:
        return wanted.steps, wanted.cfg, wanted.sampler_name, wanted.scheduler
    usual = usual_of(model).sampling.preview()
    return usual.steps, usual.cfg, usual.sampler, usual.scheduler


@contextmanager
def _as_a_node_runs() -> Iterator[None]:
    """Use inference mode, as ComfyUI does for nodes, and take all models off the card in the end."""
    import torch

    try:
        with torch.inference_mode():
            yield
    finally:
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
