"""What a training starts from: a LoRA of any kind as up and down of each layer, and how much of its change they hold.

A training has two matrices of its rank for each layer. A LoRA of at most this rank is such a pair as it is; what else
changes a layer (LoKr, LoHa, GLoRA, DoRA, more ranks) becomes the pair that is nearest to its change of the weight
(Eckart-Young), which is the change itself where that has no more than the rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bases.promise import Denoiser
from ..progress import Progress, silent
from .change import BadLora, Change
from .file import PARTS, LoraState, is_linear, state_of
from .fuse import Factors, balanced, shortened
from .reading import Lora

_WHOLE = 1 - 1e-6
"""From this share on everything is held: what is missing is rounding."""
_MORE, _ROUNDS = 8, 4
"""Of the search for the largest ranks: so it holds, of changes as LoKr makes them, what the best ones hold but for a
thousandth."""


@dataclass(frozen=True, eq=False)
class StartLora:
    """A LoRA to start from."""

    state: LoraState
    """Its two matrices for each layer, by kohya name."""
    kept: float = 1.0
    """The share of its change that they hold, 0..1, as squared lengths of all layers together."""
    made_of: str = ""
    """What tells the LoRA that they were made of from any other; "": they are that LoRA."""

    def fingerprint(self) -> str:
        """Return a hash of the LoRA, the same on every machine."""
        return self.made_of or _hash(self.state)

    def told(self, name: str) -> str:
        """Return in a sentence what is not held; "" for nothing."""
        if self.kept >= _WHOLE:
            return ""
        return f"The start holds {100 * self.kept:.1f} % of what {name} changes; a higher rank holds more."


def fingerprint_of(start: StartLora | None) -> str:
    """Return the fingerprint of a LoRA to start from; "" without one."""
    return "" if start is None else start.fingerprint()


def start_of(
    lora: Lora,
    denoiser: Denoiser,
    rank: int,
    delta: Callable[[Change, Tensor], Tensor] = Change.delta,
    progress: Progress = silent,
) -> StartLora:
    """Return what a training of this rank starts from, so that it begins with the effect of the LoRA.

    ``delta``: what a change adds to a layer's weight ``[out, in]``, float32. Raise `BadLora` for a LoRA that changes
    anything else than linear layers of the network: a training has nothing there.
    """
    if is_linear(lora):
        state = state_of(lora)
        if all(len(value) <= rank for key, value in state.items() if key.endswith(PARTS[0])):
            return StartLora(state)
    layers = {denoiser.file_name(name): (name, layer) for name, layer in denoiser.layers().items()}
    sizes = {name: (int(layer.out_features), int(layer.in_features)) for name, (_, layer) in layers.items()}  # type: ignore[arg-type]
    matched = lora.on(sizes)
    if matched.missing or matched.unread:
        raise BadLora(
            f"{lora.name} changes more than linear layers of the network, and a training has nothing else to start "
            f"with: {matched.told()} Load it in ComfyUI onto the model, and go on with that model."
        )
    state = {}
    held = whole = 0.0
    with progress("reading the LoRA to start from") as update, torch.inference_mode(False), torch.no_grad():
        for done, (name, change) in enumerate(matched.changes.items(), start=1):
            factors = change.factors()
            if factors is None:
                full = delta(change, denoiser.weight(layers[name][0]))
                near, length = _nearest(full, rank)
            else:
                near, length = shortened(factors, rank), _length(factors)
            held, whole = held + _length(near), whole + length
            up, down = balanced(near)
            for part, value in zip(PARTS, (down, up, torch.tensor(float(len(down)))), strict=True):
                state[name + part] = value.contiguous()
            update(done, len(matched.changes), name)
    return StartLora(state, min(held / whole, 1.0) if whole else 1.0, lora.fingerprint())


def _nearest(change: Tensor, rank: int) -> tuple[Factors, float]:
    """Return the matrix of at most this rank that is nearest to a matrix, and the matrix's own squared length.

    A whole SVD takes minutes for all of SDXL's layers. This one knows more ranks than it gives, and is exact where
    these are all that there are.
    """
    full = change.double().cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, lengths, right = torch.svd_lowrank(full, min(2 * rank + _MORE, *full.shape), niter=_ROUNDS)
    return (left[:, :rank] * lengths[:rank], right[:, :rank].T), float(full.square().sum())


def _length(change: Factors) -> float:
    """Return the squared length of a product without making it."""
    up, down = change[0].double(), change[1].double()
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0))


def _hash(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
