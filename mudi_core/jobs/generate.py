"""Pictures of a subject set: the paper's Algorithm 2 in diffusers' SDXL pipeline.

The canvas of the layout is encoded and shifts the mean of the first noise (section 4.2); everything after that is the
plain sampler. With gamma 0 it is the plain sampler from the start.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..bases.checkpoint import Checkpoint
from ..bases.families import Family
from ..bases.residual import Residual, added
from ..bases.sampling import sample
from ..bases.text import CheckpointText
from ..stage.cutouts import CutOuts, Poses
from ..stage.layout import Figure, given_layout, ordered_layout, random_layout
from ..stage.layout_config import LayoutConfig
from ..stage.layout_text import Place
from ..stage.segmix import compose
from ..start.init_latent import default_gamma, init_latent, shifted_noise
from ..subjects.prompt import write_prompt
from ..types import Layout, Mix, MudiError, SubjectSet

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]
"""Called with the sampler steps done and in all; an exception from it ends the run between two steps."""
Arrangement = Literal["random", "row", "grid"]


class BadGenerateConfig(MudiError):
    """A setting of a picture that is out of range."""


class BadScheduler(MudiError):
    """A base model whose scheduler cannot take its first step."""


@dataclass(frozen=True)
class GenerateConfig:
    """What to sample. Raises `BadGenerateConfig`, which names the setting and its range."""

    prompt: str
    """Names every subject as "<token> <class noun>". A beginning like "2 dogs:" helps with more subjects."""
    negative_prompt: str | None = None
    """None: the base model's own, "sticker, collage" for SDXL."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, multiples of 8; None: the base model's own."""
    steps: int = 50
    guidance: float = 5.0
    """Classifier-free guidance; 1 is none."""
    gamma: float = 1.0
    """Strength of the start from the layout: 0 is the plain sampler, 1 to 2 for two or three subjects (appendix B)."""
    count: int = 4
    seed: int = 0
    """Picture i depends only on the seed and on i, not on the batch size or the number of pictures."""
    batch_size: int = 4
    """Pictures that are sampled at once."""
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    """How large the subjects are and how far apart. It may name them by token, name or class noun."""
    arrangement: Arrangement = "random"
    """At random places, different in each picture; or in the order of the set, in a row or in a grid."""
    places: Mapping[str, Place] | None = None
    """Given places by token, name or class noun, instead of any arrangement."""
    poses: Poses = field(default_factory=Poses)

    @classmethod
    def usual(cls, family: Family, prompt: str, subjects: int, **settings: Any) -> GenerateConfig:
        """Return the usual settings for a kind of base model and number of subjects, with ``settings`` instead."""
        layout = LayoutConfig(**family.layout)
        values = {"gamma": default_gamma(subjects), **family.pictures, "layout": layout, **settings}
        return cls(prompt=prompt, **values)

    def __post_init__(self) -> None:
        def check(name: str, ok: bool, wanted: str) -> None:
            if not ok:
                raise BadGenerateConfig(f"{name} is {getattr(self, name)!r}; it must be {wanted}.")

        for name in ("steps", "count", "batch_size"):
            check(name, getattr(self, name) >= 1, "1 or more")
        check("guidance", self.guidance >= 1, "1 (none) or more")
        check("gamma", 0 <= self.gamma <= 10, "0 (plain sampling) to 10; 1 to 3 is usual")
        check("size", self.size is None or all(side >= 64 and side % 8 == 0 for side in self.size), "multiples of 8")


@dataclass(frozen=True, eq=False)
class Picture:
    """One sampled picture and how it was made."""

    image: Tensor
    """Float ``[h, w, 3]``, 0..1."""
    number: int
    """Its place in the run, from 0."""
    seed: int
    """The seed of the run."""
    layout: Layout
    """Where the subjects stand at the start (without effect at gamma 0)."""


def default_prompt(subjects: SubjectSet) -> str:
    """Return "a photo of olis corgi and hta cat": the caption of the photos, for all subjects."""
    return write_prompt([subject.name for subject in subjects])


def generate(
    checkpoint: Checkpoint,
    cutouts: CutOuts,
    config: GenerateConfig,
    on_step: OnStep | None = None,
    residuals: Sequence[Residual] = (),
) -> Iterator[Picture]:
    """Sample ``config.count`` pictures and yield them one by one (paper, Algorithm 2).

    Put a LoRA on ``checkpoint.unet`` before this, with `lora.adapter.apply_lora`. Runs with one seed start from the
    same noise and layouts whatever else differs, so that two methods can be compared picture by picture. ``on_step``:
    see `OnStep`. ``residuals``: added to the prompt at the subjects' class words. Raise `BadScheduler`,
    `checkpoint.NoPictures`, `BadLayout`, `residual.OtherEncoder` or `text.NotNamed`.
    """
    size = config.size or (checkpoint.side, checkpoint.side)
    first_sigma(checkpoint.scheduler, config.steps)  # raises when sampling would end in NaN
    contexts, pooled = _read(checkpoint, config, residuals)
    in_all = config.steps * -(-config.count // config.batch_size)
    for first in range(0, config.count, config.batch_size):
        numbers = range(first, min(first + config.batch_size, config.count))
        layouts = [draw_layout(cutouts, config, number, size) for number in numbers]
        starts = [
            _start(checkpoint, compose(layout, cutouts), config, number)
            for layout, number in zip(layouts, numbers, strict=True)
        ]
        done = config.steps * (first // config.batch_size)

        def stepped(step: int, done: int = done) -> None:
            if on_step is not None:
                on_step(done + step, in_all)

        latents = sample(checkpoint, contexts, pooled, torch.cat(starts), config.steps, config.guidance, stepped)
        for image, number, layout in zip(checkpoint.decode(latents), numbers, layouts, strict=True):
            yield Picture(image, number, config.seed, layout)


def generate_plain(checkpoint: Checkpoint, config: GenerateConfig) -> Tensor:
    """Sample the first picture of a seed by the plain sampler, which needs no subjects: ``[h, w, 3]``, 0..1.

    Raise `BadScheduler` or `checkpoint.NoPictures`.
    """
    width, height = config.size or (checkpoint.side, checkpoint.side)
    first_sigma(checkpoint.scheduler, config.steps)
    noise = draw_noise(config.seed, 0, (1, 4, height // checkpoint.vae_factor, width // checkpoint.vae_factor))
    latents = sample(checkpoint, *_read(checkpoint, config), noise, config.steps, config.guidance, lambda step: None)
    picture: Tensor = checkpoint.decode(latents)[0]
    return picture


def _read(checkpoint: Checkpoint, config: GenerateConfig, residuals: Sequence[Residual] = ()) -> tuple[Tensor, Tensor]:
    """Return contexts and pooled vectors of prompt and negative prompt, read where the text encoders are."""
    negative = checkpoint.negative_prompt if config.negative_prompt is None else config.negative_prompt
    contexts, pooled = checkpoint.encode_text([config.prompt, negative])
    if residuals:
        text = CheckpointText(checkpoint)
        for one in residuals:
            one.check(text)
        contexts = torch.cat([added(contexts[:1], config.prompt, residuals, text), contexts[1:]])
    return contexts.to(checkpoint.device), pooled.to(checkpoint.device)


def draw_layout(cutouts: CutOuts, config: GenerateConfig, number: int, size: tuple[int, int]) -> Layout:
    """Draw where the subjects of picture ``number`` stand at the start, and from which photos. Raise `BadLayout`."""
    scale = config.layout.relative_scale
    layout = replace(config.layout, relative_scale=scale and cutouts.resolve(scale, "relative_scale"))
    rng, turns = (random.Random(f"{config.seed}/{number}/{what}") for what in ("layout", "poses"))
    figures = cutouts.figures(rng, config.poses, turns)
    if config.places is not None:
        places = cutouts.resolve(config.places, "The layout")
        figures = [_posed(figure, places[figure.token], cutouts) for figure in figures if figure.token in places]
        boxes = {token: place.box for token, place in places.items()}
        return given_layout(boxes, figures, size, {token: place.depth for token, place in places.items()})
    if config.arrangement == "random":
        return random_layout(figures, rng, size, layout)
    return ordered_layout(figures, size, layout, rows=1 if config.arrangement == "row" else None)


def _posed(figure: Figure, place: Place, cutouts: CutOuts) -> Figure:
    """Return the figure as its place says; what the place does not say stays as drawn."""
    return cutouts.figure(
        figure.token,
        figure.photo if place.photo is None else place.photo,
        figure.mirror if place.mirror is None else place.mirror,
        figure.rotation if place.rotation is None else place.rotation,
    )


def draw_noise(seed: int, number: int, shape: Sequence[int]) -> Tensor:
    """Return the standard normal noise of picture ``number``, float32 on the CPU."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{number}/noise").getrandbits(63))
    return torch.randn(*shape, generator=generator)


