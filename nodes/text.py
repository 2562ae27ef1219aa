"""A CLIP's text encoders as the library tunes them, and as it finds words in what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import convert
from .attention.words import token_ids
from .convert import BadModel
from .denoiser.guards import NormsKeepCopies

if TYPE_CHECKING:
    from torch import nn

    from ..mudi_core.bases.promise import Conditions

_ENCODERS = ("clip_l", "clip_h", "clip_g")
"""The encoders of SD 1.x, of SD 2.x, and, after the first, of SDXL."""


class ComfyText:
    """The text encoders of an SD's or SDXL's CLIP: a `promise.TextEncoders`."""

    context = "cross_attn"

    def __init__(self, clip: Any) -> None:
        """Raise `BadModel` for the CLIP of another kind of model."""
        encoders = getattr(clip, "cond_stage_model", None)
        parts: dict[str, Any] = dict(encoders.named_children()) if isinstance(encoders, torch.nn.Module) else {}
        found = [parts[name] for name in _ENCODERS if name in parts]
        if not found or len(found) < len(parts):
            raise BadModel(
                "Residual tokens need the CLIP of an SD or SDXL model; this one reads texts otherwise. Connect the "
                "CLIP of such a checkpoint."
            )
        self._clip, self._encoders = clip, [one.transformer for one in found]
        self._frozen, self._tuning = convert.encode_text(clip), False

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(one.get_input_embeddings().weight.shape[1]) for one in self._encoders)

    def modules(self) -> list[nn.Module]:
        """Return the encoders; from now on texts are read by whatever weights they have, with gradients."""
        self._tuning = True
        return list(self._encoders)

    def encode(self, captions: list[str]) -> list[Conditions]:
        if not self._tuning:
            return self._frozen(captions)
        return [self._read(caption) for caption in captions]

    def freeze(self) -> None:
        """Read texts again as samplers do, after a training."""
        self._tuning = False

    def ids(self, text: str) -> list[int]:
        return [token for token, _ in token_ids(self._clip, text)]

    def word(self, text: str) -> list[int]:
        return [token for token, is_word in token_ids(self._clip, text) if is_word]

    def _read(self, caption: str) -> Conditions:
        """Return a caption's context alone: the rest of its conditions is not tuned."""
        model = self._clip.cond_stage_model
        model.reset_clip_options()
        if self._clip.layer_idx is not None:
            model.set_clip_options({"layer": self._clip.layer_idx})
        device = self._encoders[0].get_input_embeddings().weight.device
        model.set_clip_options({"execution_device": device})
        literal = caption.replace("(", "\\(").replace(")", "\\)")
        with NormsKeepCopies():
            context, *_ = model.encode_token_weights(self._clip.tokenize(literal))
        return {self.context: context[0]}

    def check_fits(self, context: torch.Tensor, ids: list[int]) -> None:
        """Raise `BadModel` for a context ``[b, n, d]`` that this CLIP cannot have made of these tokens."""
        if context.shape[-1] != sum(self.widths) or context.shape[-2] != len(ids):
            raise BadModel(
                f"The conditioning has {context.shape[-2]} tokens of {context.shape[-1]} values; this CLIP makes "
                f"{len(ids)} of {sum(self.widths)} of the prompt. Connect what CLIP Text Encode makes of this very "
                "prompt with this CLIP."
            )
