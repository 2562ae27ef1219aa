"""Seg-Mix Dataset: how subjects become training images."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.bases.families import Family
from ..mudi_core.stage.captions import SENTENCE, STYLES, check_template, composition
from ..mudi_core.stage.layout import random_layout
from ..mudi_core.stage.layout_config import LayoutConfig, parse_relative_scale
from ..mudi_core.stage.segmix import SegMixConfig, compose, cut_outs, segmix
from ..mudi_core.stage.strangers import strangers_of, with_strangers
from ..mudi_core.train.draw import canvas
from ..mudi_core.types import MudiError, SubjectSet
from . import drawing, host
from .denoiser import usual_of
from .sockets import Dataset, Subjects, TrainingSet
from .train_config import layout_for

if TYPE_CHECKING:
    from torch import Tensor

CAPTIONS = ("auto", *STYLES)
EXAMPLES, COLUMNS, EXAMPLE_SIDE = 12, 4, 256
"""Compositions in the preview, in a row of it, and pixels of each side."""


class NoOthers(MudiError):
    """Compositions with others, and nobody else there."""


class SegMixDataset(io.ComfyNode):  # type: ignore[misc]
    """Decide how subjects become training images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSegMixDataset",
            display_name="Seg-Mix Dataset (MuDI)",
            category="MuDI/2 train",
            description="How the subjects become training images: their photos, and compositions of two cut-out "
            "subjects side by side (Seg-Mix), which teach the model not to mix them up.",
            search_aliases=["segmix", "dataset", "augmentation", "training images"],
            is_output_node=True,
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects to learn, at least two, or one with others."),
                io.Float.Input(
                    "probability",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the training images that are compositions; the others are the photos. Use a "
                    "higher share for more than three subjects.",
                ),
                io.String.Input(
                    "relative_sizes",
                    default="",
                    placeholder="olis:hta=1:2",
                    tooltip="How tall the subjects are beside each other: olis:hta=1:2 makes hta twice as tall. "
                    "Empty: all about the same height.",
                ),
                io.Float.Input(
                    "overlap",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the smaller subject the other may cover at most: 0 keeps them apart, 1 allows "
                    "all, as in the paper.",
                ),
                io.Float.Input(
                    "background_weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the background counts in training: 1 as much as the subjects, 0 not at all. Use "
                    "less when all photos share a background.",
                ),
                Subjects.Input(
                    "priors",
                    optional=True,
                    tooltip="Pictures of other members of each class (other corgis, say), with masks. With them, "
                    "training does not turn every corgi into yours. The loss DCO does not need them.",
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default=CAPTIONS[0],
                    optional=True,
                    tooltip="How captions of compositions, and of photos without one, are written. sentence: as "
                    "in the paper. tags: '2girls, olis, hta', for anime models. FLUX (official): as the official code "
                    "does for FLUX. auto: what is usual for the model of Train LoRA.",
                ),
                io.String.Input(
                    "template",
                    default="",
                    optional=True,
                    placeholder="{count}, {subjects}, {background} background",
                    tooltip="Your own caption of compositions, in the place of the style's. {subjects} are the names "
                    "and must be there; {classes} are the class nouns, {count} says how many, {background} the colour "
                    "behind them.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of Train LoRA, to see in the preview how compositions are made for its kind: "
                    "how large the subjects are, on which canvas, with which captions. It changes nothing else.",
                ),
                io.Boolean.Input(
                    "compose_with_others",
                    default=False,
                    optional=True,
                    tooltip="Compose the subjects with strangers too: the pictures of others and of priors, who are "
                    "called by their class nouns. For a LoRA of a single subject that is to stand beside others.",
                ),
                Subjects.Input(
                    "others",
                    optional=True,
                    tooltip="Strangers for compose_with_others, with masks: from Make Priors, of the subject's class "
                    "and others, or any subjects. Their names are not learnt.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For Train LoRA."),
                io.Image.Output(display_name="preview", tooltip=f"{EXAMPLES} compositions as training will see them."),
            ],
        )

    @classmethod
    def validate_inputs(cls, relative_sizes: str | None = None, template: str | None = None) -> bool | str:
        try:
            _relative_scale(relative_sizes or "")
            _check(template or "")
        except MudiError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        subjects: SubjectSet,
        probability: float,
        relative_sizes: str,
        overlap: float,
        background_weight: float,
        priors: SubjectSet | None = None,
        captions: str = CAPTIONS[0],
        template: str = "",
        model: Any = None,
        compose_with_others: bool = False,
        others: SubjectSet | None = None,
    ) -> io.NodeOutput:
        host.check_choice("style of captions", captions, CAPTIONS)
        template = template.strip()
        _check(template)
        layout = LayoutConfig(relative_scale=_relative_scale(relative_sizes), max_overlap=overlap)
        strangers = _strangers(others, priors) if compose_with_others else None
        dataset = TrainingSet(subjects, priors, probability, layout, background_weight, captions, template, strangers)
        family = Family() if model is None else usual_of(model)
        if model is not None and captions == "auto":
            captions = family.captions
        layout, black = layout_for(family, layout), _black_share(family)
        sheet = drawing.grid(_examples(subjects, strangers, layout, black), COLUMNS)
        words = f"{EXAMPLES} examples of what training will see{_caption_shown(dataset, captions)}"
        return io.NodeOutput(dataset, sheet[None], ui=host.preview([sheet], cls, words))