def _start(checkpoint: Checkpoint, canvas: Mix, config: GenerateConfig, number: int) -> Tensor:
    """Return the noise of picture ``number``, its mean shifted by the canvas: ``[1, 4, h/8, w/8]``, unscaled."""
    width, height = canvas.layout.size
    eps = draw_noise(config.seed, number, (1, 4, height // checkpoint.vae_factor, width // checkpoint.vae_factor))
    if config.gamma == 0:
        return eps
    latent = init_latent(canvas, checkpoint.encode_image, config.gamma).to("cpu", torch.float32)
    return shifted_noise(latent, eps, first_sigma(checkpoint.scheduler, config.steps), checkpoint.latent_scale)


def first_sigma(scheduler: Any, steps: int) -> float:
    """Return the noise level at which sampling begins; infinite for flows and zero-terminal-SNR models.

    Raise `BadScheduler` when such a model predicts noise: its first step would divide by zero.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = type(scheduler).from_config(scheduler.config)
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return float("inf")
    scheduler.set_timesteps(steps)
    if not hasattr(scheduler, "alphas_cumprod"):
        return float(scheduler.sigmas[0])
    # From the timestep, because not every sampler has scheduler.sigmas.
    abar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[0])])
    if abar > 0:
        return float(((1 - abar) / abar) ** 0.5)
    if scheduler.config.prediction_type == "epsilon":
        raise BadScheduler(
            "The base model's scheduler begins in pure noise (rescale_betas_zero_snr), but its U-Net predicts noise, "
            "so the first step would divide by zero. In scheduler_config.json set prediction_type to v_prediction "
            "if the model was trained that way, otherwise set rescale_betas_zero_snr to false."
        )
    return float("inf")
