"""What happens to a start in the graph: remarks on its samplers, and Noise, which draws noise as diffusers does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host
from .host import widgets

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULERS_WITH_DENOISE = ("BasicScheduler", "SDTurboScheduler")

FLOW_SCHEDULES = ("ModelSamplingFlux", "ModelSamplingSD3", "ModelSamplingAuraFlow")
"""Stock nodes after which sampling begins in noise that leaves nothing of a start."""


class StartNoise(io.ComfyNode):  # type: ignore[misc]
    """Give the noise of the command line's pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiNoise",
            display_name="Noise (MuDI)",
            category="MuDI/3 generate",
            description="Noise for SamplerCustomAdvanced, instead of RandomNoise: the picture begins exactly as "
            "on the command line (diffusers) with the same seed and layout.",
            search_aliases=["random noise", "diffusers parity", "reproduce"],
            inputs=[
                io.Model.Input("model", tooltip="The model that samples."),
                io.Sigmas.Input("sigmas", tooltip="The sampler's. Basic Scheduler's ddim_uniform begins as diffusers."),
                widgets.seed("The command line's --seed. Give Layout and Init Latent the same one."),
            ],
            outputs=[io.Noise.Output("noise", display_name="noise", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model: Any, sigmas: Tensor, seed: int) -> io.NodeOutput:
        remark = weak_start(model, 1.0, float(sigmas[0]) if len(sigmas) else None)
        noise = _Noise(seed, _missing_scale(model, sigmas))
        return io.NodeOutput(noise, ui=host.preview([], cls, remark)) if remark else io.NodeOutput(noise)


class _Noise:
    """A NOISE. Picture i of a batch gets the noise that the library's `generate` draws for picture i."""

    def __init__(self, seed: int, scale: float) -> None:
        self.seed = seed
        self.scale = scale

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        import torch

        from ..mudi_core.jobs.generate import draw_noise

        samples = input_latent["samples"]
        numbers = input_latent.get("batch_index") or range(len(samples))
        noise = torch.cat([draw_noise(self.seed, number, (1, *samples.shape[1:])) for number in numbers])
        return (noise * self.scale).to(samples.dtype)


def weak_start(model: Any, gamma: float, first: float | None = None) -> str:
    """Return and log a sentence for a MODEL that hardly sees a start of strength ``gamma``; nothing for others.

    ``first``: the sigma that sampling begins at, the MODEL's last one if it is not given.
    """
    from comfy.model_sampling import CONST

    from ..mudi_core.start import init_latent

    sampling = model.get_model_object("model_sampling")
    last = float(sampling.sigma_max)
    sigma = last if first is None else min(first, last)
    if isinstance(sampling, CONST):  # flow: noise and picture are weighed by sigma and 1 - sigma
        sigma = sigma / (1 - sigma) if sigma < 1 else math.inf
    remark = init_latent.weak_start(sigma, gamma)
    if remark:
        host.log.warning(remark)
    return remark


def _missing_scale(model: Any, sigmas: Tensor) -> float:
    """Return the factor that the noise needs where sampling begins below the model's last sigma.

    There ComfyUI multiplies noise by sigma; diffusers multiplies by sqrt(1 + sigma^2), as at the last one.
    """
    first = float(sigmas[0]) if len(sigmas) else 0.0
    last = float(model.get_model_object("model_sampling").sigma_max)
    as_the_last = first > last or math.isclose(first, last, rel_tol=1e-5)
    return 1.0 if as_the_last or first == 0 else math.sqrt(1 + first**2) / first


def remarks(prompt: dict[str, Any], node_id: str) -> list[str]:
    """Return a sentence for each setting by which a sampler would spoil the LATENT of node ``node_id``.

    ``prompt``: the graph in ComfyUI's API format. Only the widgets of stock samplers are read, no linked values.
    """
    found = []
    for name, node in prompt.items():
        inputs = node["inputs"]
        if inputs.get("latent_image") != [node_id, 0]:
            continue
        sampler = f"{node['class_type']} (node {name})"
        schedule, noise = _origin(prompt, inputs.get("sigmas")), _origin(prompt, inputs.get("noise"))
        denoise = inputs.get("denoise", 1.0)
        if schedule.get("class_type") in SCHEDULERS_WITH_DENOISE:
            denoise = schedule["inputs"].get("denoise", 1.0)
        if isinstance(denoise, float | int) and denoise < 1:
            found.append(f"{sampler} has a denoise of {denoise:g}: the cut-outs will show through. Set it to 1.")
        start = inputs.get("start_at_step", 0)
        if isinstance(start, int) and start > 0:
            found.append(f"{sampler} begins at step {start}: the cut-outs will show through. Begin at step 0.")
        if inputs.get("add_noise") in ("disable", False) or noise.get("class_type") == "DisableNoise":
            found.append(
                f"{sampler} adds no noise, and this latent has none, so there will be no picture. Let it add noise."
            )
        changed = _schedule_of_another_kind(prompt, inputs)
        if changed:
            found.append(
                f"{sampler} has a model that was changed by {changed}: it begins with so much noise that the start is "
                "lost in it. Remove that node, unless the model was trained this way."
            )
    return found


def _schedule_of_another_kind(prompt: dict[str, Any], inputs: dict[str, Any]) -> str:
    """Return the name of the node above a sampler that makes its model begin with noise alone; "" for none."""
    seen: set[str] = set()
    link = inputs.get("model") or _origin(prompt, inputs.get("guider")).get("inputs", {}).get("model")
    while isinstance(link, list) and link[0] in prompt and link[0] not in seen:
        seen.add(link[0])
        node = prompt[link[0]]
        zero = node["class_type"] == "ModelSamplingDiscrete" and node["inputs"].get("zsnr") is True
        if zero or node["class_type"] in FLOW_SCHEDULES:
            return f"{node['class_type']} (node {link[0]})"
        link = node["inputs"].get("model")
    return ""


def _origin(prompt: dict[str, Any], link: Any) -> dict[str, Any]:
    """Return the node that a link comes from; {} for no link."""
    node: dict[str, Any] = prompt.get(link[0], {}) if isinstance(link, list) else {}
    return node
