"""Frozen linear layers of a U-Net in 8 or 4 bits, so that a small card can train a LoRA on it.

The formats need only torch and work on every device. One layer at a time, in the forward and in the backward pass, the
weights are converted back to the layer's own precision; they are never kept in it.
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
"""Numbers that share one scale in the 4-bit format."""
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
"""The 16 values of NormalFloat 4: quantiles of a normal distribution with 0 and both ends (QLoRA, appendix E)."""


class FrozenLinear(nn.Linear):
    """A linear layer that cannot be trained; `stored` says in how many bits its weight is kept."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.dtype = layer.weight.dtype
        """The type in which it computes: that of the layer it replaces."""

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight in `dtype`: a matrix ``[out, in]``, and the factors ``[out]`` of its rows, or None."""
        raise NotImplementedError

    def full(self) -> Tensor:
        """Return the full weight ``[out, in]`` in `dtype`."""
        matrix, rows = self.factors()
        return matrix if rows is None else matrix * rows[:, None]

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            product: Tensor = _Product.apply(input.to(self.dtype), self)  # type: ignore[no-untyped-call]
            return product if self.bias is None else product + self.bias.to(self.dtype)


class Int8Linear(FrozenLinear):
    """One signed byte per number and one scale per row."""

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
    """One float with 4 exponent and 3 mantissa bits per number, and one power of 2 per row.

    Less exact than `Int8Linear`, but a weight that comes in such floats (an fp8 model file) loses nothing.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        weight = layer.weight.detach().float()
        largest = weight.abs().amax(dim=1) / torch.finfo(torch.float8_e4m3fn).max
        rows = 2 ** largest.clamp(min=2.0**-100).log2().ceil()
        # As plain bytes, so that casting the model to another type does not convert them.
        bits = (weight / rows[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)
        self.weight = nn.Parameter(bits, requires_grad=False)
        self.register_buffer("rows", rows.to(self.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.weight.view(torch.float8_e4m3fn).to(self.dtype), self.get_buffer("rows")


class Nf4Linear(FrozenLinear):
    """Half a byte per number, and one scale for every 64 numbers."""

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
        # Look up both numbers of a byte at once: half as many look-ups.
        self.register_buffer("pairs", torch.cartesian_prod(levels, levels).to(self.dtype), persistent=False)

    def factors(self) -> tuple[Tensor, None]:
        numbers = embedding(self.weight.int(), self.get_buffer("pairs")).reshape(-1, _BLOCK) * self.get_buffer("scale")
        weight = numbers.reshape(-1)[: self.out_features * self.in_features]
        return weight.reshape(self.out_features, self.in_features), None


class _Product(torch.autograd.Function):
    """Compute ``x W^T``; keep the layer for the backward pass instead of the full weight."""

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
    """Return the divisors of the rows of a matrix that make their largest value ``largest``, in ``dtype``; never 0."""
    return (rows.abs().amax(dim=1) / largest).clamp(min=torch.finfo(torch.float32).tiny).to(dtype)


_KINDS: dict[BaseWeights, type[FrozenLinear]] = {"fp8": Fp8Linear, "int8": Int8Linear, "nf4": Nf4Linear}


def quantize(unet: nn.Module, base_weights: BaseWeights) -> None:
    """Convert every linear layer of a U-Net's transformers to ``base_weights``, one by one; "full" changes nothing.

    The modules are replaced; tensors that other models share with this U-Net stay as they are.
    """
    if base_weights == "full":
        return
    kind = _KINDS[base_weights]
    for name, module in list(unet.named_modules()):
        if ".transformer_blocks." in f".{name}" and type(module) is nn.Linear:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, kind(module))


def quantized(weight: Tensor, bias: Tensor | None, base_weights: BaseWeights) -> FrozenLinear:
    """Return a new quantized layer with these values, ``weight [out, in]``; it computes in their type.

    ``base_weights`` must not be "full".
    """
    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return _KINDS[base_weights](layer)


def stored_as(unet: nn.Module) -> BaseWeights:
    """Return the format in which a U-Net keeps the weights of its transformers."""
    kinds = {type(module) for module in unet.modules()}
    return next((name for name, kind in _KINDS.items() if kind in kinds), "full")
