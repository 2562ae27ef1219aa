"""Latents from vectors and a start, by diffusers' pipelines: SDXL's, SD's and FLUX's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .flux import packed, unpacked

if TYPE_CHECKING:
    from torch import Tensor

    from .checkpoint import Checkpoint


def sample(
    checkpoint: Checkpoint,
    contexts: Tensor,
    pooled: Tensor,
    starts: Tensor,
    steps: int,
    guidance: float,
    on_step: Callable[[int], None],
) -> Tensor:
    """Return sampled latents ``[b, 4, h, w]``, as the network sees them.

    ``contexts [2, n, d]`` and ``pooled [2, p]``: of the prompt and of the negative prompt, from
    `Checkpoint.encode_text`. ``starts [b, 4, h, w]``: the noise of each picture. ``guidance``: classifier-free, 1 is
    none. ``on_step`` gets the number of steps done. Raise `checkpoint.NoPictures` for FLUX with an old diffusers.
    """
    count, height, width = starts.shape[0], *starts.shape[-2:]

    def stepped(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1)
        return values

    shared = {
        "prompt_embeds": contexts[:1].repeat(count, 1, 1),
        "negative_prompt_embeds": contexts[1:].repeat(count, 1, 1),
        "width": width * checkpoint.vae_factor,
        "height": height * checkpoint.vae_factor,
        "num_inference_steps": steps,
        "output_type": "latent",
        "callback_on_step_end": stepped,
    }
    if pooled.shape[1]:  # SD 1.x and 2.x read none
        shared["pooled_prompt_embeds"] = pooled[:1].repeat(count, 1)
        shared["negative_pooled_prompt_embeds"] = pooled[1:].repeat(count, 1)
    starts = starts.to(checkpoint.device, contexts.dtype)
    pipeline: Any = checkpoint.flux_pipeline() if checkpoint.is_flow else checkpoint.pipeline(reads=False)
    pipeline.set_progress_bar_config(disable=True)
    if not checkpoint.is_flow:
        latents: Tensor = pipeline(**shared, latents=starts, guidance_scale=guidance).images
        return latents
    tokens = pipeline(**shared, latents=packed(starts), true_cfg_scale=guidance).images
    return unpacked(tokens, height, width)
