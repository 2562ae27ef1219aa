"""What looks at whole pictures, beside Detect-and-Compare: the measures in tables of other papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..eyes import Embedder, TextScorer
from ..score.fidelity import similarities, text_fidelity
from ..score.vectors import photo_means
from ..types import SubjectSet
from .wording import orders


@dataclass(frozen=True)
class WholePictures:
    """The models of `Judges` that see a picture as a whole."""

    text_scorer: TextScorer | None = None
    embedders: Mapping[str, Embedder] = field(default_factory=dict)
    """By their names."""

    def photos(self, subjects: SubjectSet) -> dict[str, Tensor]:
        """Return the means of the subjects' photos by each embedder, which sees them with their surroundings."""
        return {name: photo_means(subjects, embed) for name, embed in self.embedders.items()}

    def similarities(self, image: Tensor, photos: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
        """Return by each embedder how similar an image ``[h, w, 3]`` is to the photos of each subject."""
        found = {name: similarities([image], own, self.embedders[name])[0] for name, own in photos.items()}
        return {name: tuple(values.tolist()) for name, values in found.items()}

    def text_fidelity(self, image: Tensor, subjects: SubjectSet, text: str) -> float | None:
        """Return how well an image ``[h, w, 3]`` shows a prompt with the subjects' class nouns; None: nobody looks."""
        if self.text_scorer is None:
            return None
        return float(text_fidelity([image], orders(subjects, text), self.text_scorer))
