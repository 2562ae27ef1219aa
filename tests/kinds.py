"""LoRAs of every kind on linear layers, of random values, as their programs name them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RANK = 2
NEEDED = {"LoRA": 2, "more ranks": 6, "LoHa": 4, "LoKr": 8, "GLoRA": 4, "DoRA, rows": 10**4, "DoRA, columns": 10**4}
"""The kinds, and the rank that holds all of their change: that of DoRA may have every rank of the weight."""


def parts_of(kind: str, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the tensors of one layer by their names behind the layer's."""
    rows, columns = weight.shape

    def some(*shape: int, size: float = 0.1) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    plain = {"lora_up.weight": some(rows, RANK), "lora_down.weight": some(RANK, columns), "alpha": torch.tensor(3.0)}
    if kind == "LoRA":
        return plain
    if kind == "more ranks":
        return {"lora_up.weight": some(rows, 6), "lora_down.weight": some(6, columns)}
    if kind == "LoHa":
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        return {name: some(*((rows, RANK) if name.endswith("a") else (RANK, columns)), size=0.3) for name in names}
    if kind == "LoKr":
        return {
            "lokr_w1": some(4, 4, size=1.0),
            "lokr_w2_a": some(rows // 4, RANK),
            "lokr_w2_b": some(RANK, columns // 4),
        }
    if kind == "GLoRA":
        return {
            "a1.weight": some(columns, RANK), "a2.weight": some(RANK, columns),
            "b1.weight": some(rows, RANK), "b2.weight": some(RANK, columns),
        }  # fmt: skip
    norms = weight.norm(dim=1, keepdim=True) if kind == "DoRA, rows" else weight.norm(dim=0, keepdim=True)
    return {**plain, "dora_scale": norms * (1 + some(*norms.shape))}


def lora_of_kind(kind: str, weights: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return a LoRA file's tensors. ``weights``: of the layers that it changes, by their names in the file."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.{part}": value.contiguous()
        for name, weight in weights.items()
        for part, value in parts_of(kind, weight.detach().float().cpu(), generator).items()
    }
