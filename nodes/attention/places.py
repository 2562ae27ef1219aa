"""Where subjects stand: the regions of a layout, of every picture of a batch, or masks that were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ...mudi_core.attention.regions import Regions
from ...mudi_core.stage.regions import CELL, FIGURES, SHAPES
from ...mudi_core.types import MudiError, listed
from .. import convert, host
from ..generate import drawn_layout
from ..sockets import LAYOUTS, LayoutSocket, PlacedSubjects

if TYPE_CHECKING:
    from torch import Tensor

    from ...mudi_core.types import SubjectSet


class NoPlaces(MudiError):
    """Neither a layout nor masks, or a number of masks that fits nobody."""


@dataclass(frozen=True, eq=False)
class Places:
    """The places of the subjects of a picture, or of each picture of a batch."""

    masks: Tensor
    """Float ``[pictures, n, h, w]``, 0..1."""
    subjects: SubjectSet | None
    """Whose they are, in order; None where only masks say it."""

    @property
    def count(self) -> int:
        """How many subjects have a place."""
        return self.masks.shape[1]

    def names(self) -> list[tuple[str, ...]]:
        """Return what each subject may be called in a prompt, the best name first; nothing where masks are alone."""
        if self.subjects is None:
            return [()] * self.count
        return [(one.name, one.token, one.class_noun) for one in self.subjects]

    def regions(self) -> Regions:
        """Return them for the library."""
        return Regions(self.masks)

    def shown(self) -> Tensor:
        """Return the places in the first picture as a MASK, of a layout's size in pixels."""
        return (
            self.masks[0]
            if self.subjects is None
            else self.masks[0].repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)
        )


def place_inputs(shape: str = FIGURES, grow: float = 0.1) -> list[io.Input]:
    """Return the inputs of every node that wants to know where subjects stand, with these defaults."""
    return [
        LayoutSocket.Input("layout", optional=True, tooltip="From Layout: its figures are the subjects' places."),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="Places of your own instead: a batch with one mask for each subject, in their order, of the "
            "picture's shape.",
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="From Init Latent, where a batch has other places in each picture. Not connected: all have "
            "the places that Layout shows.",
        ),
        io.Combo.Input(
            "shape",
            options=list(SHAPES),
            default=shape,
            optional=True,
            tooltip="Of a layout's places: figures are the cut-outs' outlines, boxes the boxes around them.",
        ),
        io.Float.Input(
            "grow",
            default=grow,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="By this share of a figure's size a layout's places are larger, and as soft at the edge: pictures "
            "follow the cut-outs only roughly.",
        ),
        io.Float.Input(
            "start", default=0.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip="From this share of the steps on."
        ),
        io.Float.Input(
            "end", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip="Up to this share of the steps."
        ),
    ]


def places(layout: PlacedSubjects | None, masks: Any, latent: dict[str, Any] | None, shape: str, grow: float) -> Places:
    """Return the places that the inputs of `place_inputs` give. Raise `NoPlaces`."""
    import torch

    from ...mudi_core.stage.regions import regions

    host.check_choice("shape", shape, SHAPES)
    subjects = None if layout is None else layout.cutouts.subjects
    if masks is not None:
        found = torch.stack(_alike(convert.masks(masks)))
        if subjects is not None and len(found) != len(subjects):
            raise NoPlaces(
                f"There are {len(found)} masks for {len(subjects)} subjects ({listed(subjects.tokens)}). Connect a "
                "batch with one mask for each, in this order."
            )
        return Places(found[None], subjects)
    if layout is None:
        raise NoPlaces("Nothing says where the subjects stand. Connect a layout, or masks.")
    drawn = [drawn_layout(layout, layout.config.seed, 0)]
    if latent is not None:
        if LAYOUTS not in latent:
            raise NoPlaces("The latent was not made by Init Latent, so it has no places. Leave it out.")
        drawn = latent[LAYOUTS]
    return Places(torch.stack([regions(one, layout.cutouts, shape, grow) for one in drawn]), subjects)


def _alike(masks: list[Tensor]) -> list[Tensor]:
    sizes = sorted({(mask.shape[1], mask.shape[0]) for mask in masks})
    if len(sizes) > 1:
        raise NoPlaces(f"The masks have different sizes: {', '.join(f'{w}x{h}' for w, h in sizes)}. Make them alike.")
    return masks
