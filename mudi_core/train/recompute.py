"""Gradient checkpointing: what the forward pass does not keep, the backward pass computes again.

"full" keeps only the input of each block (Chen et al. 2016). "selective" also keeps, inside the blocks, what is
expensive to compute for its size, and computes again what is cheap (Korthikanti et al. 2022, section 5): in a step of
SDXL at 1024 px it needs 3 % more multiplications than keeping everything, "full" 25 % more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..bases.promise import Denoiser
from .parts import GradientCheckpointing

log = logging.getLogger(__name__)

DEAR = 1000
"""Outputs that need this many multiplications per number are kept. In SDXL at 1024 px these are all except pixel-wise
work, cross attention, the LoRA, and the linear layers of 640 inputs, which have the largest outputs."""

_aten = torch.ops.aten
_INNER = {_aten.mm.default: 0, _aten.bmm.default: 0, _aten.addmm.default: 1, _aten.baddbmm.default: 1}
"""Matrix products, and which argument is the left matrix."""
_ATTENTION = tuple(
    getattr(_aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    if hasattr(_aten, f"_scaled_dot_product_{kind}")
)


@contextmanager
def checkpointing(denoiser: Denoiser, how: GradientCheckpointing) -> Iterator[None]:
    """Inside the block the gradients of a network are computed this way; their values are the same.

    "off" keeps everything, and so does "auto", about which `memory.preflight` decides. "selective" needs torch 2.4;
    with an older torch it is "full", with a warning.
    """
    if how in ("auto", "off"):
        yield
        return
    selective = how == "selective" and _can_select()
    with ExitStack() as stack:
        for block in denoiser.blocks():
            stack.enter_context(_computed_twice(block, denoiser.repeatable(block.forward), selective))
        yield


@contextmanager
def _computed_twice(block: nn.Module, forward: Callable[..., Any], selective: bool) -> Iterator[None]:
    """Inside the block the forward pass of a module keeps only its input, or also what is `DEAR`."""
    from torch.utils.checkpoint import checkpoint, noop_context_fn

    before = block.__dict__.get("forward")
    contexts = _dear_is_kept() if selective else noop_context_fn
    again = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=False)
    block.__dict__["forward"] = again
    try:
        yield
    finally:
        del block.__dict__["forward"]
        if before is not None:
            block.__dict__["forward"] = before


def _dear_is_kept() -> Callable[[], Any]:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(_context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
        dear = multiplications(op, args) >= DEAR
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


def multiplications(op: Any, args: tuple[Any, ...]) -> int:
    """Return how many multiplications an operator of torch needs per number of its output; 0: almost none."""
    if op in _INNER:
        return int(args[_INNER[op]].shape[-1])
    if op is _aten.convolution.default:
        return math.prod(args[1].shape[1:])
    if op in _ATTENTION:
        return 2 * int(args[1].shape[-2])
    return 0


def _can_select() -> bool:
    import torch.utils.checkpoint

    can = hasattr(torch.utils.checkpoint, "create_selective_checkpoint_contexts")
    if not can:
        log.warning(
            "Selective gradient checkpointing needs torch 2.4 or newer. Everything is computed again, which is slower."
        )
    return can
