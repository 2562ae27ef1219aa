"""Subject: give photos and masks a name. For several subjects, one node follows the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from comfy_api.latest import io

from ..mudi_core.types import BadSubject, MudiError, Photo
from . import convert, host
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/1 subjects"
DESCRIBE = ("offer", "take", "ask and offer", "ask and take")
"""What becomes of a more exact class noun: it is shown, or it is used; the last two ask a language model for it."""


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
            has_intermediate_output=True,
            description="Names a subject: its photos, their masks, a token and a class noun. Use one node for "
            "each subject, one after the other. The prompt names it by both words, 'olis corgi'.",
            search_aliases=["MuDI", "name a subject", "character", "token"],
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
                    tooltip="What training reads for each photo, one line each, or a list from Load Photos or a "
                    "captioning node. The name is put in where it is missing. Left empty: 'a photo of olis corgi'.",
                ),
                Subjects.Input("subjects", optional=True, tooltip="The subjects so far; this one is added to them."),
                io.String.Input(
                    "description",
                    default="",
                    optional=True,
                    placeholder="from a language model (optional)",
                    tooltip="A more exact class noun from a language-model node, such as 'fluffy brown corgi'. "
                    "'describe' says whether it is used.",
                ),
                io.Combo.Input(
                    "describe",
                    options=list(DESCRIBE),
                    default=DESCRIBE[0],
                    optional=True,
                    tooltip="offer: show the more exact class noun of 'description'. take: use it instead of "
                    "class_noun. ask: show the first photo to the language model of Layout from Prompt (MUDI_LLM_URL, "
                    "or Ollama on this computer) when there is no description.",
                ),
            ],
            outputs=[
                Subjects.Output("all_subjects", display_name="subjects", tooltip="The subjects so far and this one."),
                io.String.Output(
                    "offered_class",
                    display_name="offered_class",
                    tooltip="The more exact class noun that was offered, or class_noun.",
                ),
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
        description: list[str] | None = None,
        describe: list[str] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.captions import named as with_names
        from ..mudi_core.subjects.find import INVERTED, add_subject, doubts, inverted, name_doubts, subject_from_masks

        name, shapes = token[0].strip(), convert.masks(masks)
        named = _photos(name, convert.pictures(photos), captions or [""])
        if len(named) != len(shapes):
            raise BadSubject(
                f"Subject '{name}': {len(named)} photos but {len(shapes)} masks. Connect one mask for each photo."
            )
        noun, offered, offers = _class_noun(
            class_noun[0].strip(), named, description or [""], (describe or DESCRIBE)[0]
        )
        named, remarks = with_names(named, name, noun)
        subject = subject_from_masks(named, shapes, name, noun)
        remarks = [*offers, *remarks]
        remarks += [f"{photo.name}: {INVERTED}" for photo, mask in zip(named, shapes, strict=True) if inverted(mask)]
        together = add_subject(subjects[0] if subjects else None, subject)
        named_badly = name_doubts([(one.token, one.class_noun) for one in together])
        for doubt in named_badly:
            host.log.warning(doubt)
        ui = host.preview([], cls, "\n".join(remarks + doubts([subject]) + named_badly))
        return io.NodeOutput(together, offered, ui=ui)


def _class_noun(
    noun: str, photos: Sequence[Photo], descriptions: list[str], describe: str
) -> tuple[str, str, list[str]]:
    """Return the class noun to use, the one that was offered, and what the node says of it.

    An answer that is no class noun is an error only where it would be used.
    """
    from ..mudi_core.stage.describe import NoClassNoun, ask_class, offer, read_class

    host.check_choice("way to describe", describe, DESCRIBE)
    takes, answer = describe.endswith("take"), next((text for text in descriptions if text.strip()), "")
    if not answer and not describe.startswith("ask"):
        return noun, noun, []
    try:
        if answer:
            offered = read_class(answer)
        else:
            with host.progress()("asking for a class noun"):
                offered = ask_class(
                    photos[0].image, noun, [photo.caption for photo in photos], on_wait=host.hear_cancel
                )
    except NoClassNoun as error:
        if takes:
            raise
        return noun, noun, [str(error)]
    words = offer(noun, offered)
    if not words:
        return noun, noun, []
    todo = "It is used." if takes else "Write it into class_noun, or set describe to 'take', to use it."
    return offered if takes else noun, offered, [f"{words} {todo}"]


def _photos(token: str, pictures: list[Tensor], captions: list[str]) -> Sequence[Photo]:
    """Return the pictures as photos, named by the subject's token and counted from 1, each with its caption."""
    texts = _captions(captions, len(pictures))
    return [
        Photo(f"{token}_{number}.png", picture, caption)
        for number, (picture, caption) in enumerate(zip(pictures, texts, strict=True), start=1)
    ]


def _captions(texts: list[str], count: int) -> list[str]:
    """Return a caption for each photo, from the lines of one text or from a list of texts; all "" if there is none."""
    lines = texts if len(texts) > 1 or count == 1 else texts[0].strip("\n").splitlines()
    if not any(line.strip() for line in lines):
        return [""] * count
    if len(lines) != count:
        raise CaptionsDoNotFit(
            f"There are {count} photos but {len(lines)} captions. Write one line for each photo, or none at all."
        )
    return [" ".join(line.split()) for line in lines]
