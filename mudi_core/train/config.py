"""What a training run is told, with its units, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args

from ..bases.families import Family
from ..bases.quantize import BASE_WEIGHTS, BaseWeights
from ..stage.layout import LayoutConfig
from ..types import MudiError

Method = Literal["segmix", "dreambooth", "cutmix"]
Precision = Literal["fp32", "bf16"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
LrSchedule = Literal["constant", "linear", "cosine"]
GradientCheckpointing = Literal["auto", "off", "selective", "full"]

PRESETS: dict[str, dict[str, Any]] = {
    "quick look": {"steps": 300, "rank": 8, "learning_rate": 3e-4, "lr_schedule": "cosine", "lr_warmup": 20},
    "standard": {"lr_schedule": "cosine", "lr_warmup": 50},
    "paper": {"dco_beta": 0.0},
    "official code": {"dco_beta": 1000.0},
}
"""How long and how carefully to learn: settings that stand in for `TrainConfig`'s own.

"paper" is the paper's loss, the mean squared error, which wants prior images (its appendix B); "official code" is the
authors' later substitute, Direct Consistency Optimization, which needs none. Both have the paper's steps and rate.
"""

_NOT_IN_THE_PLAN = (
    "learning_rate betas weight_decay max_grad_norm optimizer lr_schedule lr_warmup rank alpha target_modules "
    "background_weight dco_beta kl_weight min_snr_gamma noise_offset precision base_weights gradient_checkpointing "
    "learn_tokens token_learning_rate save_every preview_every batch_size accumulation"
).split()


_NOT_OF_THE_RUN = "gradient_checkpointing save_every preview_every batch_size accumulation".split()
"""A stopped run may go on with others of these: they fit a step into memory, or look at it."""


COMPOSED_PIXELS = 8192 * 1024 * 1024
"""Of all different compositions of a run, and of its priors as many again: 8192 of 1024 px, whose latents and masks
take 2.5 GB. A fixed number and not the memory of the machine, so that a run is the same everywhere."""


class BadTrainConfig(MudiError):
    """A training setting out of its range."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one LoRA. The defaults are those of the official code, for SDXL.

    Raises `BadTrainConfig` that names the setting, its value and its range.
    """

    method: Method = "segmix"
    """"segmix": photos and Seg-Mix compositions (paper 4.1); "cutmix": hard halves; "dreambooth": photos only."""
    steps: int = 1200
    """Optimizer steps. 1000 to 1200 for plain subjects, 1400 to 1600 for detailed ones."""
    batch_size: int = 2
    """Samples that the U-Net sees at once (as many priors again, if there are any)."""
    accumulation: int = 1
    """Batches of a step: their gradients are averaged before the weights move. Several processes share them."""
    seed: int = 0
    """Every random choice hangs on it: crops, compositions, their order, noise, timesteps, the LoRA's start."""
    resolution: int | tuple[int, int] = 1024
    """Pixels, width and height; one number means a square. Multiples of 8."""
    buckets: bool = False
    """Train each photo near its own aspect, up to 1:2 and 2:1, at as many pixels; else all are cropped to
    ``resolution``, as compositions always are."""

    optimizer: OptimizerName = "adamw"
    """"adamw8bit" keeps AdamW's state in 8 bits (package bitsandbytes); "prodigy" finds its own step size (package
    prodigyopt)."""
    learning_rate: float = 1e-4
    """How far a step goes: about 1e-4 for AdamW; for Prodigy a factor of the size that it finds, usually 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The optimizer's decay of the mean and of the square of the gradient, each 0..1."""
    weight_decay: float = 1e-4
    """Share of a weight that is taken off in a step, times the learning rate."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    lr_schedule: LrSchedule = "constant"
    """How the learning rate goes on after the warm-up: as it is, or down to 0 by the last step."""
    lr_warmup: int = 0
    """Steps over which the learning rate rises linearly."""
    save_every: int = 0
    """Steps between two savings of the LoRA so far, and of what a later run goes on from; 0 saves at the end alone."""

    preview_every: int = 0
    """Steps between two looks at pictures of the LoRA so far, of which the best is kept; 0 looks at none."""

    rank: int = 32
    alpha: float | None = None
    """The LoRA is scaled by alpha / rank; None means alpha = rank."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Ends of the names of the U-Net's linear layers that get a LoRA; none is for Textual Inversion."""
    learn_tokens: bool = False
    """Learn the vectors of the subjects' tokens too, through the frozen text encoders (Textual Inversion)."""
    token_learning_rate: float = 5e-3
    """The learning rate of these vectors, under the same schedule."""

    segmix_prob: float = 0.3
    """0..1: how many of the samples are compositions. More than three subjects want more."""
    segmix_start_step: int = 0
    """The first step that may use a composition."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """How large the subjects of a composition are and where they stand."""
    background_weight: float = 1.0
    """Loss weight outside the subjects, in photos and compositions: 0 ignores the background, 1 is no mask."""
    crops_per_photo: int = 16
    """So many different random crops of a photo are drawn (and encoded) at most; steps then use them in turn."""
    max_composites: int | None = None
    """So many different compositions are drawn (and encoded) at most; steps then use them in turn. None: every one is
    new, as in the official code, up to `COMPOSED_PIXELS` in all."""

    dco_beta: float = 1000.0
    """Strength of Direct Consistency Optimization: the official code has 1000; 0 is the mean squared error, the paper's
    own loss, which it uses with prior images."""
    kl_weight: float = 0.0
    """Weight of the squared distance between what the model predicts with and without the LoRA (KL regularization): 0
    is none; the paper has 1 where it trains on a model that already knows the subjects (sections 5.4 and 5.5). The
    official code has no such loss."""
    prior_loss_weight: float = 1.0
    """Weight of the prior images' loss, if prior images are given, with DCO and without; 0 leaves them out."""
    min_snr_gamma: float | None = None
    """Caps the signal-to-noise weight of a timestep (5 is common); None weighs all timesteps the same."""
    noise_offset: float = 0.0
    """Standard deviation of a constant that is added to each channel's noise; 0.05 is common, 0 is none."""

    precision: Precision = "fp32"
    """"bf16" computes in bfloat16 (the LoRA itself stays in float32)."""
    base_weights: BaseWeights = "full"
    """How the frozen U-Net is kept: "full", or its transformers in 8 ("int8", or "fp8" which is exact for a model that
    comes in it) or 4 ("nf4") bits. `quantize` does it."""
    gradient_checkpointing: GradientCheckpointing = "auto"
    """Compute activations twice to keep fewer of them: those that are cheap to compute, hardly slower ("selective"), or
    all of them with the least memory ("full"). The result is the same. "auto" is as little of it as the card allows."""

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, wanted: str) -> None:
            if not ok:
                raise BadTrainConfig(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")

        check("method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        check("precision", self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}")
        check("optimizer", self.optimizer in get_args(OptimizerName), f"one of {', '.join(get_args(OptimizerName))}")
        check("lr_schedule", self.lr_schedule in get_args(LrSchedule), f"one of {', '.join(get_args(LrSchedule))}")
        check("base_weights", self.base_weights in BASE_WEIGHTS, f"one of {', '.join(BASE_WEIGHTS)}")
        checkpointing = get_args(GradientCheckpointing)
        check(
            "gradient_checkpointing", self.gradient_checkpointing in checkpointing, f"one of {', '.join(checkpointing)}"
        )
        for name in ("steps", "batch_size", "accumulation", "rank", "crops_per_photo"):
            check(name, getattr(self, name) >= 1, "1 or more")
        check(
            "max_composites", self.max_composites is None or self.max_composites >= 1, "1 or more, or None for all new"
        )
        for name in ("lr_warmup", "segmix_start_step", "save_every", "preview_every"):
            check(name, getattr(self, name) >= 0, "0 or more")
        sizes = (self.resolution,) if isinstance(self.resolution, int) else self.resolution
        check("resolution", len(sizes) in (1, 2), "a number, or a width and a height")
        check("resolution", all(side >= 32 and side % 8 == 0 for side in sizes), "a multiple of 8 px, 32 or more")
        check("learning_rate", 0 < self.learning_rate <= 1000, "more than 0, for example 1e-4")
        if self.optimizer == "prodigy":
            check("learning_rate", self.learning_rate >= 0.01, "about 1 with Prodigy, which finds the size itself")
        check("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers 0..1")
        for name in ("weight_decay", "max_grad_norm", "dco_beta", "kl_weight", "prior_loss_weight", "noise_offset"):
            check(name, getattr(self, name) >= 0, "0 or more")
        check("alpha", self.alpha is None or self.alpha > 0, "more than 0, or None for the rank")
        check("target_modules", bool(self.target_modules or self.learn_tokens), "at least one name of a layer")
        check("token_learning_rate", self.token_learning_rate > 0, "more than 0, for example 5e-3")
        for name in ("segmix_prob", "background_weight"):
            check(name, 0 <= getattr(self, name) <= 1, "0..1")
        check("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "more than 0, or None")

    @classmethod
    def usual(cls, family: Family, **settings: Any) -> TrainConfig:
        """Return what is usual for a kind of base model, and ``settings`` in its place."""
        layout = LayoutConfig() if family.max_overlap is None else LayoutConfig(max_overlap=family.max_overlap)
        return cls(**{**family.training, "layout": layout, **settings})

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def composites(self) -> int:
        """How many different compositions a run draws at most."""
        return self.max_composites or max(1, COMPOSED_PIXELS // (self.size[0] * self.size[1]))

    @property
    def samples_per_step(self) -> int:
        """Own samples of an optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def lora_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    def described(self) -> dict[str, str]:
        """These settings as a LoRA's file tells them: by kohya's ``ss_*`` names, and whole as ``mudi_config``."""
        return {
            "ss_network_dim": str(self.rank),
            "ss_network_alpha": str(self.lora_alpha),
            "ss_learning_rate": str(self.learning_rate),
            "ss_unet_lr": str(self.learning_rate),
            "ss_optimizer": self.optimizer,
            "ss_lr_scheduler": self.lr_schedule,
            "ss_lr_warmup_steps": str(self.lr_warmup),
            "ss_steps": str(self.steps),
            "ss_max_train_steps": str(self.steps),
            "ss_total_batch_size": str(self.samples_per_step),
            "ss_gradient_accumulation_steps": str(self.accumulation),
            "ss_resolution": f"({self.size[0]}, {self.size[1]})",
            "ss_min_snr_gamma": str(self.min_snr_gamma),
            "ss_noise_offset": str(self.noise_offset),
            "ss_mixed_precision": "bf16" if self.precision == "bf16" else "no",
            "ss_seed": str(self.seed),
            "mudi_config": self.to_json(),
        }

    def to_json(self) -> str:
        """All settings, sorted by name: for a file's metadata and to tell two configurations apart."""
        return _json(vars(self))

    def plan_json(self) -> str:
        """Only the settings that decide which samples are drawn."""
        return self._without(_NOT_IN_THE_PLAN)

    def run_json(self) -> str:
        """Only the settings that a resumed run shares with the one that was stopped."""
        return self._without(_NOT_OF_THE_RUN)

    def _without(self, names: Sequence[str]) -> str:
        kept = {name: value for name, value in vars(self).items() if name not in names}
        return _json({**kept, "samples_per_step": self.samples_per_step})


def _json(values: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return vars(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    return json.dumps(values, default=plain, sort_keys=True)
