"""How similar a whole picture is to its subjects and its text: the measures in tables of zero-shot systems.

With a DINO embedder the mean over the subjects is called DINO and the product M-DINO; with CLIP the mean is CLIP-I
(MS-Bench of MS-Diffusion, arXiv 2406.07209). They look at the whole picture, so they do not notice which subjects are
mixed; Detect-and-Compare does. CLIP-T is the text fidelity by CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.nn.functional import normalize

from ..subjects.prompt import write_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from ..eyes import Embedder, TextScorer
    from ..types import SubjectSet


def similarities(images: Sequence[Tensor], means: Tensor, embedder: Embedder) -> Tensor:
    """Return float ``[b, n]``: mean cosine of b whole pictures ``[h, w, 3]`` to the photos of n subjects.

    ``means``: of the photos, from `compare.photo_means` with the same embedder.
    """
    return normalize(embedder(images).float().cpu(), dim=-1) @ means.T


def mean_similarity(similarities: Tensor) -> Tensor:
    """Return the mean over the subjects, float ``[b]`` from ``[b, n]``: DINO or CLIP-I, by the embedder."""
    return similarities.mean(-1)


def product_similarity(similarities: Tensor) -> Tensor:
    """Return the product over the subjects, float ``[b]`` from ``[b, n]``: M-DINO, low when one subject is missing.

    Negative similarities count as 0.
    """
    return similarities.clamp(min=0).prod(-1)


def every_order(subjects: SubjectSet, text: str) -> list[str]:
    """Return ``text`` (see `prompt.write_prompt`) with the class nouns in all orders: no scorer knows a token.

    Raise `prompt.TooManyOrders` for more than five subjects.
    """
    return list(dict.fromkeys(write_prompts([subject.class_noun for subject in subjects], text, every_order=True)))


def text_fidelity(images: Sequence[Tensor], texts: Sequence[str], scorer: TextScorer) -> Tensor:
    """Return float ``[b]``: the mean score of each picture over the texts, one for each order (paper section 6)."""
    return scorer(images, texts).mean(-1)
