"""Subject: give photos and masks a name. For several subjects, one node follows the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..mudi_core.types import BadSubject, MudiError, Photo
from . import convert, host
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/1 subjects"


class CaptionsDoNotFit(MudiError):
    """The number of captions is not that of the photos."""


class MakeSubject(io.ComfyNode):  # type: ignore[misc]
    """Make a subject of photos, masks and two words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSubject",
            display_name="Subject (MuDI)",
            category=CATEGORY,
            description="Names a subject: its photos, their masks, a token and a class noun. Use one node for "
            "each subject, one after the other. The prompt names it by both words, 'olis corgi'.",
            search_aliases=["MuDI", "DreamBooth subject", "character", "token"],
            is_input_list=True,
            inputs=[
                io.Image.Input("photos", tooltip="Photos of this one subject; 3 to 5 in varied places are enough."),
                io.Mask.Input(
                    "masks",
                    tooltip="One mask for each photo, white where the subject is, from SAM Mask, the MaskEditor or any "
                    "other node.",
                ),
                io.String.Input(
                    "token",
                    default="olis",
                    tooltip="A rare word that names this subject and no other: olis, hta, ult, amg, lun.",
                ),
                io.String.Input(
                    "class_noun",
                    default="",
                    placeholder="corgi",
                    tooltip="What it is, as exactly as you like: 'corgi', 'red monster plush'.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="one line for each photo (optional)",
                    tooltip="What training reads for each photo, one line each, naming token and class noun. Left "
                    "empty: 'a photo of olis corgi'.",
                ),
                Subjects.Input("subjects", optional=True, tooltip="The subjects so far; this one is added to them."),
            ],
            outputs=[
                Subjects.Output("all_subjects", display_name="subjects", tooltip="The subjects so far and this one.")
            ],
        )

    @classmethod
    def validate_inputs(cls, token: list[str | None], class_noun: list[str | None]) -> bool | str:
        if token[0] is not None and len(token[0].split()) != 1:
            return f"A subject needs a token of one word, such as 'olis'; got {token[0]!r}."
        if class_noun[0] is not None and not class_noun[0].strip():
            return "A subject needs a class noun, such as 'corgi'."
        return True

    @classmethod
    def execute(
        cls,
        photos: list[Tensor],
        masks: list[Tensor],
        token: list[str],
        class_noun: list[str],
        captions: list[str] | None = None,
        subjects: list[SubjectSet] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import INVERTED, add_subject, doubts, inverted, name_doubts, subject_from_masks

        name, shapes = token[0].strip(), convert.masks(masks)
        named = _photos(name, convert.pictures(photos), captions or [""])
        if len(named) != len(shapes):
            raise BadSubject(
                f"Subject '{name}': {len(named)} photos but {len(shapes)} masks. Connect one mask for each photo."
            )
        subject = subject_from_masks(named, shapes, name, class_noun[0].strip())
        remarks = [f"{photo.name}: {INVERTED}" for photo, mask in zip(named, shapes, strict=True) if inverted(mask)]
        together = add_subject(subjects[0] if subjects else None, subject)
        named_badly = name_doubts([(one.token, one.class_noun) for one in together])
        for doubt in named_badly:
            host.log.warning(doubt)
        ui = host.preview([], cls, "\n".join(remarks + doubts([subject]) + named_badly))
        return io.NodeOutput(together, ui=ui)


def _photos(token: str, pictures: list[Tensor], captions: list[str]) -> list[Photo]:
    """Return the pictures as photos, named by the subject's token and counted from 1, each with its caption."""
    texts = _captions(captions, len(pictures))
    return [
        Photo(f"{token}_{number}.png", picture, caption)
        for number, (picture, caption) in enumerate(zip(pictures, texts, strict=True), start=1)
    ]


def _captions(texts: list[str], count: int) -> list[str]:
    """Return a caption for each photo, from the lines of one text or from a list of texts; all "" if there is none."""
    lines = texts if len(texts) > 1 else texts[0].strip("\n").splitlines()
    if not any(line.strip() for line in lines):
        return [""] * count
    if len(lines) != count:
        raise CaptionsDoNotFit(
            f"There are {count} photos but {len(lines)} captions. Write one line for each photo, or none at all."
        )
    return [line.strip() for line in lines]
