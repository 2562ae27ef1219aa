"""The change that a LoRA of any kind makes to one layer; nothing is computed before somebody asks.

The kinds and their formulas: LoRA (Hu et al. 2021), LoCon's middle, LoHa and LoKr (LyCORIS, Yeh et al. 2023), GLoRA
(Chavan et al. 2023), DoRA (Liu et al. 2024) around any of them, and a change that is stored as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import MudiError

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"
ALPHA, MAGNITUDE = "alpha", "dora_scale"

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LoRA": ((DOWN, UP), (MID,)),
    "LoHa": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ("hada_t1", "hada_t2")),
    "LoKr": ((), ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    "GLoRA": (("a1.weight", "a2.weight", "b1.weight", "b2.weight"), ()),
    "full": (("diff",), ()),
}
"""For each kind the tensors that it must have and may have, as LyCORIS names them after the name of the layer."""
_UNFOLDED = 24
"""Factors with more than this many times the numbers in the file are not made: a LoHa of rank 40 on layers of 3072 has
20 times, and a small file from a stranger could fill the memory."""
_LARGEST = 0.5
"""Factors of more ranks than this share of the smaller side of the weight are no smaller than the change itself."""


class BadLora(MudiError):
    """A LoRA file that cannot be written or read, or that does not fit the model."""


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to the weight ``[out, in, ...]`` of one layer, linear or convolution."""

    kind: str
    """One of `KINDS`."""
    parts: Mapping[str, Tensor]
    """Its tensors, by the names in `KINDS`, of any type."""
    alpha: float | None = None
    """The change is multiplied by alpha / rank; None: it is not."""
    magnitude: Tensor | None = None
    """DoRA's: the norm of each row of the new weight, or of each column, as many values as there are."""

    @classmethod
    def of(cls, parts: Mapping[str, Tensor], where: str) -> Change | None:
        """Return the change that tensors by their names in `KINDS` stand for; None where no kind has such tensors.

        ``where``: the name of the layer, for errors. Raise `BadLora` where tensors are missing or do not fit together.
        """
        for kind, (needed, others) in KINDS.items():
            own = {name: tensor for name, tensor in parts.items() if name in (*needed, *others)}
            if not own:
                continue
            missing = [name for name in needed if name not in own]
            if missing:
                raise BadLora(f"The file is incomplete: '{missing[0]}' is missing of {where}. Download it again.")
            alpha = parts.get(ALPHA)
            if alpha is not None and (alpha.numel() != 1 or not torch.isfinite(alpha.float()).all()):
                raise BadLora(f"The alpha of {where} is no number. The file is damaged: download it again.")
            change = cls(kind, own, None if alpha is None else float(alpha.float()), parts.get(MAGNITUDE))
            try:
                out, wide = change.size
                fit = out > 0 and wide > 0 and change.rank != 0 and change._fits_together()
            except (ArithmeticError, IndexError, KeyError, RuntimeError, ValueError):
                fit = False
            if not fit:
                shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(own.items()))
                raise BadLora(f"The matrices of {where} do not fit together: {shapes}. Download the file again.")
            return change
        return None

    @property
    def size(self) -> tuple[int, int]:
        """The rows of the weight, and the values in each."""
        p = self.parts
        if self.kind == "LoRA":
            kernel = p[MID].shape[2:].numel() if MID in p else 1
            return p[UP].shape[0], p[DOWN][0].numel() * kernel
        if self.kind == "LoHa":
            if "hada_t1" in p:
                return p["hada_w1_a"].shape[1], p["hada_w1_b"].shape[1] * p["hada_t1"].shape[2:].numel()
            return p["hada_w1_a"].shape[0], p["hada_w1_b"].shape[1]
        if self.kind == "LoKr":
            first, second = _lokr_shape(p, 1), _lokr_shape(p, 2)
            return first[0] * second[0], first[1] * second[1:].numel()
        if self.kind == "GLoRA":
            b1, b2 = (p["b1.weight"], p["b2.weight"]) if self._is_new_glora() else (p["b2.weight"], p["b1.weight"])
            return b1.shape[0], b2[0].numel()
        return p["diff"].shape[0], p["diff"][0].numel()

    @property
    def rank(self) -> int | None:
        """By what alpha is divided; None where nothing is."""
        p = self.parts
        if self.kind == "LoRA":
            return p[DOWN].shape[0]
        if self.kind == "LoHa":
            return p["hada_w1_b"].shape[0]
        if self.kind == "LoKr":
            factor = p.get("lokr_w2_b", p.get("lokr_w1_b"))
            return None if factor is None else factor.shape[0]
        if self.kind == "GLoRA":
            return p["a2.weight" if self._is_new_glora() else "a1.weight"].shape[0]
        return None

    @property
    def scale(self) -> float:
        """What the product of the matrices is multiplied by."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def needs_weight(self) -> bool:
        """Whether the change depends on the weight that it is made to."""
        return self.kind == "GLoRA" or self.magnitude is not None

    def factors(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Return ``up [out, r]`` and ``down [r, in ...]``, float32, whose product is the change, flat.

        None where there are no such factors, or none that are smaller than the change. ``weight``: of the layer,
        which GLoRA multiplies.
        """
        if self.magnitude is not None or not self._stays_small():
            return None
        p = {name: tensor.float() for name, tensor in self.parts.items()}
        if self.kind == "LoRA":
            down = p[DOWN].flatten(1) if MID not in p else _through_middle(p[DOWN].flatten(1), p[MID])
            return p[UP].flatten(1) * self.scale, down
        if self.kind == "GLoRA" and weight is not None and weight.ndim == 2:
            a, b, c, d = self._glora_in_order(p)
            return torch.cat([weight.to(a) @ a, c], 1) * self.scale, torch.cat([b, d], 0)
        if self.kind == "LoHa" and "hada_t1" not in p:
            ranks = p["hada_w1_b"].shape[0] * p["hada_w2_b"].shape[0]
            if ranks <= _LARGEST * min(self.size):
                up = torch.einsum("op,oq->opq", p["hada_w1_a"], p["hada_w2_a"]).flatten(1)
                return up * self.scale, torch.einsum("pi,qi->pqi", p["hada_w1_b"], p["hada_w2_b"]).flatten(0, 1)
        return None

    def _stays_small(self) -> bool:
        """Return whether the factors have about as many numbers as the tensors in the file."""
        rank, (out, wide) = self.rank or 1, self.size
        if self.kind == "LoRA":
            ranks = self.parts[UP][0].numel()
        else:
            ranks = rank * self.parts["hada_w2_b"].shape[0] if self.kind == "LoHa" else 2 * rank
        return ranks * (out + wide) <= _UNFOLDED * sum(tensor.numel() for tensor in self.parts.values())

    def delta(self, weight: Tensor) -> Tensor:
        """Return what is added to ``weight [out, in, ...]``, float32, of its shape and on its device."""
        p = {name: tensor.to(weight.device, torch.float32) for name, tensor in self.parts.items()}
        plain = self._plain(p, weight.float()).reshape(weight.shape) * self.scale
        if self.magnitude is None:
            return plain
        return _decomposed(weight.float(), plain, self.magnitude.to(plain)) - weight.float()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return its tensors under the name of its layer, as LyCORIS and ComfyUI read them."""
        found = {f"{name}.{part}": tensor for part, tensor in self.parts.items()}
        if self.alpha is not None:
            found[f"{name}.{ALPHA}"] = torch.tensor(self.alpha)
        if self.magnitude is not None:
            found[f"{name}.{MAGNITUDE}"] = self.magnitude
        return found

    def _plain(self, p: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Return the change before its scale; its values are in the order of the weight's."""
        if self.kind == "LoRA":
            down = p[DOWN].flatten(1) if MID not in p else _through_middle(p[DOWN].flatten(1), p[MID])
            return p[UP].flatten(1) @ down
        if self.kind == "LoHa":
            return _product(p, 1) * _product(p, 2)
        if self.kind == "LoKr":
            first, second = _lokr(p, 1), _lokr(p, 2)
            return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second.contiguous())
        if self.kind == "GLoRA":
            a, b, c, d = self._glora_in_order(p)
            return torch.einsum("oi...,ij,jk->ok...", weight, a, b) + (c @ d).reshape(weight.shape)
        return p["diff"]

    def _is_new_glora(self) -> bool:
        """LyCORIS turned all matrices of GLoRA around in 2023. For square layers both would fit."""
        a1, a2, b1, b2 = (self.parts[name] for name in KINDS["GLoRA"][0])
        return bool(b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0] <= a2.shape[1])

    def _glora_in_order(self, p: Mapping[str, Tensor]) -> list[Tensor]:
        """Return ``a, b, c, d`` of the change ``weight a b + c d``."""
        a1, a2, b1, b2 = (p[name].flatten(1) for name in KINDS["GLoRA"][0])
        return [a1, a2, b1, b2] if self._is_new_glora() else [a2, a1, b2, b1]

    def _fits_together(self) -> bool:
        """Compute the shapes alone, on no device."""
        bare = {name: torch.empty(tensor.shape, device="meta") for name, tensor in self.parts.items()}
        out, wide = self.size
        if self.kind == "GLoRA":
            a, *_ = self._glora_in_order(bare)
            kernel = wide // a.shape[0]
            plain = self._plain(bare, torch.empty(out, a.shape[0], *([kernel] if kernel > 1 else []), device="meta"))
        else:
            plain = self._plain(bare, torch.empty(0))
        return plain.numel() == out * wide and (self.magnitude is None or self.magnitude.numel() >= 1)


