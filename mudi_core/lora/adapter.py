"""A LoRA on a U-Net: put on, trained, taken off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.tokens import TokenVectors
from .file import PARTS, BadLora, LoraState, kohya_name, load_lora

_ADAPTER = "mudi"


class Adapter:
    """A LoRA on a U-Net. `remove`, or the end of a ``with`` block, leaves the U-Net as it was before."""

    def __init__(
        self, unet: Any, rank: int, alpha: float, modules: Sequence[str], vectors: TokenVectors | None = None
    ) -> None:
        """Puts a LoRA that does nothing yet on every linear layer whose name ends in one of ``modules``.

        ``vectors``: those of tokens, to be trained with it; without modules they are all that is trained.
        """
        from peft import LoraConfig
        from peft.tuners.lora import LoraLayer

        _check_bare(unet)
        if not any(_ends(name, modules) for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)):
            if modules or vectors is None:
                raise BadLora(f"The U-Net has no layer named {', '.join(modules)}. Check target_modules.")
        self.unet = unet
        self.alpha = alpha
        self.vectors = vectors
        self._trained_before = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
        unet.requires_grad_(False)
        if modules:
            # peft draws a start from the global generator; the caller's other draws shall not notice.
            with torch.random.fork_rng(devices=[]):
                unet.add_adapter(
                    LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), init_lora_weights="gaussian"),  # type: ignore[arg-type]
                    _ADAPTER,
                )
        self.layers: dict[str, Any] = {
            name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)
        }

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def start(self, seed: int, lora: Mapping[str, Tensor] | None = None) -> None:
        """Down matrices from a normal distribution of standard deviation 1 / rank, up matrices 0; all in float32.

        With a ``lora`` of the same layers and of this rank or less, the start has its effect instead. Raises `BadLora`.
        """
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            down, up = layer.lora_A[_ADAPTER].float().weight, layer.lora_B[_ADAPTER].float().weight
            with torch.no_grad():
                down.copy_(torch.randn(down.shape, generator=generator) / down.shape[0])
                up.zero_()
        if lora is not None:
            self._go_on_from(lora)
        if self.vectors is not None:
            self.vectors.start()

    def _go_on_from(self, lora: Mapping[str, Tensor]) -> None:
        names = {key.rsplit(".", 1)[0] for key in lora if key.endswith(PARTS[2])}
        ours = {kohya_name(name): layer for name, layer in self.layers.items()}
        if names != ours.keys():
            example = min(names ^ ours.keys())
            raise BadLora(
                f"The LoRA to start from has other layers than this training: {len(names & ours.keys())} of its "
                f"{len(names)} are among the {len(ours)} here, and {example} is not in both. Use one of the same base "
                "model and target modules."
            )
        for name, layer in ours.items():
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            given_down, given_up, alpha = (lora[name + part].to(down) for part in PARTS)
            rank = given_down.shape[0]
            if rank > down.shape[0] or given_down.shape[1] != down.shape[1] or given_up.shape[0] != up.shape[0]:
                raise BadLora(
                    f"The LoRA to start from does not fit into this training: {name} has rank {rank} and is "
                    f"{given_up.shape[0]} x {given_down.shape[1]}, here rank {down.shape[0]} and {up.shape[0]} x "
                    f"{down.shape[1]}. Use one of the same base model, and at least its rank."
                )
            with torch.no_grad():
                down[:rank] = given_down
                up[:, :rank] = given_up * (alpha / rank) / (self.alpha / down.shape[0])

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained, in an order that depends on the U-Net and the tokens alone."""
        return [*self.matrices(), *(self.vectors.parameters() if self.vectors is not None else ())]

    def matrices(self) -> list[nn.Parameter]:
        """The LoRA's own parameters."""
        return [
            matrices[_ADAPTER].weight for layer in self.layers.values() for matrices in (layer.lora_A, layer.lora_B)
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the U-Net predicts as if it wore no LoRA."""
        # The flag alone: peft's own switch also sets every parameter's, 20 ms for SDXL, twice in every batch.
        for layer in self.layers.values():
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False

    def state(self) -> LoraState:
        """A copy of the LoRA on the CPU, float32, by kohya name."""
        state: LoraState = {}
        for name, layer in self.layers.items():
            values = (
                layer.lora_A[_ADAPTER].weight.detach(),
                layer.lora_B[_ADAPTER].weight.detach(),
                torch.tensor(self.alpha),
            )
            for part, value in zip(PARTS, values, strict=True):
                state[kohya_name(name) + part] = value.to("cpu", torch.float32, copy=True).contiguous()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the values of a state of the same layers and rank."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.lora_A[_ADAPTER].weight.copy_(state[kohya_name(name) + PARTS[0]])
                layer.lora_B[_ADAPTER].weight.copy_(state[kohya_name(name) + PARTS[1]])

    def remove(self) -> None:
        """Takes the LoRA off. Calling it again does nothing."""
        if getattr(self.unet, "peft_config", None):
            self.unet.unload_lora()
            self.unet._hf_peft_config_loaded = False  # diffusers 0.30 leaves it, and then trips over the next LoRA
        for parameter, trained in self._trained_before:
            parameter.requires_grad_(trained)


def apply_lora(unet: Any, lora: Path | Mapping[str, Tensor], scale: float = 1.0) -> Adapter:
    """Puts a trained LoRA on a diffusers U-Net for sampling; every layer in the file must find its place.

    ``lora``: a file or a state; ``scale`` multiplies its effect. Raises `BadLora` with what does not fit.
    """
    _check_bare(unet)
    what = "The LoRA" if isinstance(lora, Mapping) else Path(lora).name
    state = lora if isinstance(lora, Mapping) else load_lora(lora)[0]
    names = {key.rsplit(".", 1)[0] for key in state if key.endswith(PARTS[2])}
    modules = [
        name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and kohya_name(name) in names
    ]
    if len(modules) < len(names):
        missing = min(names - {kohya_name(name) for name in modules})
        raise BadLora(
            f"{what} was trained on another kind of model: {len(names) - len(modules)} of its {len(names)} layers do "
            f"not exist here, for example {missing}. Use it with the base model it was trained on."
        )
    kinds = {(state[name + PARTS[0]].shape[0], state[name + PARTS[2]].item()) for name in names}
    if len(kinds) > 1:
        raise BadLora(f"{what} mixes {len(kinds)} ranks or alphas; only files with a single rank and alpha are read.")
    for module in modules:
        layer = unet.get_submodule(module)
        got = state[kohya_name(module) + PARTS[1]].shape[0], state[kohya_name(module) + PARTS[0]].shape[1]
        if got != (layer.out_features, layer.in_features):
            raise BadLora(
                f"{what} was trained on a model of another size: {module} is {layer.out_features} x "
                f"{layer.in_features} here, {got[0]} x {got[1]} in the file. Use it with its own base model."
            )
    rank, alpha = kinds.pop()
    adapter = Adapter(unet, rank, alpha * scale, modules)
    adapter.load(state)
    return adapter


def _check_bare(unet: Any) -> None:
    if getattr(unet, "peft_config", None):
        raise BadLora("The U-Net already wears a LoRA. Give the model as it was before any LoRA was loaded.")


def _ends(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.endswith("." + module) for module in modules)
