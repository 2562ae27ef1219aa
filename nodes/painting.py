"""Pictures of placed subjects, seed by seed: a start, KSampler, VAE Decode, as the graph's own nodes do it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..mudi_core.start.init_latent import default_gamma
from . import convert
from .generate import drawn_layout
from .host import Sampler
from .sockets import PlacedSubjects
from .start import start, with_start

if TYPE_CHECKING:
    from ..mudi_core.progress import Update


@dataclass(eq=False)
class Painter:
    """Paints picture by picture, and says how far it is."""

    sampler: Sampler
    vae: Any
    layout: PlacedSubjects
    update: Update
    in_all: int
    """Pictures that will be asked for."""
    done: int = 0
    latest: Tensor = field(default_factory=lambda: torch.ones(8, 8, 3))
    """The last picture; white before the first."""

    def paint(self, seed: int, gamma: float, places: int | None = None) -> tuple[Tensor, Tensor]:
        """Return a latent ``[1, c, ...]`` and its picture ``[h, w, 3]``, from a start of strength ``gamma``.

        ``gamma``: below 0 it is chosen by the number of subjects. ``seed``: of the noise; ``places``: of the places
        where the subjects stand, the same if it is not given.
        """
        from ..mudi_core.stage.segmix import compose

        canvas = compose(drawn_layout(self.layout, seed if places is None else places, 0), self.layout.cutouts)
        model = self.sampler.model
        strength = default_gamma(len(self.layout.cutouts.subjects)) if gamma < 0 else gamma
        begin = start(canvas, self.vae, strength, model)
        latent = replace(self.sampler, model=with_start(model, begin)).sample(begin, seed, self._stepped)
        self.done += 1
        (self.latest,) = convert.decoded(self.vae, latent)
        return latent, self.latest

    def _stepped(self, step: int) -> None:
        steps, total = self.sampler.steps, self.in_all * self.sampler.steps
        self.update(min(self.done * steps + step, total), total)
