"""The three parts of the settings of a training: which samples it sees, what it learns from them, how a step fits.

The fields of a part are what the part decides, and no list of names repeats it: a plan depends only on `Samples`, the
weights of a LoRA on `Samples` and `Learning`, and neither on `Fit`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..bases.quantize import BASE_WEIGHTS, BaseWeights
from ..stage.captions import SENTENCE, STYLES, BadTemplate, check_template
from ..stage.layout_config import LayoutConfig
from ..types import MudiError

Method = Literal["segmix", "dreambooth", "cutmix"]
Precision = Literal["fp32", "bf16"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
LrSchedule = Literal["constant", "linear", "cosine"]
GradientCheckpointing = Literal["auto", "off", "selective", "full"]

PRODIGY_RATE = 1.0
"""The usual learning rate of Prodigy, which finds the size of a step itself; the other defaults are AdamW's."""
COMPOSED_PIXELS = 8192 * 1024 * 1024
"""Most pixels of all different compositions of a run, and as many again for its priors: 8192 of 1024 px, whose latents
and masks take 2.5 GB. It does not depend on the memory of the machine, so that a run is the same everywhere."""


CAME_LATER = {"captions": SENTENCE, "caption_template": "", "black_canvas": 0.0, "compose_with_others": False}
"""Settings that earlier versions did not have, and what these did. A run with these values is the same as theirs, so
they are left out where runs, plans and LoRAs are told apart: stopped runs and caches of before go on."""


class BadTrainConfig(MudiError):
    """A training setting that is out of range."""


def _check(part: Any, name: str, ok: bool, wanted: str) -> None:
    if not ok:
        raise BadTrainConfig(f"{name} is {getattr(part, name)!r}; it must be {wanted}.")


def _check_choices(part: Any, **choices: tuple[str, ...]) -> None:
    for name, among in choices.items():
        _check(part, name, getattr(part, name) in among, f"one of {', '.join(among)}")


