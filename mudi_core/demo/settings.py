"""The settings of the demo for the embedded family, chosen only on `DEV_PAIRS`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..bases.families import EMBEDDED, FAMILIES
from ..jobs.generate import GenerateConfig
from ..stage.layout_config import LayoutConfig
from ..train.config import TrainConfig
from ..train.parts import Method


@dataclass(frozen=True)
class Arm:
    """One way to make the pictures: which LoRA, and with which start."""

    title: str
    training: Method
    with_start: bool
    about: str
    """A sentence for the reader of the report."""


ARMS: dict[str, Arm] = {
    "dreambooth": Arm(
        "DreamBooth", "dreambooth", False, "A LoRA trained on the photos alone, and pictures from plain noise."
    ),
    "segmix": Arm(
        "Seg-Mix", "segmix", False, "The same, but trained on Seg-Mix images too; pictures still from plain noise."
    ),
    "mudi": Arm(
        "MuDI", "segmix", True, "The Seg-Mix LoRA, and noise whose mean was shifted towards both characters' cut-outs."
    ),
}
"""The report's methods by their names in report.json. They share photos, steps, seeds and noise."""


_USUAL = FAMILIES[EMBEDDED]
_TRAINING, _PICTURES = _USUAL.training, _USUAL.pictures


@dataclass(frozen=True)
class DemoSettings:
    """Sizes, strengths and counts of the demo: the usual ones of the embedded family where it has them."""

    photos: int = 5
    """Photos of each character."""
    photo_side: int = 320
    """Pixels."""
    size: int = _TRAINING["resolution"]
    """Side of training images and pictures in pixels."""

    train_steps: int = _TRAINING["steps"]
    batch_size: int = _TRAINING["batch_size"]
    learning_rate: float = _TRAINING["learning_rate"]
    token_learning_rate: float = _TRAINING["token_learning_rate"]
    """Of tokens' vectors, for the rivals that learn them."""
    rank: int = _TRAINING["rank"]
    segmix_prob: float = 0.3
    background_weight: float = 1.0
    dco_beta: float = _TRAINING["dco_beta"]
    min_snr_gamma: float | None = None

    pictures: int = 16
    """Pictures of each method."""
    sampler_steps: int = _PICTURES["steps"]
    guidance: float = _PICTURES["guidance"]
    gamma: float = _PICTURES["gamma"]
    layout: LayoutConfig = field(default_factory=lambda: TrainConfig.usual(_USUAL).samples.layout)
    """Of compositions and of starts."""

    photo_threshold: float = _USUAL.photo_threshold
    """Least confidence of the detector in a photo, which shows one character: the best box is taken."""
    threshold: float = _USUAL.threshold
    """Least confidence of the detector in the pictures."""
    cut_out_references: bool = _USUAL.cut_out
    """Compare with the subjects cut out, as the figures in the pictures are."""

    def train_config(self, method: Method, seed: int) -> TrainConfig:
        """Return the settings of the training by a method."""
        return TrainConfig.usual(_USUAL).but(
            method=method,
            steps=self.train_steps,
            batch_size=self.batch_size,
            seed=seed,
            resolution=self.size,
            learning_rate=self.learning_rate,
            token_learning_rate=self.token_learning_rate,
            rank=self.rank,
            segmix_prob=self.segmix_prob,
            layout=self.layout,
            background_weight=self.background_weight,
            dco_beta=self.dco_beta,
            min_snr_gamma=self.min_snr_gamma,
        )

    def generate_config(self, prompt: str, with_start: bool, seed: int) -> GenerateConfig:
        """Return the settings of the pictures, with MuDI's start or the plain one."""
        return GenerateConfig(
            prompt=prompt,
            size=(self.size, self.size),
            steps=self.sampler_steps,
            guidance=self.guidance,
            gamma=self.gamma if with_start else 0.0,
            count=self.pictures,
            seed=seed,
            batch_size=_PICTURES["batch_size"],
            layout=self.layout,
        )
