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
"""Stock nodes after which sampling begins in noise that leaves nothing of a latent."""


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
        return io.NodeOutput(_Noise(seed, _missing_scale(model, sigmas)))


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


def _missing_scale(model: Any, sigmas: Tensor) -> float:
    """Return the factor that the noise needs where sampling begins below the model's last sigma.

    There ComfyUI multiplies noise by sigma; diffusers multiplies by sqrt(1 + sigma^2), as at the last one.
    """
    first = float(sigmas[0]) if len(sigmas) else 0.0
    last = float(model.get_model_object("model_sampling").sigma_max)
    as_the_last = first > last or math.isclose(first, last, rel_tol=1e-5)
    return 1.0 if as_the_last or first == 0 else math.sqrt(1 + first**2) / first


def remarks(prompt: dict[str, Any], node_id: str, in_the_noise: bool = False) -> list[str]:
    """Return a sentence for each setting by which a sampler would spoil the LATENT of node ``node_id``.

    ``prompt``: the graph in ComfyUI's API format. Only the widgets of stock samplers are read, no linked values.
    ``in_the_noise``: whether the node's MODEL begins in noise alone, so that the sampler needs the node's MODEL.
    """
    found = []
    sampled = {name: node for name, node in prompt.items() if node["inputs"].get("latent_image") == [node_id, 0]}
    if in_the_noise and not sampled and _leads_on(prompt, [node_id, 0]) and not _leads_on(prompt, [node_id, 1]):
        found.append(
            "The latent alone counts nothing for this kind of model, and the model that comes out here is connected to "
            "nothing, so the start is lost. Connect it to the sampler."
        )
    for name, node in sampled.items():
        inputs = node["inputs"]
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
        models = _models(prompt, inputs)
        changed = next((name for name in models if _begins_in_noise(prompt[name])), "")
        if node_id not in models and (in_the_noise or changed):
            why = f"was changed by {prompt[changed]['class_type']} (node {changed})" if changed else "is not from here"
            found.append(
                f"{sampler} begins in noise alone, where the latent counts nothing, and its model {why}, so the start "
                "is lost. Connect its model to this node's model, and this node's model to the sampler."
            )
    return found


def _leads_on(prompt: dict[str, Any], output: list[Any]) -> bool:
    """Whether an output is connected to anything."""
    return any(output in node["inputs"].values() for node in prompt.values())


def _models(prompt: dict[str, Any], inputs: dict[str, Any]) -> list[str]:
    """Return the nodes that the MODEL of a sampler comes through, from the sampler up."""
    found: list[str] = []
    link = inputs.get("model") or _origin(prompt, inputs.get("guider")).get("inputs", {}).get("model")
    while isinstance(link, list) and link[0] in prompt and link[0] not in found:
        found.append(link[0])
        link = prompt[link[0]]["inputs"].get("model")
    return found


def _begins_in_noise(node: dict[str, Any]) -> bool:
    """Whether a node lets a MODEL begin with noise that leaves nothing of a latent."""
    zero = node["class_type"] == "ModelSamplingDiscrete" and node["inputs"].get("zsnr") is True
    return zero or node["class_type"] in FLOW_SCHEDULES


def _origin(prompt: dict[str, Any], link: Any) -> dict[str, Any]:
    """Return the node that a link comes from; {} for no link."""
    node: dict[str, Any] = prompt.get(link[0], {}) if isinstance(link, list) else {}
    return node
