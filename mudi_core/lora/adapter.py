"""A LoRA on the linear layers of a network, through their forward alone: put on, trained, taken off.

No module and no weight is replaced, so it works with a network of any library, which is unchanged once the LoRA is off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..bases.promise import Denoiser
from ..bases.tokens import TokenVectors
from .change import BadLora
from .file import PARTS, LoraState, kohya_name, load_lora


@dataclass(eq=False)
class _Part:
    """A layer and what the LoRA adds to it: ``alpha / rank * up down x``."""

    layer: nn.Module
    name: str
    """The name in a LoRA file."""
    down: nn.Parameter
    """Float32 ``[rank, in]``."""
    up: nn.Parameter
    """Float32 ``[out, rank]``."""
    alpha: float
    before: Any = None
    """The layer's own ``forward``, when it has another than its class."""

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]


class Adapter:
    """A LoRA for a network, active inside a ``with`` block or from `put_on` to `remove`."""

    def __init__(self, parts: Sequence[_Part], vectors: TokenVectors | None = None) -> None:
        """Make one from its parts, for `new` and `apply_lora`.

        ``vectors``: those of tokens, trained together with it.
        """
        self._parts, self.vectors = parts, vectors
        self._on, self._is_put_on = True, False

    @classmethod
    def new(
        cls,
        denoiser: Denoiser,
        rank: int,
        alpha: float,
        modules: Sequence[str],
        vectors: TokenVectors | None = None,
    ) -> Adapter:
        """Return a LoRA without effect for every linear layer whose name ends in one of ``modules``.

        They may have wildcards (``attn.w[qkv]``, ``mlp.*``); one after ``!`` leaves layers out.
        Without modules only the ``vectors`` of tokens are trained. Raise `BadLora` when no layer has such a name.
        """
        layers = {name: layer for name, layer in denoiser.layers().items() if _is_chosen(name, modules)}
        if not layers and (modules or vectors is None):
            raise BadLora(f"The model has no layer named {', '.join(modules)}. Check target_modules.")
        return cls([_fresh(layers[n], denoiser.file_name(n), rank, alpha, denoiser.device) for n in layers], vectors)

    def __enter__(self) -> Adapter:
        if not self._is_put_on:
            self.put_on()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def put_on(self) -> None:
        """Put the LoRA on the network. Raise `BadLora` when the network already has one."""
        if any(getattr(one.layer.__dict__.get("forward"), "is_lora", False) for one in self._parts):
            raise BadLora("The model already has a LoRA. Use the model without a loaded LoRA.")
        for one in self._parts:
            one.before = one.layer.__dict__.get("forward")
            one.layer.__dict__["forward"] = self._forward(one, one.layer.forward)
        self._is_put_on = True

    def remove(self) -> None:
        """Take the LoRA off; it keeps its values. Calling this again does nothing."""
        if not self._is_put_on:
            return
        for one in self._parts:
            del one.layer.__dict__["forward"]
            if one.before is not None:
                one.layer.__dict__["forward"] = one.before
        self._is_put_on = False

    def _forward(self, one: _Part, plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            answer = plain(x, *args, **kwargs)
            if not self._on:
                return answer
            return answer + linear(linear(x, one.down.to(x.dtype)), one.up.to(x.dtype)) * one.scale

        forward.is_lora = True  # type: ignore[attr-defined]
        return forward

    def start(self, seed: int, lora: Mapping[str, Tensor] | None = None) -> None:
        """Set the start values: down from a normal distribution of standard deviation 1 / rank, up to 0.

        With a ``lora`` of the same layers and of at most this rank, start with its effect instead. Raise `BadLora` when
        it does not fit.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for one in self._parts:
                one.down.copy_(torch.randn(one.down.shape, generator=generator) / one.down.shape[0])
                one.up.zero_()
        if lora is not None:
            self._go_on_from(lora)
        if self.vectors is not None:
            self.vectors.start()

    def _go_on_from(self, lora: Mapping[str, Tensor]) -> None:
        names = {key.rsplit(".", 1)[0] for key in lora if key.endswith(PARTS[2])}
        ours = {one.name: one for one in self._parts}
        if names != ours.keys():
            example = min(names ^ ours.keys())
            raise BadLora(
                f"The LoRA to start from has other layers than this training: {len(names & ours.keys())} of its "
                f"{len(names)} are among the {len(ours)} here, and {example} is not in both. Use a LoRA with the "
                "same base model and target modules."
            )
        for name, one in ours.items():
            given_down, given_up, alpha = (lora[name + part].to(one.down) for part in PARTS)
            rank, wide = given_down.shape[0], one.down.shape[0]
            if rank > wide or given_down.shape[1] != one.down.shape[1] or given_up.shape[0] != one.up.shape[0]:
                raise BadLora(
                    f"The LoRA to start from does not fit into this training: {name} has rank {rank} and is "
                    f"{given_up.shape[0]} x {given_down.shape[1]}, here rank {wide} and {one.up.shape[0]} x "
                    f"{one.down.shape[1]}. Use a LoRA of the same base model, and at least its rank."
                )
            with torch.no_grad():
                one.down[:rank] = given_down
                one.up[:, :rank] = given_up * (alpha / rank) / one.scale

    def parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained, in an order that depends only on the network and the tokens."""
        return [*self.matrices(), *(self.vectors.parameters() if self.vectors is not None else ())]

    def matrices(self) -> list[nn.Parameter]:
        """Return the LoRA's own parameters: down ``[rank, in]`` and up ``[out, rank]`` of each layer in turn."""
        return [matrix for one in self._parts for matrix in (one.down, one.up)]

    def without_gradient(self) -> list[str]:
        """Return the layers, by their names in files, that the last backward pass did not reach."""
        return [one.name for one in self._parts if one.up.grad is None]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside the block the network predicts as if it had no LoRA."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def state(self) -> LoraState:
        """Return a copy of the LoRA on the CPU, float32, by kohya name."""
        state: LoraState = {}
        for one in self._parts:
            values = one.down.detach(), one.up.detach(), torch.tensor(one.alpha)
            for part, value in zip(PARTS, values, strict=True):
                state[one.name + part] = value.to("cpu", torch.float32, copy=True).contiguous()
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a state with the same layers and ranks."""
        with torch.no_grad():
            for one in self._parts:
                one.down.copy_(state[one.name + PARTS[0]])
                one.up.copy_(state[one.name + PARTS[1]])


def apply_lora(unet: Any, lora: Path | Mapping[str, Tensor], scale: float = 1.0) -> Adapter:
    """Put a trained LoRA on a diffusers U-Net for sampling; every layer in the file must exist in the U-Net.

    ``lora``: a file or a state; ``scale`` multiplies its effect. Raise `BadLora`, which says what does not fit.
    """
    if getattr(unet, "peft_config", None):
        raise BadLora("The U-Net already has a LoRA. Use the model without a loaded LoRA.")
    what = "The LoRA" if isinstance(lora, Mapping) else Path(lora).name
    state = lora if isinstance(lora, Mapping) else load_lora(lora)[0]
    names = {key.rsplit(".", 1)[0] for key in state if key.endswith(PARTS[2])}
    layers = {kohya_name(name): layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear)}
    if missing := names - layers.keys():
        raise BadLora(
            f"{what} was trained on another kind of model: {len(missing)} of its {len(names)} layers do not exist "
            f"here, for example {min(missing)}. Use it with the base model it was trained on."
        )
    parts = []
    for name, layer in layers.items():
        if name in names:
            parts.append(_fresh(layer, name, state[name + PARTS[0]].shape[0], state[name + PARTS[2]].item() * scale))
            got = state[name + PARTS[1]].shape[0], state[name + PARTS[0]].shape[1]
            if got != (layer.out_features, layer.in_features):
                raise BadLora(
                    f"{what} was trained on a model of another size: {name} is {layer.out_features} x "
                    f"{layer.in_features} here, {got[0]} x {got[1]} in the file. Use it with its own base model."
                )
    adapter = Adapter(parts)
    adapter.load(state)
    adapter.put_on()
    return adapter


def _fresh(layer: Any, name: str, rank: int, alpha: float, device: torch.device | None = None) -> _Part:
    """Return the part for a layer, without values. Parameters made in inference mode could not be trained."""
    with torch.inference_mode(False):
        device = device or layer.weight.device
        down = torch.empty(rank, layer.in_features, device=device)
        up = torch.empty(layer.out_features, rank, device=device)
        return _Part(layer, name, nn.Parameter(down), nn.Parameter(up), alpha)


def _is_chosen(name: str, modules: Sequence[str]) -> bool:
    """Whether a layer's name ends in one of the patterns and is none of those after a ``!``."""
    left_out = [module[1:] for module in modules if module.startswith("!")]
    chosen = [module for module in modules if not module.startswith("!")]
    return _ends_in(name, chosen) and not _ends_in(name, left_out)


def _ends_in(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)
