"""Detail Subjects: every figure of a finished picture is sampled again, larger and with its own prompt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..mudi_core.bases.checkpoint import NEGATIVE_PROMPT
from ..mudi_core.types import MudiError
from . import convert, drawing, host
from .compare import Judge, Judging
from .host import widgets
from .own_loras import owners
from .redraw import Redraw, loras_of, samplers_of, segs
from .sockets import LorasSocket, SubjectLora, Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.detail import Detailed
    from ..mudi_core.types import Comparison, SubjectSet

PROMPT = "a photo of {name}"
FIELDS = ("name", "token", "class")
Segs = io.Custom("SEGS")
"""Impact Pack's: the size of a picture and what its detailers work on."""


class BadPromptTemplate(MudiError):
    """A prompt with a field in braces that there is not."""


class DetailSubjects(io.ComfyNode):  # type: ignore[misc]
    """Sample the figures of a picture again, one by one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiDetail",
            display_name="Detail Subjects (MuDI)",
            category="MuDI/3 generate",
            description="A second pass over finished pictures: D&C says who is where, each figure is enlarged, sampled "
            "again with its own prompt, and put back where it is more itself than before. The rest of the "
            "picture stays as it is, to the bit.",
            search_aliases=["detailer", "face detailer", "adetailer", "fix faces", "hires fix", "SEGS", "inpaint"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Finished pictures, as a batch or a list."),
                Subjects.Input("subjects", tooltip="Who is in the pictures."),
                io.Model.Input(
                    "model", tooltip="The model that samples, with the LoRA of the subjects on it, if one has all."
                ),
                io.Clip.Input("clip", tooltip="Reads the prompt of each figure."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that samples."),
                io.String.Input(
                    "prompt",
                    default=PROMPT,
                    multiline=True,
                    tooltip="The prompt of each figure. {name} is its token and class noun, {token} and {class} one of "
                    "them.",
                ),
                io.String.Input(
                    "negative", default=NEGATIVE_PROMPT, multiline=True, tooltip="What the figures should not be."
                ),
                widgets.seed("Of the noise of each figure."),
                *host.sampler_widgets(scheduler="normal"),
                io.Float.Input(
                    "denoise",
                    default=0.4,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of each figure may change: 0.3 sharpens, 0.5 redraws. Above 0.7 poses change.",
                ),
                io.Int.Input(
                    "side",
                    default=1024,
                    min=64,
                    max=4096,
                    step=16,
                    tooltip="Pixels of the longer side at which a figure is sampled: the size of the model's own "
                    "pictures; 192 for the mini model.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.25,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much of the picture is seen around a figure, as a share of its size.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.04,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How wide a figure's border blends into the picture, as a share of its size.",
                ),
                io.Boolean.Input(
                    "only_better",
                    default=True,
                    tooltip="Keep a new figure only where the embedder finds it more itself than the old one, and D&C "
                    "finds the whole picture no worse.",
                ),
                widgets.model("detector", "The model that finds the figures."),
                widgets.model("segmenter", "The model that finds their outlines."),
                widgets.model("embedder", "The model that says who is who."),
                widgets.threshold("Least confidence of a figure, as in D&C Score."),
                widgets.query(),
                widgets.cut_out("Compare with the cut-out subjects, as in D&C Score."),
                widgets.download(),
                LorasSocket.Input(
                    "loras",
                    optional=True,
                    tooltip="From the last LoRA Subject: each figure is sampled with the LoRA of its own subject, on "
                    "top of the model; a subject without one with the model alone.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "detailed", display_name="images", is_output_list=True, tooltip="The pictures, in their order."
                ),
                io.Image.Output(
                    "cards",
                    display_name="cards",
                    is_output_list=True,
                    tooltip="For each picture what it was and what it is.",
                ),
                io.Mask.Output(
                    "masks",
                    display_name="masks",
                    is_output_list=True,
                    tooltip="For each picture what changed.",
                ),
                Segs.Output(
                    "segs",
                    display_name="segs",
                    is_output_list=True,
                    tooltip="For each picture its figures as they were, for the detailers of Impact Pack.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: list[str | None]) -> bool | str:
        try:
            _prompted(prompt[0] or "", "olis", "corgi")
        except BadPromptTemplate as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        subjects: list[SubjectSet],
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        prompt: list[str],
        negative: list[str],
        seed: list[int],
        steps: list[int],
        cfg: list[float],
        sampler_name: list[str],
        scheduler: list[str],
        denoise: list[float],
        side: list[int],
        margin: list[float],
        feather: list[float],
        only_better: list[bool],
        detector: list[str],
        segmenter: list[str],
        embedder: list[str],
        threshold: list[float],
        query: list[str],
        cut_out: list[bool],
        download: list[bool],
        loras: list[tuple[SubjectLora, ...]] | None = None,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.detail import DetailConfig, detail

        host.check_sampler(sampler_name[0], scheduler[0])
        config = DetailConfig(side[0], margin[0], feather[0], only_better[0])
        pictures, people = convert.pictures(images), subjects[0]
        worn = loras_of(people, loras[0] if loras else ())
        prompts = [_prompted(prompt[0], one.token, one.class_noun) for one in people]
        how_sampled = steps[0], cfg[0], sampler_name[0], scheduler[0]
        samplers, fits = samplers_of(model[0], clip[0], worn, prompts, negative[0], how_sampled)
        how = Judging(detector[0], embedder[0], threshold[0], query[0], cut_out[0], download[0])
        segment, (_, embed) = host.segmenter(segmenter[0], download[0]), how.eyes()
        with host.progress()("comparing") as update:
            judge = Judge(people, how)
            results = judge(pictures, update)
        encode = convert.encode_image(vae[0], model[0])
        done: list[Detailed] = []
        with host.progress()("detailing") as update:
            for number, (picture, result) in enumerate(zip(pictures, results, strict=True)):
                redraw = Redraw(samplers, encode, vae[0], seed[0] + number, denoise[0])
                done.append(detail(picture, result, judge.references, segment, embed, redraw, judge.one, config))
                update(number + 1, len(pictures))
        each = list(zip(pictures, results, done, strict=True))
        cards = [drawing.column([drawing.small(picture), drawing.small(one.image)]) for picture, _, one in each]
        lines = [_told(number, result, one, people) for number, (_, result, one) in enumerate(each, start=1)]
        lines += [*owners(people, worn), *fits]
        return io.NodeOutput(
            [one.image[None] for one in done],
            [card[None] for card in cards],
            [_changed(one)[None] for one in done],
            [segs(picture, result, one, people) for picture, result, one in each],
            ui=host.preview(drawing.stacked(cards), cls, "\n".join(lines)),
        )


def _prompted(template: str, token: str, noun: str) -> str:
    """Return the prompt of a figure. Raise `BadPromptTemplate` for an unknown field in braces."""
    values = dict(zip(FIELDS, (f"{token} {noun}", token, noun), strict=True))
    for field in re.findall(r"\{([^{}]*)\}", template):
        if field not in values:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise BadPromptTemplate(f"The prompt has {{{field[:40]}}}, which means nothing here. There are {known}.")
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], template)


def _told(number: int, before: Comparison, done: Detailed, people: SubjectSet) -> str:
    """Return what became of a picture, in a line."""
    if not done.regions:
        return f"picture {number}: no figure of a subject was found; it stays as it is."
    figures = [
        f"{people.subjects[region.subject].name} {'is new' if kept else 'stays'}"
        for region, kept in zip(done.regions, done.kept, strict=True)
    ]
    return f"picture {number}: {before.score:.2f} before, {done.comparison.score:.2f} now; {', '.join(figures)}."


def _changed(done: Detailed) -> Tensor:
    """Return where a picture may have changed, ``[h, w]``, 0..1."""
    mask = torch.zeros(done.image.shape[:2])
    for region, kept in zip(done.regions, done.kept, strict=True):
        mask = torch.maximum(mask, region.mask) if kept else mask
    return mask
