"""Seg-Mix Dataset and Train LoRA: subjects become training images, and these a LoRA."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, get_args

import comfy.model_management
import torch
from comfy_api.latest import io

from ..mudi_core.names import plain_name
from ..mudi_core.stage.layout import LayoutConfig, parse_relative_scale, random_layout
from ..mudi_core.stage.segmix import SegMixConfig, compose, cut_outs, segmix
from ..mudi_core.train.config import TrainConfig
from ..mudi_core.train.memory import memory_settings
from ..mudi_core.train.parts import Method
from ..mudi_core.types import MudiError, SubjectSet
from . import convert, drawing, host
from .denoiser import ComfyDenoiser, foreign_patches, kohya_family
from .host import widgets, written
from .preview import weak_preview
from .sockets import Dataset, PreviewSocket, Settings, Subjects, TrainingSet, TrainPreview, TrainSettings
from .training import Run, read_lora, with_lora

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.lora.file import LoraState
    from ..mudi_core.train.plan import Plan

CATEGORY = "MuDI/2 train"
EXAMPLES, COLUMNS, EXAMPLE_SIDE = 12, 4, 256
"""Compositions in the preview, in a row of it, and pixels of each side."""

PRESETS: dict[str, dict[str, Any]] = {
    "SDXL, 1024 px": {"resolution": 1024},
    "SDXL, 1024 px, less memory": {"resolution": 1024, "gradient_checkpointing": "full"},
    "SDXL, 768 px, less memory": {"resolution": 768, "gradient_checkpointing": "full"},
    "mini, 192 px": {"resolution": 192, "dco_beta": 0.0},
    "SD 1.5 and 2, 512 px": {"resolution": 512},
    "SD 2, 768 px": {"resolution": 768},
}
MINI_PRESET = "mini, 192 px"
METHODS: tuple[str, ...] = get_args(Method)
LOSSES = ("as the preset", "paper", "DCO")
_WIDGETS = ("name", "method", "preset", "steps", "rank", "learning_rate", "batch_size", "seed", "loss")


class SegMixDataset(io.ComfyNode):  # type: ignore[misc]
    """How subjects become training images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSegMixDataset",
            display_name="Seg-Mix Dataset (MuDI)",
            category=CATEGORY,
            description="How the subjects become training images: their photos, and compositions of two cut-out "
            "subjects side by side (Seg-Mix), which teach the model not to mix them up.",
            search_aliases=["segmix", "dataset", "augmentation", "training images"],
            is_output_node=True,
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects to learn, at least two."),
                io.Float.Input(
                    "probability",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the training images that are compositions; the others are the photos. More than "
                    "three subjects want more.",
                ),
                io.String.Input(
                    "relative_sizes",
                    default="",
                    placeholder="olis:hta=1:2",
                    tooltip="How tall the subjects are beside each other: olis:hta=1:2 makes hta twice as tall. "
                    "Empty: all about alike.",
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
                    tooltip="How much the surroundings of the subjects count in training: 1 as much as they, 0 not at "
                    "all. Less helps when all photos share a background.",
                ),
                Subjects.Input(
                    "priors",
                    optional=True,
                    tooltip="Pictures of other members of each class (other corgis, say), with masks: they keep the "
                    "model from making every corgi yours. Not needed with the SDXL presets.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For Train LoRA."),
                io.Image.Output(display_name="preview", tooltip=f"{EXAMPLES} compositions as training will see them."),
            ],
        )

    @classmethod
    def validate_inputs(cls, relative_sizes: str | None = None) -> bool | str:
        try:
            _relative_scale(relative_sizes or "")
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
    ) -> io.NodeOutput:
        layout = LayoutConfig(relative_scale=_relative_scale(relative_sizes), max_overlap=overlap)
        dataset = TrainingSet(subjects, priors, probability, layout, background_weight)
        sheet = drawing.grid(_examples(subjects, layout), COLUMNS)
        said = f"{EXAMPLES} examples of what training will see"
        return io.NodeOutput(dataset, sheet[None], ui=host.preview([sheet], cls, said))


