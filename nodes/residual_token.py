"""Residual Token: subjects from what is added to the text at their class words (Cones 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.types import MudiError
from . import host
from .generate import CATEGORY
from .host import written
from .sockets import ResidualsSocket
from .text import ComfyText

if TYPE_CHECKING:
    from ..mudi_core.bases.residual import Residual

_SURE = 0.98
"""Least cosine at which two text encoders are the same but for rounding."""


class NoResidual(MudiError):
    """A Residual Token without any."""


class ResidualToken(io.ComfyNode):  # type: ignore[misc]
    """Add a subject to a conditioning at its class word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiResidualToken",
            display_name="Residual Token (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Makes 'a dog' of the prompt your dog: adds what Train Residual Token has learned to the "
            "conditioning, at that word alone (Cones 2). One node for each subject, in any order; with Layout Guidance "
            "each also stands at its place. For SD and SDXL.",
            search_aliases=["cones 2", "residual embedding", "textual inversion", "embedding"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The positive prompt, from CLIP Text Encode."),
                io.Clip.Input("clip", tooltip="What CLIP Text Encode gets, too."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The positive prompt, letter by letter: it must name the subject by its class noun.",
                ),
                io.Combo.Input("residual", options=host.residuals(), tooltip="A file in models/residual_tokens."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="0 changes nothing; less than 1 is less of the subject.",
                ),
                io.Int.Input(
                    "occurrence",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Where the class noun stands several times in the prompt: which one is the subject, "
                    "counted from 1. 0: all; of several from Train Residual Token with one noun, each in its order.",
                ),
                ResidualsSocket.Input(
                    "residuals", optional=True, tooltip="From Train Residual Token, in place of the file."
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For the sampler's positive.")],
        )

    @classmethod
    def fingerprint_inputs(cls, residual: str | None = None, **others: Any) -> Any:
        return written.state_of([host.find_residual(residual)])

    @classmethod
    def execute(
        cls,
        conditioning: Any,
        clip: Any,
        prompt: str,
        residual: str,
        strength: float,
        occurrence: int,
        residuals: tuple[Residual, ...] = (),
    ) -> io.NodeOutput:
        from ..mudi_core.bases.residual import added

        some, text = residuals or _read(residual), ComfyText(clip)
        alike = [one.check(text) for one in some]
        ids, strengths = text.ids(prompt), [strength] * len(some)
        found = []
        for context, about in conditioning:
            text.check_fits(context, ids)
            found.append([added(context, prompt, some, text, strengths, occurrence), dict(about)])
        lines = [f"'{one.word}' is {one.about.get('mudi_subject', 'the subject')}" for one in some]
        if min(alike) < _SURE:
            lines.append(
                f"Made for somewhat other text encoders (cosine {min(alike):.2f}): less of the subject may come."
            )
        return io.NodeOutput(found, ui=host.preview([], cls, "\n".join(lines)))


def _read(choice: str) -> tuple[Residual, ...]:
    from ..mudi_core.bases.residual import load_residual

    path = host.residual_file(choice)
    if path is None:
        raise NoResidual("No residual token is chosen. Choose a file, or connect Train Residual Token.")
    return (load_residual(path),)
