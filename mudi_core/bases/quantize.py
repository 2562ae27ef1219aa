"""A U-Net's frozen linear layers in 8 or 4 bits, so that it fits into a small card while a LoRA is trained on it.

The formats need nothing but torch, on any device. The numbers are put back into the layer's own precision one layer at
a time, in the forward and in the backward pass, and are never kept in it.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, pad

BaseWeights = Literal["full", "fp8", "int8", "nf4"]
BASE_WEIGHTS: tuple[str, ...] = get_args(BaseWeights)
"""The formats, largest first."""

_BLOCK = 64
"""Numbers that share a scale in 4 bits."""
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""NormalFloat of 4 bits: quantiles of a normal distribution, 0 and both ends included (QLoRA, appendix E)."""


class FrozenLinear(nn.Linear):
    """A linear layer that cannot be trained; `stored` says of how many bits its weight is made."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.dtype = layer.weight.dtype
        """What it computes in: as the layer that it stands for."""

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """The weight in `dtype`: a matrix ``[out, in]``, and what its rows are to be multiplied with ``[out]``."""
        raise NotImplementedError

    def full(self) -> Tensor:
        """The weight ``[out, in]`` in `dtype`."""
        matrix, rows = self.factors()
        return matrix if rows is None else matrix * rows[:, None]

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            product: Tensor = _Product.apply(input.to(self.dtype), self)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias.to(self.dtype)


class Int8Linear(FrozenLinear):
    """A signed byte for each number and a scale for each row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        rows = _scale(weight, 127, self.dtype)
        codes = (weight / rows[:, None].float()).round().clamp(-127, 127)
        self.weight = nn.Parameter(codes.to(torch.int8), requires_grad=False)
        self.register_buffer("rows", rows)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight.to(self.dtype), self.get_buffer("rows")


class Fp8Linear(FrozenLinear):
    """A float of 4 bits of exponent and 3 of mantissa for each number, and a power of 2 for each row.

    Coarser than `Int8Linear`, but a weight that was made of such floats (an fp8 model file) loses nothing.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        largest = weight.abs().amax(dim=1) / torch.finfo(torch.float8_e4m3fn).max
        rows = 2 ** largest.clamp(min=2.0**-100).log2().ceil()
        # As plain bytes: no cast of the model to another type shall take them for numbers.
        bits = (weight / rows[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        self.weight = nn.Parameter(bits, requires_grad=False)
        self.register_buffer("rows", rows.to(self.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight.view(torch.float8_e4m3fn).to(self.dtype), self.get_buffer("rows")


class Nf4Linear(FrozenLinear):
    """Half a byte for each number, and a scale for each 64 of them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        flat = pad(weight.reshape(-1), (0, -weight.numel() % _BLOCK)).reshape(-1, _BLOCK)
        scale = _scale(flat, 1, self.dtype)[:, None]
        levels = torch.tensor(_NF4, device=weight.device)
        codes = torch.bucketize(flat / scale.float(), (levels[1:] + levels[:-1]) / 2)
        packed = codes[:, 0::2] * 16 + codes[:, 1::2]
        self.weight = nn.Parameter(packed.to(torch.uint8), requires_grad=False)
        self.register_buffer("scale", scale)
        # Both numbers of a byte at once: half as many look-ups.
        self.register_buffer("pairs", torch.cartesian_prod(levels, levels).to(self.dtype), persistent=False)

    def factors(self) -> tuple[Tensor, None]:
        numbers = embedding(self.weight.int(), self.get_buffer("pairs")).reshape(-1, _BLOCK) * self.get_buffer("scale")
        weight = numbers.reshape(-1)[: self.out_features * self.in_features]
        return weight.reshape(self.out_features, self.in_features), None


class _Product(torch.autograd.Function):
    """``x W^T`` that remembers the layer and not the full weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        matrix, rows = layer.factors()
        product = linear(x, matrix)
        return product if rows is None else product * rows  # not in place: selective checkpointing may keep it

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        matrix, rows = ctx.layer.factors()
        return (gradient if rows is None else gradient * rows) @ matrix, None


def _scale(rows: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """What the rows of a matrix are divided by so that they end at ``largest``, as a number of ``dtype``; not 0."""
    return (rows.abs().amax(dim=1) / largest).clamp(min=torch.finfo(torch.float32).tiny).to(dtype)


_KINDS: dict[BaseWeights, type[FrozenLinear]] = {"fp8": Fp8Linear, "int8": Int8Linear, "nf4": Nf4Linear}


def quantize(unet: nn.Module, base_weights: BaseWeights) -> None:
    """Puts every linear layer of a U-Net's transformers into ``base_weights``, one by one; "full" changes nothing.

    The modules are replaced; tensors that others share with this U-Net stay as they are.
    """
    if base_weights == "full":
        return
    kind = _KINDS[base_weights]
    for name, module in list(unet.named_modules()):
        if ".transformer_blocks." in f".{name}" and type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, kind(module))


def quantized(weight: Tensor, bias: Tensor | None, base_weights: BaseWeights) -> FrozenLinear:
    """A layer of its own with these values, ``weight [out, in]``, which computes in their type; not for "full"."""
    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return _KINDS[base_weights](layer)


def stored_as(unet: nn.Module) -> BaseWeights:
    """How a U-Net's transformers are kept."""
    kinds = {type(module) for module in unet.modules()}
    return next((name for name, kind in _KINDS.items() if kind in kinds), "full")
