"""Whether a MODEL answers in training what it answers in sampling: asked once, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import Tensor

from ..convert import BadModel
from .asking import answer, inputs_of
from .linear import ERRORS, check_layers, reason
from .names import usual_of
from .noise import parts_of_clean, training_sampling
from .patches import name_of

if TYPE_CHECKING:
    from ...mudi_core.bases.promise import Conditions, Denoiser, NoiseLevel

log = logging.getLogger(__name__)

_APART: dict[str, float] = {"full": 0.05, "fp8": 0.3, "int8": 0.3, "nf4": 0.6}
"""How far the network's answer in training may be from that in sampling, as a share of it."""
_ROUNDED = 0.4
"""The same where either is in half precision, which hundreds of layers add up."""


def check_answer(denoiser: Denoiser, patcher: Any, encoded: Tensor, conditions: Conditions, bf16: bool) -> None:
    """Compare one answer of a network in training with that in sampling. Raise `BadModel` where they differ.

    ``denoiser``: of the MODEL ``patcher``; ``encoded``: latents ``[c, ...]`` of the VAE; ``conditions``: of a caption;
    ``bf16``: as in `Denoiser.ready`. In half precision, where rounding alone makes a difference, a large one is only
    logged.
    """
    drawn = denoiser.draw_level(torch.Generator().manual_seed(0))
    with _said_of(
        f"This MODEL ({name_of(patcher)}) cannot read what this CLIP and this VAE make of captions and pictures",
        "Connect CLIP and VAE of the same checkpoint.",
    ):
        x, clean, sizes = _in_sampling(denoiser, patcher, encoded, conditions, denoiser.level(drawn))
    with (
        _said_of(
            f"This MODEL ({name_of(patcher)}) computes in sampling, but not in training",
            "Load the same checkpoint in fp16, bf16 or fp8 with ComfyUI's own loader.",
        ),
        denoiser.ready(bf16),
        torch.no_grad(),
    ):
        trained = denoiser.predict(x.clone(), denoiser.level(drawn), [conditions], sizes)
    a, b = parts_of_clean(training_sampling(patcher), drawn)
    wanted, found = clean.clone() - a * x.clone(), b * trained
    share = float((found - wanted).norm()) / max(float(wanted.norm()), 1e-6)
    if _computes_in(patcher.model) != torch.float32 or bf16:  # hundreds of layers add up what half precision rounds
        if not share <= _ROUNDED:
            log.warning("In training the MODEL's answer is %.0f %% from that in sampling.", 100 * share)
    elif not share <= _APART[denoiser.stored_as]:
        raise BadModel(
            f"This MODEL ({name_of(patcher)}) would answer otherwise in training than in sampling, so it "
            "cannot be trained here. Connect it without nodes that change its sampling or its layers, or use "
            "another checkpoint."
        )


@contextmanager
def _said_of(what: str, advice: str) -> Iterator[None]:
    """Raise `BadModel` for an error in the block: ``what`` went wrong, the reason, and the advice."""
    try:
        yield
    except ERRORS as error:
        if isinstance(error, comfy.model_management.OOM_EXCEPTION):
            raise
        raise BadModel(f"{what} ({reason(error)}). {advice}") from error


def _in_sampling(
    denoiser: Denoiser, patcher: Any, encoded: Tensor, conditions: Conditions, level: NoiseLevel
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents ``[1, c, ...]``, the clean latents that ComfyUI's samplers would see, and `predict`'s sizes.

    Raises `BadModel` for layers whose weights cannot be read.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        z0 = denoiser.latents(encoded[None].to(denoiser.device))
        x = level.noisy(z0, torch.ones_like(z0))
        height, width = (8 * side for side in z0.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]])
        inputs = inputs_of(patcher.model, conditions, sizes[0].tolist(), x, denoiser.device, usual_of(patcher).guidance)
        check_layers(denoiser.layers(), _computes_in(patcher.model), denoiser.device)
        clean = answer(patcher.model, x, level.at, [inputs], denoiser.device)
        if denoiser.stored_as != "full":
            comfy.model_management.unload_all_models()
    return x, clean, sizes


def _computes_in(model: Any) -> torch.dtype:
    """The type that ComfyUI samples in with a BaseModel."""
    dtype: torch.dtype = model.manual_cast_dtype or model.get_dtype()
    return dtype
