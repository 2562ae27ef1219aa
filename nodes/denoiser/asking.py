"""Asking a MODEL's network, as ComfyUI's samplers do: its conditions, and its answer to noisy latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ...mudi_core.bases.promise import Conditions
from ..convert import conditioning
from .guards import NormsKeepCopies


def inputs_of(
    network: Any,
    conditions: Conditions,
    size: Sequence[float],
    like: Tensor,
    device: torch.device,
    guidance: float | None = None,
) -> dict[str, Any]:
    """Return what the network reads beside the noise for one sample, as the model's own ``extra_conds`` makes it.

    ``network``: ComfyUI's BaseModel; ``size``: six numbers as in `promise.Denoiser.predict`; ``like``: a latent
    ``[1, c, ...]`` of the sample's shape; ``guidance``: as in `Family.guidance`.
    """
    given = conditioning(conditions) | ({} if guidance is None else {"guidance": guidance})
    height, width, top, left, target_height, target_width = (int(number) for number in size)
    learned = torch.is_grad_enabled() and any(value.requires_grad for value in conditions.values())
    with torch.set_grad_enabled(learned):
        found = network.extra_conds(
            **given,
            noise=like,
            latent_image=torch.zeros_like(like),
            device=device,
            prompt_type="positive",
            height=height,
            width=width,
            crop_h=top,
            crop_w=left,
            target_height=target_height,
            target_width=target_width,
        )
        return {name: one.process_cond(batch_size=1, device=device, area=None) for name, one in found.items()}


def fit_together(inputs: Sequence[dict[str, Any]]) -> bool:
    """Return whether the network can read the `inputs_of` all these samples at once."""
    first = inputs[0]
    return all(
        first.keys() == other.keys() and all(first[name].can_concat(other[name]) for name in first)
        for other in inputs[1:]
    )


def answer(network: Any, x: Tensor, sigma: Tensor, inputs: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Return what ``apply_model`` makes of noisy latents ``[b, c, ...]`` at sigmas ``[b]``, of the same shape.

    ``inputs``: of each sample, by `inputs_of`.
    """
    batch = {
        name: _on_device(first.concat([other[name] for other in inputs[1:]]), device)
        for name, first in inputs[0].items()
    }
    options = {"optimized_attention_override": _attention, "cond_or_uncond": [0], "sigmas": sigma}
    with NormsKeepCopies():
        answered: Tensor = network.apply_model(x, sigma, transformer_options=options, **batch)
    return answered


def _attention(_chosen: Any, *args: Any, **kwargs: Any) -> Any:
    """torch's own attention: others have no derivative, or compute otherwise when memory is short."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_on_device(one, device) for one in value] if isinstance(value, list) else value
