"""Train LoRA: train a LoRA by the same job as the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from ..mudi_core.names import plain_name
from ..mudi_core.stage.captions import TAGS
from ..mudi_core.subjects.prompt import write_prompt
from ..mudi_core.train.parts import Method
from ..mudi_core.types import MudiError
from . import drawing, host
from .base import ComfyBase, make_room
from .carried import carried
from .denoiser import usual_of
from .host import widgets, written
from .sockets import Dataset, PreviewSocket, Settings, TrainingSet, TrainPreview, TrainSettings
from .train_config import LOSSES, PRESETS, config_of
from .training import Run, read_lora, started, with_lora

if TYPE_CHECKING:
    from ..mudi_core.bases.families import Family

METHODS: tuple[str, ...] = get_args(Method)
_WIDGETS = ("name", "method", "preset", "steps", "rank", "learning_rate", "batch_size", "seed", "loss", "on_lora")


class TrainLora(io.ComfyNode):  # type: ignore[misc]
    """Train one LoRA for all subjects of a dataset."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiTrainLora",
            essentials_category="Characters",
            display_name="Train LoRA (MuDI)",
            category="MuDI/2 train",
            description="Trains one LoRA for all subjects of the dataset. Cancel stops within a step; queued again "
            "with the same settings it goes on from there. The model that comes in stays as it is.",
            search_aliases=[
                *("train", "lora", "dreambooth", "finetune", "mudi", "multi subject", "two characters"),
                *("consistent character", "character lora", "identity"),
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any model that draws pictures from text: SDXL, SD, FLUX, Qwen-Image, Z-Image and others, "
                    "or the mini model. LoRAs on it stay on it while it is trained; one in bypass mode is refused, "
                    "since training would not see it.",
                ),
                io.Clip.Input("clip", tooltip="Reads the captions; it is not trained."),
                io.Vae.Input("vae", tooltip="Encodes the training images; it is not trained."),
                Dataset.Input("dataset", tooltip="From Seg-Mix Dataset."),
                io.String.Input(
                    "name",
                    default="my_subjects",
                    tooltip="Name of the file in models/loras, with a number after it. A plain name without a path.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="segmix",
                    tooltip="segmix: photos and compositions. cutmix: photos and hard halves of two photos. "
                    "dreambooth: photos alone. The last two are there for comparison.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    tooltip="Size of the training images, memory and loss. auto finds the kind of your model and takes "
                    "what is usual for it. What does not fit into memory is computed again, which is slower; "
                    "with less memory, everything is. decouple: 250 steps on compositions alone, held to the model, "
                    "which has a fusion of LoRAs on it. iterate: the same on pictures of Best Pictures.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="0: what is usual for your model (1200 for SDXL, 300 for the mini model). 1000 to 1200 "
                    "suit plain subjects, 1400 to 1600 detailed ones.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=512,
                    tooltip="Size of the LoRA. 0: what is usual for your model (32 for SDXL, 16 for the mini model).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="0: what is usual for your model (1e-4 for SDXL, 1e-3 for the mini model). Halve it when "
                    "pictures look burnt.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Training images in a step; 1 needs the least memory. 0: what is usual for your model (2 "
                    "for SDXL, 8 for the mini model).",
                ),
                widgets.seed("Decides everything that is random: the same seed makes the same file."),
                Settings.Input(
                    "settings",
                    optional=True,
                    tooltip="From Train Settings: a small graphics card, a quick look, saving along the way, and more.",
                ),
                PreviewSocket.Input(
                    "preview",
                    optional=True,
                    tooltip="From Train Preview: pictures while it trains. The LoRA with the best ones is saved, too.",
                ),
                io.Combo.Input(
                    "loss",
                    options=list(LOSSES),
                    default=LOSSES[0],
                    optional=True,
                    tooltip="What training makes small. paper: the mean squared error, which needs priors. DCO: the "
                    "authors' later loss, which stays close to the model and needs none. Usual are DCO for SDXL and "
                    "SD, the paper's loss for the mini model.",
                ),
                io.String.Input(
                    "on_lora",
                    default="",
                    optional=True,
                    placeholder="my_fusion_00001.safetensors",
                    tooltip="The LoRA that is on the model already, such as that of Fuse LoRAs, by its file's name. "
                    "Then the new LoRA names it as its parent, and a file with both is written, too.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the new LoRA on it, at strength 1."),
                io.String.Output(
                    display_name="lora_name",
                    tooltip="Name of the new file in models/loras; with on_lora, of the file with both.",
                ),
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
    def fingerprint_inputs(cls, **values: Any) -> int:
        given = {"loss": LOSSES[0], "on_lora": "", **values}  # older graphs do not name them
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
        on_lora: str = "",
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.train import Training, whole_of

        values = (name, method, preset, steps, rank, learning_rate, batch_size, seed, loss, on_lora)
        chosen = dict(zip(_WIDGETS, values, strict=True))
        _check(chosen)
        settings, usual = settings or TrainSettings(), usual_of(model)
        every = 0 if preview is None else preview.every
        config = config_of(usual, chosen, dataset, settings, every)
        base = ComfyBase(model, clip, vae, config.learning.base_weights)
        base.check(config.learning.precision == "bf16")
        if usual.remark:
            host.log.warning(usual.remark)
        start, cut = started(settings.start, base, config.learning.rank)
        on = carried(model, on_lora)
        training = Training(base, dataset.subjects, config, dataset.priors, dataset.others, start, on)
        plan = training.plan(host.progress(), host.cache_folder())
        make_room()
        run = Run(training, plan, name, preview)
        with run.claimed():
            result = run.train()
        written.remember("MudiTrainLora", chosen, run.path)
        drawn = drawing.loss_curve(result.losses, config.samples.steps)
        for_diffusers = run.for_diffusers(usual) if settings.diffusers_file else ""
        remarks = [_summary(run, usual), for_diffusers, cut, usual.remark, base.remark, result.remark]
        text = " ".join(filter(None, remarks))
        wearing = with_lora(model, read_lora(run.path), run.path.name)
        usable = run.path if training.on is None else whole_of(run.path)
        return io.NodeOutput(wearing, usable.name, drawn[None], ui=host.preview([drawn, *run.sheets], cls, text))


