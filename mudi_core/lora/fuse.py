"""Gradient fusion of LoRAs in closed form (Mix-of-Show, Gu et al. 2023, equation 5), layer by layer.

A layer should answer to the inputs ``X_i`` of each concept as with that concept's own change ``D_i``: least squares of
``X_i (W - D_i)^T``, summed over concepts. With ``G_i = X_i^T X_i / n_i`` the minimum is ``W = (sum D_i G_i) M^-1``,
``M = sum G_i + lambda``. For ``D_i = up_i down_i`` that is exactly a LoRA of rank ``sum r_i``: the ups side by side,
and ``down_i G_i M^-1`` below each other. Sums over many inputs are kept in float32, and solved in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]
"""``up [out, r]`` and ``down [r, in]``, whose product is a change."""

RIDGE, FEW_RIDGE = 1e-3, 1e-6
"""Lambda as a share of the mean of M's diagonal: with many inputs, and with fewer inputs than an input has values."""


class Inputs:
    """The inputs of a layer under one concept: as they are while they are few, then their Gram matrix alone."""

    def __init__(self, width: int) -> None:
        self.width, self.count = width, 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in more inputs, ``[n, width]`` on any device."""
        rows = rows.detach().float()
        self.count += len(rows)
        if self._gram is None and self.count < self.width:
            self._rows.append(rows.cpu())
            return
        if self._gram is None:
            self._gram = torch.zeros(self.width, self.width)
            for few in self._rows:
                self._gram += few.T @ few
            self._rows = []
        self._gram += (rows.T @ rows).cpu()

    @property
    def rows(self) -> Tensor | None:
        """Float64 ``[n, width]``, each divided by the root of n; None where there are too many to be kept."""
        return None if self._gram is not None else torch.cat(self._rows).double() / self.count**0.5

    def gram(self) -> Tensor:
        """Return the mean of the inputs' outer products, float64 ``[width, width]``."""
        if self._gram is not None:
            return self._gram.double() / self.count
        rows = self.rows
        assert rows is not None
        return rows.T @ rows

    def through(self, down: Tensor) -> Tensor:
        """Return ``down G`` of a matrix ``[r, width]``, float64."""
        rows = self.rows
        return down.double() @ self.gram() if rows is None else (down.double() @ rows.T) @ rows

    def strength(self, change: Factors) -> float:
        """Return the mean squared length of a change's answers to the inputs."""
        up, down = change[0].double(), change[1].double()
        return float(((up.T @ up) * (self.through(down) @ down.T)).sum().clamp(min=0))


class Fusion:
    """The inputs of one layer, or of several with the same inputs, under all concepts."""

    def __init__(self, inputs: Sequence[Inputs], ridge: float | None = None) -> None:
        """``ridge``: lambda as a share of the mean of M's diagonal; None: `RIDGE` or `FEW_RIDGE`."""
        self.inputs = list(inputs)
        rows = [one.rows for one in self.inputs]
        self._few = [one for one in rows if one is not None]
        width = self.inputs[0].width
        if len(self._few) == len(rows) and sum(map(len, self._few)) < width:
            # The same solution without a matrix that has hardly any rank (Woodbury).
            stacked = torch.cat(self._few)
            self._lambda = (FEW_RIDGE if ridge is None else ridge) * float(stacked.square().sum()) / width
            kernel = stacked @ stacked.T
            self._stacked: Tensor | None = torch.linalg.solve(kernel + _safe(self._lambda, kernel), stacked)
        else:
            self._stacked = None
            matrix = torch.stack([one.gram() for one in self.inputs]).sum(0)
            self._lambda = (RIDGE if ridge is None else ridge) * float(matrix.diagonal().mean())
            self._root = torch.linalg.cholesky(matrix + _safe(self._lambda, matrix))

    def fuse(self, changes: Sequence[Factors | None]) -> Factors | None:
        """Return the change that answers to each concept's inputs as its own does; None: a concept changes nothing.

        ``changes``: one for each of the inputs. The result has the ranks of all together, float64; None where no
        concept changes the layer.
        """
        ups, downs, first = [], [], 0
        for inputs, change in zip(self.inputs, changes, strict=True):
            block = slice(first, first + inputs.count)
            first += inputs.count
            if change is None:
                continue
            up, down = change[0].double(), change[1].double()
            if self._stacked is not None:
                rows = inputs.rows
                assert rows is not None
                new = (down @ rows.T) @ self._stacked[block]
            else:
                new = torch.cholesky_solve(inputs.through(down).T, self._root).T
            ups.append(up)
            downs.append(new)
        return (torch.cat(ups, 1), torch.cat(downs, 0)) if ups else None

    def compressed(self, change: Factors, rank: int) -> Factors:
        """Return the change of at most this rank whose answers to all concepts' inputs are nearest to the change's."""
        up, down = change[0].double(), change[1].double()
        if up.shape[1] <= rank:
            return up, down
        if self._stacked is None:
            root = self._root
        else:
            stacked = torch.cat(self._few)
            matrix = stacked.T @ stacked
            root = torch.linalg.cholesky(matrix + _safe(self._lambda, matrix))
        left, right = _shortened(up, down @ root, rank)
        return left, torch.linalg.solve_triangular(root, right, upper=False, left=False)


