"""Pictures as ComfyUI's KSampler samples them: its widgets, and one latent at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from .widgets import check_choice

_AS_THERE = "As in KSampler."
AUTO = "auto"
"""The choice of a sampler by which all four widgets are what is usual for the kind of model."""
_AUTO = f"As in KSampler; {AUTO}: steps, cfg, sampler and scheduler are what is usual for the model, whatever they say."


def sampler_widgets(
    scheduler: str, steps_tooltip: str = _AS_THERE, steps: int = 30, *, auto: bool = False
) -> list[Any]:
    """Return the widgets steps, cfg, sampler_name and scheduler.

    ``steps`` and ``scheduler`` are defaults; ``auto``: whether the sampler may be `AUTO`.
    """
    known = comfy.samplers.KSampler
    samplers = [AUTO, *known.SAMPLERS] if auto else known.SAMPLERS
    return [
        io.Int.Input("steps", default=steps, min=1, max=1000, tooltip=steps_tooltip),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip=_AS_THERE),
        io.Combo.Input("sampler_name", options=samplers, default="euler", tooltip=_AUTO if auto else _AS_THERE),
        io.Combo.Input("scheduler", options=known.SCHEDULERS, default=scheduler, tooltip=_AS_THERE),
    ]


def check_sampler(sampler_name: str, scheduler: str) -> None:
    """Raise `BadChoice` for a sampler or a scheduler that this ComfyUI does not have."""
    check_choice("sampler", sampler_name, comfy.samplers.KSampler.SAMPLERS)
    check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True, eq=False)
class Sampler:
    """What KSampler is given, but for the latent and the seed."""

    model: Any
    positive: Any
    negative: Any
    """Conditionings."""
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def sample(
        self,
        latent: Tensor,
        seed: int,
        on_step: Callable[[int], None] = lambda done: None,
        denoise: float = 1.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the finished latent ``[1, c, ...]`` from a start of that shape and the noise of a seed.

        ``on_step`` hears how many steps are done. An exception from it, such as Cancel's, ends the sampling. ``mask``
        ``[1, 1, h, w]`` in pixels or cells, 1 where the latent may change: everywhere without it.
        """
        samples: Tensor = comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(latent, seed),
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            latent,
            denoise=denoise,
            noise_mask=mask,
            callback=lambda step, *values: on_step(step + 1),
            disable_pbar=True,
            seed=seed,
        )
        return samples

    def empty(self, width: int, height: int) -> Tensor:
        """Return an empty latent ``[1, c, ...]`` for a picture of this size in pixels."""
        import torch

        shrinks = getattr(self.model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
        zeros = torch.zeros(1, 4, height // shrinks, width // shrinks)
        empty: Tensor = comfy.sample.fix_empty_latent_channels(self.model, zeros)
        return empty