def _check(chosen: dict[str, Any]) -> None:
    """Raise what is wrong with a widget, or with the folder of LoRAs, before hours of training."""
    plain_name(chosen["name"], "LoRA")
    host.check_choice("method", chosen["method"], METHODS)
    host.check_choice("preset", chosen["preset"], list(PRESETS))
    host.check_choice("loss", chosen["loss"], LOSSES)
    host.loras_folder()


def _summary(run: Run, usual: Family) -> str:
    """Return what a training did, in sentences."""
    from ..mudi_core.jobs.train import whole_of

    samples, learning = run.training.config.samples, run.training.config.learning
    subjects = run.training.subjects
    named = " and ".join(f"'{subject.name}'" for subject in subjects)
    if samples.captions == TAGS:
        named = f"'{write_prompt([subject.name for subject in subjects], style=TAGS)}'"
    megabytes = run.path.stat().st_size / 1e6
    words = [f"{run.path.name}: {samples.steps} steps of {samples.method}, {megabytes:.1f} MB. Prompt it with {named}."]
    if run.plan.composed:
        words.append(f"{run.plan.composed}.")
    if learning.dco_beta == 0 and usual.training.get("dco_beta") != 0 and run.training.priors is None:
        words.append("The paper's loss needs priors: connect Make Priors to Seg-Mix Dataset, or choose DCO.")
    if run.training.on is not None:
        words.append(f"It acts on top of {run.training.on.name}; both as one file: {whole_of(run.path).name}.")
    if run.best.step:
        words.append(f"The pictures were best after {run.best.step} steps, {run.best.score:.2f}: {run.best.path.name}.")
    if run.begins:
        words.append(f"It went on from step {run.begun_at}." if run.goes_on else f"It was {run.begins}.")
    return " ".join(words)
