"""Train Settings: settings of Train LoRA beyond its own widgets."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..mudi_core.train.config import PRESETS, TrainConfig
from ..mudi_core.train.memory import MEMORY
from ..mudi_core.train.parts import PRODIGY_RATE, LrSchedule, OptimizerName
from . import host
from .host import written
from .sockets import Settings, TrainSettings

LEARNING: tuple[str, ...] = ("as in Train LoRA", *PRESETS)
MEMORIES: dict[str, int | None] = {"as in Train LoRA": None, **{f"{size} GB": size for size in MEMORY}}
OPTIMIZERS: tuple[str, ...] = get_args(OptimizerName)
SCHEDULES: tuple[str, ...] = get_args(LrSchedule)
_DECIDED = ("steps", "rank", "learning_rate", "lr_schedule", "lr_warmup")
"""What a choice of ``learning`` decides; where its preset is silent, the paper's value holds."""


class MakeTrainSettings(io.ComfyNode):  # type: ignore[misc]
    """Collect settings of a training that most people never change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiTrainSettings",
            display_name="Train Settings (MuDI)",
            category="MuDI/2 train",
            description="More settings for Train LoRA: a small graphics card, a quick look, saving along the way, "
            "starting from another LoRA. Its default values change nothing.",
            search_aliases=["low vram", "optimizer", "prodigy", "scheduler", "min snr", "resume", "advanced"],
            inputs=[
                io.Combo.Input(
                    "learning",
                    options=list(LEARNING),
                    tooltip="Replaces steps, rank, learning_rate, schedule and warm_up, for SD and SDXL. "
                    "quick look: 300 steps, rank 8. standard: 1200 steps, rank 32, the rate falls to 0. paper: the "
                    "same at a constant rate, with the paper's loss, which needs priors. official code: with DCO.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORIES),
                    tooltip="Gigabytes of the graphics card, calculated for SDXL at 1024 px. 12 GB and less take the "
                    "images of a step one by one; 8 GB computes a quarter more, with the model in 8 bits, 6 GB in 4.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    tooltip="adamw8bit needs less memory, and the package bitsandbytes. prodigy finds its own step "
                    "size: it needs the package prodigyopt, and a learning_rate of 1.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    tooltip="The learning rate after the warm-up: as it is, or down to 0 at the last step.",
                ),
                io.Int.Input(
                    "warm_up",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Steps over which the learning rate rises to its full size.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Batches in a step. With 2, a step learns from twice as many images in no more memory.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.0,
                    min=0.0,
                    max=512.0,
                    step=1.0,
                    tooltip="The LoRA is scaled by alpha / rank. 0: alpha is the rank.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=0.0,
                    min=0.0,
                    max=20.0,
                    step=0.5,
                    tooltip="Caps the signal-to-noise weight of timesteps with little noise. 5 is common; 0: no cap.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Shifts whole channels at random, by this much in units of the noise, for darker and "
                    "brighter pictures. 0.05 is common; 0: none.",
                ),
                io.Float.Input(
                    "kl_weight",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly training holds the model to what it predicts without the LoRA. 1 when it "
                    "knows the subjects already; 0: as in the preset of Train LoRA.",
                ),
                io.Boolean.Input(
                    "buckets",
                    default=False,
                    tooltip="Train each photo near its own aspect, up to 1:2 and 2:1, instead of square.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Saves the LoRA so far every so many steps, each time as its own file. 0: only at the end.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    tooltip="Pixels of a side of the training images. 0: as in the preset of Train LoRA.",
                ),
                io.Combo.Input(
                    "start_from",
                    options=host.loras(),
                    tooltip="A LoRA to begin with, of the same kind of model, by any program and of any kind: LoRA, "
                    "LoKr, LoHa, DoRA, GLoRA. What it changes beyond the rank of the training is cut off, and told.",
                ),
                io.Float.Input(
                    "dco_beta",
                    default=1000.0,
                    min=1.0,
                    max=100_000.0,
                    step=10.0,
                    optional=True,
                    tooltip="Strength of the loss DCO: a higher value stays closer to what the model knew. The "
                    "official code has 1000. The paper's loss has none.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="How much the priors count beside the subjects' own images. 0 leaves them out.",
                ),
                io.Boolean.Input(
                    "diffusers_file",
                    default=False,
                    optional=True,
                    tooltip="For Krea 2 and Anima: write a second file in the only form that diffusers reads of them. "
                    "ComfyUI reads both; other models need no second file.",
                ),
            ],
            outputs=[Settings.Output(display_name="settings", tooltip="For Train LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str | None = None, **others: Any) -> Any:
        return written.state_of([host.find_lora(start_from)])

    @classmethod
    def execute(
        cls,
        learning: str,
        memory: str,
        optimizer: OptimizerName,
        schedule: LrSchedule,
        warm_up: int,
        accumulation: int,
        alpha: float,
        min_snr_gamma: float,
        noise_offset: float,
        kl_weight: float,
        buckets: bool,
        save_every: int,
        resolution: int,
        start_from: str,
        dco_beta: float = 1000.0,
        prior_weight: float = 1.0,
        diffusers_file: bool = False,
    ) -> io.NodeOutput:
        host.check_choice("learning", learning, LEARNING)
        host.check_choice("memory", memory, list(MEMORIES))
        host.check_choice("optimizer", optimizer, OPTIMIZERS)
        host.check_choice("schedule", schedule, SCHEDULES)
        values: dict[str, Any] = {
            "optimizer": optimizer,
            "lr_schedule": schedule,
            "lr_warmup": warm_up,
            "accumulation": accumulation,
            "alpha": alpha or None,
            "min_snr_gamma": min_snr_gamma or None,
            "noise_offset": noise_offset,
            "buckets": buckets,
            "save_every": save_every,
            "prior_loss_weight": prior_weight,
        }
        if resolution:
            values["resolution"] = resolution
        if kl_weight:
            values["kl_weight"] = kl_weight
        if learning in PRESETS:
            usual = TrainConfig().flat()
            values |= {name: usual[name] for name in _DECIDED} | PRESETS[learning]
            if optimizer == "prodigy":  # the presets' rates are AdamW's
                values["learning_rate"] = PRODIGY_RATE
        chosen = TrainSettings(values, MEMORIES[memory], host.lora(start_from), dco_beta, diffusers_file)
        return io.NodeOutput(chosen)