@dataclass(frozen=True)
class Samples:
    """Which samples a run draws and encodes: a plan depends only on these. Raises `BadTrainConfig`."""

    method: Method = "segmix"
    """"segmix": photos and Seg-Mix compositions (paper 4.1); "cutmix": hard halves; "dreambooth": photos only."""
    steps: int = 1200
    """Optimizer steps. 1000 to 1200 for plain subjects, 1400 to 1600 for detailed ones."""
    samples_per_step: int = 2
    """Own samples of a step; with priors, as many prior samples again."""
    seed: int = 0
    """Every random choice depends on it: crops, compositions, their order, noise, timesteps, the LoRA's start."""
    resolution: int | tuple[int, int] = 1024
    """Width and height in pixels; one number means a square. Multiples of 8."""
    buckets: bool = False
    """Train each photo near its own aspect, up to 1:2 and 2:1, with as many pixels; otherwise crop all photos to
    ``resolution``. Compositions always have ``resolution``."""
    segmix_prob: float = 0.3
    """Share of the samples that are compositions, 0..1. More than three subjects need more."""
    segmix_start_step: int = 0
    """The first step that may use a composition."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """How large the subjects in a composition are and where they stand."""
    crops_per_photo: int = 16
    """Most different random crops of a photo (each is encoded once); steps use them in turn."""
    max_composites: int | None = None
    """Most different compositions (each is encoded once); steps use them in turn. None: every one is new, as in the
    official code, up to `COMPOSED_PIXELS` in all."""
    prior_loss_weight: float = 1.0
    """Weight of the loss on prior images, if there are any, with and without DCO; 0 leaves them out."""
    captions: str = SENTENCE
    """How captions of compositions, and of photos without one, are written: one of `stage.captions.STYLES`."""
    caption_template: str = ""
    """The user's own caption of compositions, with {subjects} for the names; empty: that of the style."""
    black_canvas: float = 0.0
    """Share of the compositions whose canvas is black instead of white, 0..1: 0.25 in the official code for FLUX."""
    compose_with_others: bool = False
    """Compose subjects with strangers, too, who are called by their class nouns: a subject that is trained alone then
    learns to be one figure among others."""

    def __post_init__(self) -> None:
        _check_choices(self, method=get_args(Method))
        for name in ("steps", "samples_per_step", "crops_per_photo"):
            _check(self, name, getattr(self, name) >= 1, "1 or more")
        composites = self.max_composites
        _check(self, "max_composites", composites is None or composites >= 1, "1 or more, or None for all new")
        _check(self, "segmix_start_step", self.segmix_start_step >= 0, "0 or more")
        sizes = (self.resolution,) if isinstance(self.resolution, int) else self.resolution
        _check(self, "resolution", len(sizes) in (1, 2), "a number, or a width and a height")
        _check(
            self, "resolution", all(side >= 32 and side % 8 == 0 for side in sizes), "a multiple of 8 px, 32 or more"
        )
        _check(self, "segmix_prob", 0 <= self.segmix_prob <= 1, "0..1")
        _check(self, "black_canvas", 0 <= self.black_canvas <= 1, "0..1")
        _check(self, "prior_loss_weight", self.prior_loss_weight >= 0, "0 or more")
        _check_choices(self, captions=tuple(STYLES))
        try:
            check_template(self.caption_template or "{subjects}")
        except BadTemplate as error:
            raise BadTrainConfig(str(error)) from None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def composites(self) -> int:
        """The most different compositions that a run draws."""
        return self.max_composites or max(1, COMPOSED_PIXELS // (self.size[0] * self.size[1]))


@dataclass(frozen=True)
class Learning:
    """What a run learns from its samples: its weights depend on these and the samples. Raises `BadTrainConfig`."""

    optimizer: OptimizerName = "adamw"
    """"adamw8bit" keeps AdamW's state in 8 bits (package bitsandbytes); "prodigy" finds its own step size (package
    prodigyopt)."""
    learning_rate: float = 1e-4
    """Size of a step: about 1e-4 for AdamW; for Prodigy a factor of the size that it finds, usually 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The optimizer's decay of the mean and of the square of the gradient, each 0..1."""
    weight_decay: float = 1e-4
    """Share of a weight that a step removes, times the learning rate."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this length; 0: never."""
    lr_schedule: LrSchedule = "constant"
    """The learning rate after the warm-up: constant, or down to 0 by the last step."""
    lr_warmup: int = 0
    """Steps over which the learning rate rises linearly."""

    rank: int = 32
    alpha: float | None = None
    """The LoRA is scaled by alpha / rank; None means alpha = rank."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Endings of the names of the linear layers that get a LoRA, with wildcards if wanted (``attn.w[qkv]``); one after
    ``!`` leaves layers out. None for Textual Inversion."""
    learn_tokens: bool = False
    """Also learn the vectors of the subjects' tokens, through the frozen text encoders (Textual Inversion)."""
    token_learning_rate: float = 5e-3
    """The learning rate of these vectors, under the same schedule."""

    background_weight: float = 1.0
    """Weight of the loss outside the subjects, in photos and compositions: 0 ignores the background, 1 is no mask."""
    dco_beta: float = 1000.0
    """Strength of Direct Consistency Optimization: 1000 in the official code; 0 is the paper's own loss, the mean
    squared error, which the paper uses with prior images."""
    kl_weight: float = 0.0
    """Weight of the squared distance between what the model predicts with and without the LoRA (KL regularization); 0:
    none. The paper uses 1 when it trains on a model that already knows the subjects (sections 5.4 and 5.5). The
    official code has no such loss."""
    min_snr_gamma: float | None = None
    """Cap of the signal-to-noise weight of a timestep (5 is common); None: all timesteps have the same weight."""
    noise_offset: float = 0.0
    """Standard deviation of a random constant added to the noise of each channel; 0.05 is common, 0: none."""

    precision: Precision = "fp32"
    """"bf16" computes in bfloat16 (the LoRA itself stays in float32)."""
    base_weights: BaseWeights = "full"
    """Format of the frozen network: "full", or its transformers in 8 bits ("int8", or "fp8", which is exact for an fp8
    model) or 4 bits ("nf4"). `quantize` converts it."""

    def __post_init__(self) -> None:
        _check_choices(
            self,
            precision=get_args(Precision),
            optimizer=get_args(OptimizerName),
            lr_schedule=get_args(LrSchedule),
            base_weights=BASE_WEIGHTS,
        )
        _check(self, "rank", self.rank >= 1, "1 or more")
        _check(self, "learning_rate", 0 < self.learning_rate <= 1000, "more than 0, for example 1e-4")
        if self.optimizer == "prodigy":
            _check(
                self, "learning_rate", self.learning_rate >= 0.01, "about 1 with Prodigy, which finds the size itself"
            )
        _check(self, "betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers 0..1")
        for name in ("lr_warmup", "weight_decay", "max_grad_norm", "dco_beta", "kl_weight", "noise_offset"):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
        _check(self, "alpha", self.alpha is None or self.alpha > 0, "more than 0, or None for the rank")
        _check(self, "target_modules", bool(self.target_modules or self.learn_tokens), "at least one name of a layer")
        _check(self, "token_learning_rate", self.token_learning_rate > 0, "more than 0, for example 5e-3")
        _check(self, "background_weight", 0 <= self.background_weight <= 1, "0..1")
        gamma = self.min_snr_gamma
        _check(self, "min_snr_gamma", gamma is None or gamma > 0, "more than 0, or None")

    @property
    def lora_alpha(self) -> float:
        """The alpha of the LoRA: it is scaled by this divided by its rank."""
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass(frozen=True)
class Fit:
    """How a step fits into memory, and how often to save and preview: a resumed run may change these.

    Raises `BadTrainConfig`.
    """

    batch_size: int = 2
    """Samples that the network sees at once (and as many priors, if there are any)."""
    gradient_checkpointing: GradientCheckpointing = "auto"
    """Compute activations twice to keep fewer in memory: the cheap ones, hardly slower ("selective"), or all, with the
    least memory ("full"). The result is the same. "auto" does as little of it as the card allows."""
    save_every: int = 0
    """Steps between two saves of the LoRA so far and of a file to resume from; 0: save only at the end."""
    preview_every: int = 0
    """Steps between two previews of the LoRA so far; the best LoRA is saved; 0: no previews."""

    def __post_init__(self) -> None:
        _check_choices(self, gradient_checkpointing=get_args(GradientCheckpointing))
        _check(self, "batch_size", self.batch_size >= 1, "1 or more")
        for name in ("save_every", "preview_every"):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
