"""CLIP (Radford et al., arXiv 2103.00020) compares pictures with texts, through transformers' own model class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .pixels import CLIP, middle, scaled, to_square, unit_vectors
from .pretrained import by_hand, read_model

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


class ClipEmbedder:
    """An `Embedder`; with `texts` it also gives CLIP scores. A picture is padded to a square, not cropped, but for
    other `framed`."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.model = cast(Any, model)  # the library types neither its configs nor its decorated `to` usefully
        self.model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.side = int(self.model.config.vision_config.image_size)
        self.framed: Callable[[Tensor, int], Tensor] = to_square
        """Makes of a picture ``[h, w, 3]`` what the model sees, ``[1, 3, side, side]``, 0..1."""

    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        def look(pixels: Tensor) -> Tensor:
            features: Tensor = self.model.visual_projection(
                self.model.vision_model(pixel_values=scaled(pixels, CLIP)).pooler_output
            )
            return features

        def framed(image: Tensor) -> Tensor:
            return self.framed(image.to(self.device), self.side)

        return unit_vectors(images, framed, look, self.model.config.projection_dim)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors ``[m, d]`` on the CPU for m texts. Words beyond CLIP's length are ignored."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        features = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
        ).pooler_output
        return functional.normalize(self.model.text_projection(features).float(), dim=1).cpu()


class ClipScorer:
    """A `TextScorer`: the cosine of picture and text, -1..1 (the CLIP score, CLIP-T; 0.2 to 0.35 is usual)."""

    def __init__(self, clip: ClipEmbedder) -> None:
        self.clip = clip

    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        return self.clip(images) @ self.clip.texts(texts).T


def load(path: Path, device: torch.device) -> ClipEmbedder:
    """Read a CLIP from a folder with ``config.json`` and ``model.safetensors``; the tokenizer is in the package.

    Raise `BadWeights` when the folder holds something else.
    """
    from transformers import CLIPModel

    from ..vocabulary import tokenizer

    model = read_model(CLIPModel, path, "a CLIP")
    return ClipEmbedder(model, tokenizer(length=model.config.text_config.max_position_embeddings), device)


def load_scorer(path: Path, device: torch.device) -> ClipScorer:
    """Read a CLIP as `load` does and return it as a text scorer. Raise `BadWeights`."""
    return ClipScorer(load(path, device))


def load_base(path: Path | None, device: torch.device) -> ClipEmbedder:
    """Read CLIP ViT-B/32, which sees the middle of a picture, as OpenAI's own processing has it: most papers' CLIP-I.

    Without a path it is looked for in the default folder. Raise `MissingWeights` or `BadWeights`.
    """
    found = load(
        path or by_hand("clip-vit-base-patch32", "https://huggingface.co/openai/clip-vit-base-patch32"), device
    )
    found.framed = partial(middle, within=1.0)
    return found


def load_base_scorer(path: Path | None, device: torch.device) -> ClipScorer:
    """Read CLIP ViT-B/32 as `load_base` does, as a text scorer: CLIP-T. Raise as it does."""
    return ClipScorer(load_base(path, device))


class ScaledScorer:
    """A `TextScorer`: CLIPScore (Hessel et al., arXiv 2104.08718), 2.5 times the cosine, and 0 below 0."""

    def __init__(self, scorer: ClipScorer) -> None:
        self.scorer = scorer

    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        return 2.5 * self.scorer(images, texts).clamp(min=0)


def load_base_scaled(path: Path | None, device: torch.device) -> ScaledScorer:
    """Read CLIP ViT-B/32 as `load_base` does, for CLIPScore. Raise as it does."""
    return ScaledScorer(load_base_scorer(path, device))
