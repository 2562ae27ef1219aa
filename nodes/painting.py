"""Pictures of placed subjects, seed by seed: a start, KSampler, VAE Decode, as the graph's own nodes do it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..mudi_core.stage.regions import AROUND
from ..mudi_core.start.init_latent import default_gamma
from . import convert, scene
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
        placed, model = self.layout, self.sampler.model
        layout = drawn_layout(placed, seed if places is None else places, 0)
        strength = default_gamma(len(placed.cutouts.subjects)) if gamma < 0 else gamma
        mask, new = scene.changed(placed, layout, AROUND)
        begin = start(placed.canvas(layout), self.vae, strength, model, scene.encoded(placed, self.vae, model))
        sampler = replace(self.sampler, model=with_start(model, begin))
        latent = sampler.sample(begin, seed, self._stepped, mask=mask)
        self.done += 1
        (picture,) = convert.decoded(self.vae, latent)
        self.latest = scene.put_into(placed, new, picture)
        return latent, self.latest

    def _stepped(self, step: int) -> None:
        steps, total = self.sampler.steps, self.in_all * self.sampler.steps
        self.update(min(self.done * steps + step, total), total)