class TrainLora(io.ComfyNode):  # type: ignore[misc]
    """One LoRA for all subjects of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiTrainLora",
            display_name="Train LoRA (MuDI)",
            category=CATEGORY,
            description="Trains one LoRA for all subjects of the dataset. Cancel stops within a step; queued again "
            "with the same settings it goes on from there. The model that comes in stays as it is.",
            search_aliases=["train", "lora", "dreambooth", "finetune", "mudi"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="An SDXL, SD 1.5 or SD 2 model, or the mini model. LoRAs on it are trained upon; one in "
                    "bypass mode is refused, since training would not see it.",
                ),
                io.Clip.Input("clip", tooltip="Reads the captions; it is not trained."),
                io.Vae.Input("vae", tooltip="Encodes the training images; it is not trained."),
                Dataset.Input("dataset", tooltip="From Seg-Mix Dataset."),
                io.String.Input(
                    "name",
                    default="my_subjects",
                    tooltip="The file in models/loras is called so, with a number behind it. A plain name, no path.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="segmix",
                    tooltip="segmix: photos and compositions. cutmix: photos and hard halves of two photos. "
                    "dreambooth: photos alone. The last two are there to compare with.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="Size of the training images, memory and loss: take one of your model's kind. What does "
                    "not fit into memory is computed twice, slower; with less memory all is. Train Settings has more.",
                ),
                io.Int.Input(
                    "steps",
                    default=1200,
                    min=1,
                    max=100_000,
                    tooltip="1000 to 1200 for plain subjects, 1400 to 1600 for detailed ones; 300 for the mini model.",
                ),
                io.Int.Input("rank", default=32, min=1, max=512, tooltip="Size of the LoRA; 16 for the mini model."),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="1e-4 for SDXL, 1e-3 for the mini model. Halve it when pictures look burnt.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="Training images of a step; 1 needs the least memory, 8 for the mini model.",
                ),
                widgets.seed("Everything that is left to chance hangs on it: the same seed makes the same file."),
                Settings.Input(
                    "settings",
                    optional=True,
                    tooltip="From Train Settings: a small card, a quick look, saving now and then, and more.",
                ),
                PreviewSocket.Input(
                    "preview",
                    optional=True,
                    tooltip="From Train Preview: pictures on the way, and the best LoRA kept beside the last.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default=LOSSES[0],
                    optional=True,
                    tooltip="What training makes small. paper: the mean squared error, which wants priors. DCO: the "
                    "authors' later loss, which stays close to the model without any. The SDXL and SD presets have "
                    "DCO, the mini one the paper's.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the new LoRA on it, at strength 1."),
                io.String.Output(display_name="lora_name", tooltip="Name of the new file in models/loras."),
                io.Image.Output(display_name="loss", tooltip="The training's loss over its steps."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            plain_name("linked" if name is None else name, "LoRA")
        except MudiError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **widgets: Any) -> int:
        given = {"loss": LOSSES[0], **widgets}  # older graphs do not name the loss
        return written.times_gone("MudiTrainLora", {name: given.get(name) for name in _WIDGETS})

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: TrainingSet,
        name: str,
        method: Method,
        preset: str,
        steps: int,
        rank: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        settings: TrainSettings | None = None,
        preview: TrainPreview | None = None,
        loss: str = LOSSES[0],
    ) -> io.NodeOutput:
        from ..mudi_core.lora.file import load_lora, save_lora
        from ..mudi_core.lora.metadata import lora_metadata
        from ..mudi_core.train.resume import lora_fingerprint

        plain_name(name, "LoRA")
        host.check_choice("method", method, METHODS)
        host.check_choice("preset", preset, list(PRESETS))
        host.check_choice("loss", loss, LOSSES)
        host.loras_folder()  # before hours of training: it may be read-only
        settings = settings or TrainSettings()
        config = _config(
            {
                "method": method,
                "steps": steps,
                "batch_size": batch_size,
                "seed": seed,
                "learning_rate": learning_rate,
                "rank": rank,
                "segmix_prob": dataset.segmix_prob,
                "layout": dataset.layout,
                "background_weight": dataset.background_weight,
                "precision": "bf16" if _computes_in_bf16(preset) else "fp32",
                "preview_every": 0 if preview is None else preview.every,
                **PRESETS[preset],
            },
            settings,
            loss,
        )
        start = None if settings.start is None else load_lora(settings.start)[0]
        family, denoiser = kohya_family(model), ComfyDenoiser(model, config.learning.base_weights)
        remark = "" if preview is None else weak_preview(preview, model)
        plan = _plan(dataset, config, denoiser, clip, vae)
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        about = lora_metadata(
            config.described(),
            dataset.subjects,
            base=type(model.model.model_config).__name__,
            plan_hash=plan.plan_hash,
            family=family,
        )
        about["mudi_start"] = lora_fingerprint(start)
        run = Run(denoiser, vae, plan, config, name, start, about, preview)

        def save(step: int, state: LoraState) -> None:
            save_lora(path.with_stem(f"{path.stem}-{step:06d}"), state, {**about, "ss_steps": str(step)})

        with run.claimed():
            path = run.path
            result = run.train(save)
            save_lora(path, result.state, about)
            run.finish()
        values = (name, method, preset, steps, rank, learning_rate, batch_size, seed, loss)
        written.remember("MudiTrainLora", dict(zip(_WIDGETS, values, strict=True)), path)
        drawn = drawing.loss_curve(result.losses, config.samples.steps)
        named = " and ".join(f"'{subject.name}'" for subject in dataset.subjects)
        megabytes = path.stat().st_size / 1e6
        text = f"{path.name}: {config.samples.steps} steps of {method}, {megabytes:.1f} MB. Prompt it with {named}."
        if plan.composed:
            text += f" {plan.composed}."
        if config.learning.dco_beta == 0 and "dco_beta" not in PRESETS[preset] and dataset.priors is None:
            text += " The paper's loss wants priors: connect Make Priors to Seg-Mix Dataset, or choose DCO."
        if run.best.step:
            text += f" The pictures were best after {run.best.step} steps, {run.best.score:.2f}: {run.best.path.name}."
        if remark:
            text += f" Of the previews: {remark}"
        if result.remark:
            text += f" {result.remark}"
        if run.begins:
            text += f" It was {run.begins}." if not run.goes_on else f" It went on from step {run.begun_at}."
        wearing = with_lora(model, read_lora(path), path.name)
        return io.NodeOutput(wearing, path.name, drawn[None], ui=host.preview([drawn, *run.sheets], cls, text))


def _relative_scale(text: str) -> dict[str, float] | None:
    return parse_relative_scale(text) if text.strip() else None


def _examples(subjects: SubjectSet, layout: LayoutConfig) -> list[Tensor]:
    """Compositions as training draws them, always the same ones; a single subject stands alone."""
    size = (EXAMPLE_SIDE, EXAMPLE_SIDE)
    examples = []
    with host.progress()("composing examples") as update:
        cutouts = cut_outs(subjects, max_side=EXAMPLE_SIDE)
        for number in range(EXAMPLES):
            rng = random.Random(f"preview/{number}")
            if len(subjects) > 1:
                mix = segmix(cutouts, rng, SegMixConfig(size=size, layout=layout))
            else:
                mix = compose(random_layout(cutouts.figures(rng), rng, size, layout), cutouts)
            examples.append(mix.image)
            update(number + 1, EXAMPLES)
    return examples


def _config(values: dict[str, Any], settings: TrainSettings, loss: str) -> TrainConfig:
    """The node's own values, those of its settings, and what the card needs.

    A card too small for a batch takes its images one by one, and the steps stay as they are.
    """
    values = {**values, **settings.values}
    if loss == "paper":
        values["dco_beta"] = 0.0
    elif loss == "DCO" or values.get("dco_beta", 1.0) > 0:
        values["dco_beta"] = settings.dco_beta
    if settings.gigabytes is not None:
        needed = memory_settings(settings.gigabytes)
        if values.get("optimizer", "adamw") != "adamw":
            needed.pop("optimizer", None)
        if needed.get("batch_size") == 1:
            needed["accumulation"] = values["batch_size"] * values.get("accumulation", 1)
        values |= needed
    return TrainConfig.of(**values)


def _computes_in_bf16(preset: str) -> bool:
    device = host.device()
    return preset != MINI_PRESET and device.type == "cuda" and bool(comfy.model_management.should_use_bf16(device))


def _plan(dataset: TrainingSet, config: TrainConfig, denoiser: ComfyDenoiser, clip: Any, vae: Any) -> Plan:
    """Draw and encode what the training will see. Raises `convert.BadModel` where MODEL, CLIP and VAE do not fit."""
    from ..mudi_core.train.plan import make_plan

    encode_image, encode_text = convert.encode_image(vae, denoiser.patcher), convert.encode_text(clip)
    denoiser.check(
        encode_image(torch.zeros(1, 64, 64, 3))[0], encode_text(["a photo"])[0], config.learning.precision == "bf16"
    )
    if patches := foreign_patches(denoiser.patcher):
        host.log.warning("Other nodes' patches on the MODEL are not trained with: %s.", ", ".join(patches))
    # What training saves for its gradients must not have been made in inference mode, where nodes run.
    with host.progress()("encoding") as update, torch.inference_mode(False), torch.no_grad():
        return make_plan(
            dataset.subjects,
            config.samples,
            encode_image,
            encode_text,
            priors=dataset.priors,
            on_step=lambda stage, done, total: update(done, total, stage),
            cache_dir=host.cache_folder(),
        )
