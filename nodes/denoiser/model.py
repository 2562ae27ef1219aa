"""The denoiser of a MODEL: its LoRA is trained on the network that lies in ComfyUI's memory; nothing is replaced.

Its conditions are made by the model's own ``extra_conds``, its noise law is its ``model_sampling``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ...mudi_core.bases.network import KOHYA
from ...mudi_core.bases.promise import Conditions, NoiseLevel
from . import guards
from .asking import answer, fit_together, inputs_of
from .check import check_answer
from .copies import Copies, copies_in, in_place_of, stay_as_they_are, weight_on
from .linear import cast_to, is_linear, weights_asked_again
from .names import diffusers_names, place_in_order, repeated_parts, smaller_parts, usual_of
from .noise import answering, draw_sigma, is_flow, level_of, training_sampling
from .patches import check_bare, fingerprint

if TYPE_CHECKING:
    from ...mudi_core.bases.quantize import BaseWeights


class ComfyDenoiser:
    """A MODEL, with the LoRAs on it, to be trained upon: a `promise.Denoiser`."""

    def __init__(self, model: Any, base_weights: BaseWeights = "full") -> None:
        """``base_weights``: how the linear layers of its blocks are kept on the card. Raise `BadModel`."""
        check_bare(model)
        self.patcher, self.stored_as = model, base_weights
        self._model = model.model
        self._sampling = training_sampling(model)
        self._names, self._usual = diffusers_names(model), usual_of(model)
        self._copies: Copies | None = None

    @property
    def network(self) -> nn.Module:
        network: nn.Module = self._model.diffusion_model
        return network

    @property
    def device(self) -> torch.device:
        return torch.device(self.patcher.load_device)

    @property
    def is_flow(self) -> bool:
        return is_flow(self._sampling)

    @contextmanager
    def ready(self, bf16: bool) -> Iterator[None]:
        """Within the block the MODEL is loaded, and its network's answer has a gradient."""
        dtype = torch.bfloat16 if bf16 else torch.float32
        with ExitStack() as stack:
            self._load(dtype)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(guards.attribute(self._model, "model_sampling", answering(self._model.model_sampling)))
            stack.enter_context(guards.attribute(self._model, "manual_cast_dtype", dtype))
            if hasattr(comfy.model_management, "in_training"):
                stack.enter_context(guards.attribute(comfy.model_management, "in_training", True))
            stack.enter_context(guards.frozen(self._model))
            if self._copies is not None:
                stack.enter_context(in_place_of(self.network, self._copies))
            stack.enter_context(cast_to(self.network, dtype))
            stack.enter_context(guards.differentiable_kernels())
            stack.enter_context(weights_asked_again(self.network))
            yield

    def _load(self, dtype: torch.dtype) -> None:
        """Bring the MODEL to its device; where it is to be in few bits, only copies of its weights."""
        with torch.inference_mode():
            if self.stored_as == "full":
                comfy.model_management.load_models_gpu([self.patcher])
            elif self._copies is None:
                self._copies = copies_in(self.stored_as, self.patcher, self._block_layers(), dtype, self.device)

    def _block_layers(self) -> list[str]:
        """The linear layers that may be in few bits: those of the transformers."""
        inside = {id(module) for block in self.blocks() for module in block.modules()}
        names = [name for name, layer in self.layers().items() if id(layer) in inside]
        return [name for name in names if ".transformer_blocks." in name] if self._names else names

    def remark(self) -> str:
        """Return a sentence on the layers that are not copied in few bits, because they are so already; or ""."""
        layers = self.layers()
        kept = [] if self.stored_as == "full" else stay_as_they_are(self.patcher, list(layers))
        if not kept:
            return ""
        return f"{len(kept)} of the MODEL's {len(layers)} layers are in few bits already and stay as they are."

    def draw_level(self, generator: torch.Generator) -> Tensor:
        """Return one of the model's sigmas, float ``[1]``."""
        return draw_sigma(self._sampling, generator, self._usual.shift)

    def level(self, drawn: Tensor) -> NoiseLevel:
        """``drawn``: sigmas ``[b]``. What the network sees and should answer follows from its ``model_sampling``."""
        return level_of(self._sampling, drawn, self.device)

    def latents(self, encoded: Tensor) -> Tensor:
        with torch.no_grad():
            latents: Tensor = self._model.process_latent_in(encoded)
        return latents

    def predict(self, x: Tensor, level: NoiseLevel, conditions: Sequence[Conditions], sizes: Tensor) -> Tensor:
        """``conditions``: of `convert.encode_text`. Samples with conditions of other shapes go one by one."""
        inputs = [
            inputs_of(self._model, one, size, x[:1], self.device, self._usual.guidance)
            for one, size in zip(conditions, sizes.tolist(), strict=True)
        ]
        if fit_together(inputs):
            return answer(self._model, x, level.at, inputs, self.device)
        each = [
            answer(self._model, x[i : i + 1], level.at[i : i + 1], inputs[i : i + 1], self.device)
            for i in range(len(x))
        ]
        return torch.cat(each)

    def layers(self) -> dict[str, nn.Module]:
        """Return the linear layers; those of SD's and SDXL's U-Nets in the order of diffusers' names."""
        found = {name: module for name, module in self.network.named_modules() if is_linear(module)}
        if not self._names:
            return found
        return dict(sorted(found.items(), key=lambda layer: place_in_order(self._names.get(layer[0], layer[0]))))

    def weight(self, layer: str) -> Tensor:
        return weight_on(self.patcher, layer)

    def file_name(self, layer: str) -> str:
        """SD's and SDXL's layers have diffusers' names in files, all others ComfyUI's own."""
        return KOHYA + self._names.get(layer, layer).replace(".", "_")

    def blocks(self) -> list[nn.Module]:
        """Return the parts that repeat, and of each those that repeat in it if they are nearly all of it."""
        return [inner for part in repeated_parts(self.network) for inner in smaller_parts(part)]

    def repeatable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        return guards.on_copies(forward)

    def fingerprint(self) -> str:
        """Return what tells this MODEL, with the LoRAs on it, from any other, loaded or not."""
        return fingerprint(self.patcher)

    def check(self, encoded: Tensor, conditions: Conditions, bf16: bool) -> None:
        """Raise `BadModel` where a training would see another answer than ComfyUI's samplers do.

        ``encoded``: latents ``[c, ...]`` of the VAE; ``conditions``: of a caption; ``bf16``: as in `ready`.
        """
        check_answer(self, self.patcher, encoded, conditions, bf16)
