"""What a training run is told, with its units, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Literal, get_args

from ..layout import LayoutConfig
from ..types import MudiError

Method = Literal["segmix", "dreambooth", "cutmix"]
Precision = Literal["fp32", "bf16"]

_NOT_IN_THE_PLAN = (
    "learning_rate betas weight_decay max_grad_norm lr_warmup rank alpha target_modules background_weight dco_beta "
    "min_snr_gamma noise_offset precision gradient_checkpointing"
).split()


class BadTrainConfig(MudiError):
    """A training setting out of its range."""


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one LoRA. The defaults are those of the paper and of the official code (SDXL, 24 GB).

    Raises `BadTrainConfig` that names the setting, its value and its range.
    """

    method: Method = "segmix"
    """"segmix": photos and Seg-Mix compositions (paper 4.1); "cutmix": hard halves; "dreambooth": photos only."""
    steps: int = 1200
    """Optimizer steps. 1000 to 1200 for plain subjects, 1400 to 1600 for detailed ones."""
    batch_size: int = 2
    """Samples of a step (as many priors again, if there are any)."""
    seed: int = 0
    """Every random choice hangs on it: crops, compositions, their order, noise, timesteps, the LoRA's start."""
    resolution: int | tuple[int, int] = 1024
    """Pixels, width and height; one number means a square. Multiples of 8."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of the mean and of the square of the gradient, each 0..1."""
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    lr_warmup: int = 0
    """Steps over which the learning rate rises linearly; then it is constant."""

    rank: int = 32
    alpha: float | None = None
    """The LoRA is scaled by alpha / rank; None means alpha = rank."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Ends of the names of the U-Net's linear layers that get a LoRA."""

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
    max_composites: int = 512
    """So many different compositions are drawn (and encoded) at most; steps then use them in turn."""

    dco_beta: float = 1000.0
    """Strength of Direct Consistency Optimization: 0 is the plain mean squared error, the official code has 1000."""
    prior_loss_weight: float = 1.0
    """Weight of the prior images' loss, if prior images are given; 0 leaves them out."""
    min_snr_gamma: float | None = None
    """Caps the signal-to-noise weight of a timestep (5 is common); None weighs all timesteps the same."""
    noise_offset: float = 0.0
    """Standard deviation of a constant that is added to each channel's noise; 0.05 is common, 0 is none."""

    precision: Precision = "fp32"
    """"bf16" computes in bfloat16 (the LoRA itself stays in float32)."""
    gradient_checkpointing: bool = False
    """Compute activations twice to keep fewer: 15 instead of 18 GB for SDXL, some 30 % slower."""

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, wanted: str) -> None:
            if not ok:
                raise BadTrainConfig(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")

        check("method", self.method in get_args(Method), f"one of {', '.join(get_args(Method))}")
        check("precision", self.precision in get_args(Precision), f"one of {', '.join(get_args(Precision))}")
        for name in ("steps", "batch_size", "rank", "crops_per_photo", "max_composites"):
            check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("lr_warmup", "segmix_start_step"):
            check(name, getattr(self, name) >= 0, "0 or more")
        sizes = (self.resolution,) if isinstance(self.resolution, int) else self.resolution
        check("resolution", len(sizes) in (1, 2), "a number, or a width and a height")
        check("resolution", all(side >= 32 and side % 8 == 0 for side in sizes), "a multiple of 8 px, 32 or more")
        check("learning_rate", self.learning_rate > 0, "more than 0, for example 1e-4")
        check("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers 0..1")
        for name in ("weight_decay", "max_grad_norm", "dco_beta", "prior_loss_weight", "noise_offset"):
            check(name, getattr(self, name) >= 0, "0 or more")
        check("alpha", self.alpha is None or self.alpha > 0, "more than 0, or None for the rank")
        check("target_modules", bool(self.target_modules), "at least one name of a layer")
        for name in ("segmix_prob", "background_weight"):
            check(name, 0 <= getattr(self, name) <= 1, "0..1")
        check("min_snr_gamma", self.min_snr_gamma is None or self.min_snr_gamma > 0, "more than 0, or None")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def lora_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    def to_json(self) -> str:
        """All settings, sorted by name: for a file's metadata and to tell two configurations apart."""
        return _json(vars(self))

    def plan_json(self) -> str:
        """Only the settings that decide which samples are drawn."""
        return _json({name: value for name, value in vars(self).items() if name not in _NOT_IN_THE_PLAN})


def _json(values: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return vars(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} has no JSON form")

    return json.dumps(values, default=plain, sort_keys=True)