def _check(template: str) -> None:
    """Raise `BadTemplate` for a template that cannot be a caption; none at all is right."""
    if template.strip():
        check_template(template)


def _caption_shown(dataset: TrainingSet, captions: str) -> str:
    """Return the caption of a composition, in words for the node; nothing where no composition has one."""
    names = [(subject.token, subject.class_noun) for subject in dataset.subjects.subjects[:2]]
    if dataset.others is not None:
        names = [*names[:1], ("", dataset.others.subjects[0].class_noun)]
    template = dataset.caption_template
    if len(names) < 2 or (captions == "auto" and not template):
        return ""
    style = SENTENCE if captions == "auto" else captions
    usual = ", if its style is usual for the model" if captions == "auto" else ""
    return f", such as '{composition(style, names, SegMixConfig().background, template)}'{usual}"


def _relative_scale(text: str) -> dict[str, float] | None:
    return parse_relative_scale(text) if text.strip() else None


def _black_share(family: Family) -> float:
    return float(family.training.get("black_canvas", 0.0))


def _strangers(others: SubjectSet | None, priors: SubjectSet | None) -> SubjectSet:
    """Return everybody that the subjects may be composed with. Raise `NoOthers`."""
    there = [one for one in (others, priors) if one is not None]
    if not there:
        raise NoOthers(
            "compose_with_others is on, and there are no pictures of others. Connect Make Priors to others, or turn it "
            "off."
        )
    return strangers_of(*there)


def _examples(subjects: SubjectSet, others: SubjectSet | None, layout: LayoutConfig, black: float) -> list[Tensor]:
    """Draw compositions as training does, always the same ones. A single subject without others stands alone.

    ``black``: as `Samples.black_canvas`.
    """
    size = (EXAMPLE_SIDE, EXAMPLE_SIDE)
    examples = []
    subjects, strangers = (subjects, frozenset[str]()) if others is None else with_strangers(subjects, others)
    with host.progress()("composing examples") as update:
        cutouts = cut_outs(subjects, max_side=EXAMPLE_SIDE)
        for number in range(EXAMPLES):
            rng, coin = random.Random(f"preview/{number}"), random.Random(f"preview/canvas/{number}")
            background = canvas(black, coin)
            if len(subjects) > 1:
                mix = segmix(cutouts, rng, SegMixConfig(size, layout, background, strangers=strangers))
            else:
                mix = compose(random_layout(cutouts.figures(rng), rng, size, layout), cutouts, background)
            examples.append(mix.image)
            update(number + 1, EXAMPLES)
    return examples