@dataclass(frozen=True)
class Errors:
    """How far a change is from what each concept wants, summed over layers."""

    missed: tuple[float, ...]
    """Mean squared length of what the answers miss, for each concept."""
    wanted: tuple[float, ...]
    """The same of the answers of the concept's own change."""

    @classmethod
    def of(cls, change: Factors, changes: Sequence[Factors | None], inputs: Sequence[Inputs]) -> Errors:
        """Measure a change of one layer against the concepts' own changes on their inputs."""
        missed, wanted = [], []
        for own, seen in zip(changes, inputs, strict=True):
            gap = change if own is None else summed([change, (-own[0], own[1])])
            missed.append(seen.strength(gap))
            wanted.append(0.0 if own is None else seen.strength(own))
        return cls(tuple(missed), tuple(wanted))

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            tuple(a + b for a, b in zip(self.missed, other.missed, strict=True)),
            tuple(a + b for a, b in zip(self.wanted, other.wanted, strict=True)),
        )

    @property
    def relative(self) -> tuple[float, ...]:
        """For each concept the length of what is missed, in lengths of what is wanted: 0 is exact, 1 as without."""
        return tuple((a / b) ** 0.5 if b else 0.0 for a, b in zip(self.missed, self.wanted, strict=True))


def summed(changes: Sequence[Factors | None]) -> Factors:
    """Return the sum of some changes by putting their ranks beside each other: what stacked loaders add, exactly."""
    own = [change for change in changes if change is not None]
    return torch.cat([up.double() for up, _ in own], 1), torch.cat([down.double() for _, down in own], 0)


def shortened(change: Factors, rank: int) -> Factors:
    """Return the change of at most this rank that is nearest in its values (Eckart-Young), whatever the inputs."""
    up, down = change[0].double(), change[1].double()
    return (up, down) if up.shape[1] <= rank else _shortened(up, down, rank)


def balanced(change: Factors) -> Factors:
    """Return the same change, float32, with up and down of each rank equally long: half precision holds them best."""
    up, down = change
    lengths = up.norm(dim=0), down.norm(dim=1)
    share = (lengths[1] / lengths[0].clamp(min=1e-300)).sqrt()
    share = torch.where((lengths[0] > 0) & (lengths[1] > 0), share, torch.ones_like(share))
    return (up * share).float(), (down / share[:, None]).float()


def _shortened(up: Tensor, down: Tensor, rank: int) -> Factors:
    left, core_left = torch.linalg.qr(up)
    right, core_right = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(core_left @ core_right.T)
    return left @ (u[:, :rank] * s[:rank]), v[:rank] @ right.T


def _safe(value: float, matrix: Tensor) -> Tensor:
    """Return lambda times the identity, at least what float64 needs to tell the matrix from a singular one."""
    least = 1e-14 * float(matrix.diagonal().mean()) + 1e-300
    return max(value, least) * torch.eye(len(matrix), dtype=matrix.dtype)
