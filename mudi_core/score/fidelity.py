"""How like its subjects and its text a whole picture is: the measures that tables of zero-shot systems give.

With a DINO embedder the mean over the subjects is called DINO, and the product M-DINO; with CLIP the mean is CLIP-I
(MS-Bench of MS-Diffusion, arXiv 2406.07209). They look at the whole picture and so do not notice who is mixed with
whom; Detect-and-Compare does. CLIP-T is the text fidelity by CLIP.
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
    from .compare import References


def similarities(images: Sequence[Tensor], references: References, embedder: Embedder) -> Tensor:
    """Float ``[b, n]``: mean cosine of each of b whole pictures ``[h, w, 3]`` to the photos of each of n subjects."""
    return normalize(embedder(images).float().cpu(), dim=-1) @ references.means.T


def mean_similarity(similarities: Tensor) -> Tensor:
    """Float ``[b]``, of ``[b, n]``: DINO or CLIP-I, by the embedder."""
    return similarities.mean(-1)


def product_similarity(similarities: Tensor) -> Tensor:
    """Float ``[b]``, of ``[b, n]``: M-DINO, low as soon as one subject is missing. Negative similarities count as 0."""
    return similarities.clamp(min=0).prod(-1)


def every_order(subjects: SubjectSet, text: str) -> list[str]:
    """``text`` (see `prompt.write_prompt`) with the class nouns in all orders: no scorer knows what a token means.

    Raises `prompt.TooManyOrders` above five subjects.
    """
    return list(dict.fromkeys(write_prompts([subject.class_noun for subject in subjects], text, every_order=True)))


def text_fidelity(images: Sequence[Tensor], texts: Sequence[str], scorer: TextScorer) -> Tensor:
    """Float ``[b]``: each picture's mean score over the texts, the orders of its subjects (paper section 6)."""
    return scorer(images, texts).mean(-1)
