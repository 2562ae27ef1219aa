"""How similar a whole picture is to its subjects and its text: the measures in tables of zero-shot systems.

With a DINO embedder the mean over the subjects is called DINO and the product M-DINO; with CLIP the mean is CLIP-I
(MS-Bench of MS-Diffusion, arXiv 2406.07209). They look at the whole picture, so they do not notice which subjects are
mixed; Detect-and-Compare does. CLIP-T is the text fidelity by CLIP. The Subject Collapse Rate (arXiv 2603.26078,
section 4.3) counts the subjects to whom a picture is hardly similar.
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

    ``means``: of the photos, from `vectors.photo_means` with the same embedder.
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


COLLAPSE_LIMITS = (0.4, 0.5, 0.6)
"""Similarities by DINOv2 that the Subject Collapse Rate is told for; its paper's table has the first."""


def collapse_rate(similarities: Tensor, limit: float = COLLAPSE_LIMITS[0]) -> Tensor:
    """Return the share 0..1 of the subjects to whom a picture is less similar than ``limit``, float ``[b]`` from
    ``[b, n]``: the Subject Collapse Rate with DINOv2 (arXiv 2603.26078, section 4.3), 0 when nobody is lost.

    The paper has one photo of each subject; here the mean over the photos counts. The limits are of DINOv2's scale.
    """
    return (similarities < limit).float().mean(-1)


def every_order(subjects: SubjectSet, text: str) -> list[str]:
    """Return ``text`` (see `prompt.write_prompt`) with the class nouns in all orders: no scorer knows a token.

    Raise `prompt.TooManyOrders` for more than five subjects.
    """
    return list(dict.fromkeys(write_prompts([subject.class_noun for subject in subjects], text, every_order=True)))


def text_fidelity(images: Sequence[Tensor], texts: Sequence[str], scorer: TextScorer) -> Tensor:
    """Return float ``[b]``: the mean score of each picture over the texts, one for each order (paper section 6)."""
    return scorer(images, texts).mean(-1)
