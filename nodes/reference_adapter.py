"""Reference Adapter: pictures of the subjects are looked at beside the text, each where its subject stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..mudi_core.stage.regions import BOXES
from . import host
from .attention import place_inputs, places, with_part
from .attention import references as reading
from .generate import CATEGORY
from .host import written
from .sockets import PlacedSubjects

if TYPE_CHECKING:
    from ..mudi_core.attention.references.adapter import Adapter
    from ..mudi_core.attention.references.worn import Words

PLACES, WORDS, BOTH = WHERE = ("places", "words", "places and words")
BY_PLACE, BY_SUBJECT = MERGES = ("by place (MIP's code)", "by subject (MIP's paper)")
MOST = 4
"""References that MS-Diffusion was taught at once."""


class ReferenceAdapter(io.ComfyNode):  # type: ignore[misc]
    """Let each subject's place look at pictures of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiReferenceAdapter",
            display_name="Reference Adapter (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Several subjects in one picture from their photos alone, without training: each place looks "
            "at its own subject's picture. With MS-Diffusion, IP-Adapter or MIP-Adapter files, for SDXL and SD.",
            search_aliases=["ms-diffusion", "ip-adapter", "mip-adapter", "image prompt", "zero-shot", "ipadapter"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL or SD model, with its LoRAs."),
                io.Clip.Input("clip", tooltip="What CLIP Text Encode gets, too."),
                io.Combo.Input(
                    "adapter",
                    options=host.adapters(),
                    tooltip="A file in models/ms_diffusion or models/ipadapter; its kind is read from it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=5.0,
                    step=0.05,
                    tooltip="Of what the adapter's authors use. 0 is none.",
                ),
                io.Combo.Input(
                    "where",
                    options=list(WHERE),
                    tooltip="Who sees a reference: its subject's place, whatever looks at the subject's words "
                    "(MIP-Adapter, without training), or only both.",
                ),
                io.Int.Input(
                    "photos", default=1, min=1, max=64, tooltip="So many of each subject's photos; their tokens' mean."
                ),
                *place_inputs(BOXES, 0.0),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The adapter's own image encoder, from Load CLIP Vision. The embedded one needs none.",
                ),
                io.Image.Input(
                    "references",
                    optional=True,
                    tooltip="Pictures of your own instead of the layout's photos: a batch with one for each subject, "
                    "in their order.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="A line for each place: what stands there, such as 'dog'. Empty: the class nouns.",
                ),
                io.Combo.Input(
                    "merge",
                    options=list(MERGES),
                    optional=True,
                    tooltip="With words: how subjects are weighed. The paper's form is about as many times stronger as "
                    "there are subjects.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For the sampler."),
                io.Mask.Output(display_name="masks", tooltip="The subjects' places in the first picture."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None, **others: Any) -> Any:
        return written.state_of([host.find_adapter(adapter)])

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        adapter: str,
        strength: float,
        where: str,
        photos: int,
        layout: PlacedSubjects | None = None,
        masks: Any = None,
        latent: dict[str, Any] | None = None,
        shape: str = BOXES,
        grow: float = 0.0,
        start: float = 0.0,
        end: float = 1.0,
        clip_vision: Any = None,
        references: Any = None,
        names: str = "",
        merge: str = BY_PLACE,
    ) -> io.NodeOutput:
        from ..mudi_core.attention.references.given import everywhere
        from ..mudi_core.attention.references.worn import References

        host.check_choice("where", where, WHERE)
        host.check_choice("merge", merge, MERGES)
        layers, widths, context = reading.cross_layers(model)
        found = places(layout, masks, latent, shape, grow)
        chosen = host.adapter(adapter)
        chosen.check(widths, context)
        named = reading.names_of(found, names) if chosen.grounded or where != PLACES else []
        pictures = reading.pictures_of(found, references, photos)
        eye = reading.Eye(chosen, None if adapter == host.MINI else clip_vision, adapter == host.MINI)
        with torch.inference_mode():
            part = References(
                chosen,
                reading.tokens_of(eye, pictures, clip, named, found),
                layers,
                found.regions() if where != WORDS else everywhere(found.masks),
                strength * chosen.scale,
                _words(clip, named, merge) if where != PLACES else None,
                eye.nothing(),
            )
        worn = with_part(model, part, start, end)
        return io.NodeOutput(worn, found.shown(), ui=host.preview([], cls, _text(chosen, pictures, strength)))


def _words(clip: Any, named: list[str], merge: str) -> Words:
    from ..mudi_core.attention.references.worn import Words

    contexts, lengths = zip(*(reading.context(clip, words) for words in named), strict=True)
    return Words(contexts, lengths, "place" if merge == BY_PLACE else "subject")


def _text(adapter: Adapter, pictures: list[list[Any]], strength: float) -> str:
    counts = ", ".join(str(len(one)) for one in pictures)
    lines = [f"{adapter.kind} at {strength * adapter.scale:.2f}; pictures of each: {counts}"]
    if adapter.grounded and len(pictures) > MOST:
        lines.append(f"MS-Diffusion was taught up to {MOST} references at once; these are {len(pictures)}.")
    return "\n".join(lines)
