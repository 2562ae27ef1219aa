"""Gradient checkpointing: what the forward pass does not keep, the backward pass computes again.

"full" keeps of each block of the U-Net only what went in (Chen et al. 2016). "selective" also keeps, inside the blocks,
what is dear to compute for its size, and computes again what is cheap (Korthikanti et al. 2022, section 5): of SDXL's
step at 1024 px that takes 3 % more multiplications than keeping all, where "full" takes 25 % more.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .config import GradientCheckpointing

log = logging.getLogger(__name__)

DEAR = 1000
"""Answers that took so many multiplications a number are kept. In SDXL at 1024 px these are all but pixel-wise work,
cross attention, the LoRA, and the linear layers of 640 inputs, whose answers are the largest."""

_aten = torch.ops.aten
_INNER = {_aten.mm.default: 0, _aten.bmm.default: 0, _aten.addmm.default: 1, _aten.baddbmm.default: 1}
"""Products of matrices: which argument is the left one."""
_ATTENTION = tuple(
    getattr(_aten, f"_scaled_dot_product_{kind}").default
    for kind in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    if hasattr(_aten, f"_scaled_dot_product_{kind}")
)


@contextmanager
def checkpointing(unet: Any, how: GradientCheckpointing) -> Iterator[None]:
    """Within the block a diffusers U-Net's gradients are computed so; the gradients are the same.

    "off" keeps all, and so does "auto", which `memory.preflight` decides. "selective" wants torch 2.4: before, it is
    "full", with a warning. A U-Net that does "full" already goes on so.
    """
    if how in ("auto", "off") or unet.is_gradient_checkpointing:
        yield
    elif how == "selective" and _can_select():
        with _selective(unet):
            yield
    else:
        unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            unet.disable_gradient_checkpointing()


def multiplications(op: Any, args: tuple[Any, ...]) -> int:
    """How many multiplications a call of an operator of torch takes for each number of its answer; 0: next to none."""
    if op in _INNER:
        return int(args[_INNER[op]].shape[-1])
    if op is _aten.convolution.default:
        return math.prod(args[1].shape[1:])
    if op in _ATTENTION:
        return 2 * int(args[1].shape[-2])
    return 0


@contextmanager
def _selective(unet: Any) -> Iterator[None]:
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(_context: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
        dear = multiplications(op, args) >= DEAR
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    blocks = [module for module in unet.modules() if isinstance(module, (BasicTransformerBlock, ResnetBlock2D))]
    for block in blocks:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own again


def _can_select() -> bool:
    import torch.utils.checkpoint

    can = hasattr(torch.utils.checkpoint, "create_selective_checkpoint_contexts")
    if not can:
        log.warning("Selective gradient checkpointing needs torch 2.4 or newer; everything is computed again: slower.")
    return can