def _through_middle(down: Tensor, middle: Tensor) -> Tensor:
    """Return ``[r, in * kernel]`` of a 1x1 ``down [r, in]`` and the kernel between both (LoCon's Tucker form)."""
    return torch.einsum("ij...,jn->in...", middle, down).flatten(1)


def _product(p: Mapping[str, Tensor], which: int) -> Tensor:
    a, b, core = p[f"hada_w{which}_a"], p[f"hada_w{which}_b"], p.get(f"hada_t{which}")
    return a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)


def _lokr(p: Mapping[str, Tensor], which: int) -> Tensor:
    whole, core = p.get(f"lokr_w{which}"), p.get(f"lokr_t{which}")
    if whole is not None:
        return whole
    a, b = p[f"lokr_w{which}_a"], p[f"lokr_w{which}_b"]
    return a @ b if core is None else torch.einsum("ij...,jr,ip->pr...", core, b, a)


def _lokr_shape(p: Mapping[str, Tensor], which: int) -> torch.Size:
    return _lokr({name: torch.empty(tensor.shape, device="meta") for name, tensor in p.items()}, which).shape


def _decomposed(weight: Tensor, plain: Tensor, magnitude: Tensor) -> Tensor:
    """Return the new weight whose rows (or columns) have the norms of ``magnitude`` (DoRA, equation 5).

    The direction is that of the changed weight, as in peft and LyCORIS; ComfyUI divides by the norms of the weight
    before, where magnitudes are of rows.
    """
    changed = weight + plain
    over_rows = magnitude.shape[0] == weight.shape[0] or magnitude.numel() == weight.shape[0]
    keep = 0 if over_rows else 1
    shape = [-1 if place == keep else 1 for place in range(weight.ndim)]
    norm = torch.linalg.vector_norm(changed.transpose(0, keep).flatten(1), dim=1).reshape(shape)
    new: Tensor = changed * (magnitude.reshape(shape) / norm.clamp(min=torch.finfo(norm.dtype).eps))
    return new
