from __future__ import annotations

import math

import pytest
import torch
from coloured import coloured
from torch import Tensor

from mudi_core.stage.segmix import compose, cut_outs
from mudi_core.start.init_latent import (
    BadCanvas,
    BadGamma,
    BadLatent,
    default_gamma,
    init_latent,
    shifted_noise,
)
from mudi_core.types import Layout, Mix, Placement

SDXL_SCALE = 0.13025


def canvas(size: tuple[int, int] = (128, 192)) -> Mix:
    placements = (Placement("red", (0.1, 0.1, 0.5, 0.8)), Placement("blue", (0.45, 0.3, 0.9, 0.9)))
    return compose(Layout(size, placements), cut_outs(coloured("red", "blue")))


def encode(images: Tensor) -> Tensor:
    """Something with a VAE's shapes: four channels of an eighth of the size, never zero."""
    small = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8)
    return torch.cat([small, small.mean(1, keepdim=True)], dim=1) * 3 - 5


def noise(latent: Tensor) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))


def test_gamma_zero_gives_back_the_noise() -> None:
    latent = init_latent(canvas(), encode, 0.0)
    assert latent.shape == (1, 4, 24, 16) and not latent.any()
    eps = noise(latent)
    assert torch.equal(shifted_noise(latent, eps, 14.6, SDXL_SCALE), eps)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.7])
def test_the_latent_is_linear_in_gamma(gamma: float) -> None:
    assert torch.allclose(init_latent(canvas(), encode, gamma), gamma * init_latent(canvas(), encode, 1.0))


def test_the_latent_is_the_encoded_canvas_inside_and_zero_outside() -> None:
    mix = canvas()
    latent = init_latent(mix, encode, 1.0)
    cells = mix.mask.reshape(24, 8, 16, 8).movedim(2, 1)  # [24, 16, 8, 8]
    outside, inside = (cells == 0).all((-1, -2)), (cells == 1).all((-1, -2))
    assert outside.any() and inside.any()
    assert not latent[0, :, outside].any()
    assert torch.allclose(latent[0, :, inside], encode(mix.image[None])[0, :, inside])


def test_a_latent_below_is_kept_outside_the_subjects_and_covered_inside() -> None:
    mix = canvas()
    below = torch.full((1, 4, 24, 16), 7.0)
    upon, alone = init_latent(mix, encode, 2.0, below), init_latent(mix, encode, 2.0)
    outside, inside = alone[0].abs().sum(0) == 0, (mix.mask.reshape(24, 8, 16, 8).movedim(2, 1) == 1).all((-1, -2))
    assert (upon[0, :, outside] == 7).all() and torch.equal(upon[0, :, inside], alone[0, :, inside])
    assert torch.equal(init_latent(mix, encode, 2.0, torch.zeros_like(below)), alone)


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 16, 1, 8, 8)])
def test_a_latent_below_of_another_shape_is_told(shape: tuple[int, ...]) -> None:
    """A video's has its frames besides."""
    frames = r" \(a video of 1 latent frames\)" if len(shape) == 5 else ""
    with pytest.raises(
        BadLatent, match=f"is 64x64 px in 16 channels{frames}, the layout's start is 128x192 px in 4 channels"
    ):
        init_latent(canvas(), encode, 1.0, torch.zeros(shape))


@pytest.mark.parametrize("size", [(100, 128), (128, 100), (1023, 1024)])
def test_a_canvas_must_be_a_multiple_of_eight(size: tuple[int, int]) -> None:
    with pytest.raises(BadCanvas, match=f"{size[0]}x{size[1]} px; both sides must be a multiple of 8, for example"):
        init_latent(canvas(size), encode, 1.0)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_gamma_is_zero_or_more(gamma: float) -> None:
    with pytest.raises(BadGamma, match="gamma must be 0"):
        init_latent(canvas(), encode, gamma)


def test_the_default_gamma_grows_with_the_subjects_and_never_saturates() -> None:
    gammas = [default_gamma(n) for n in range(1, 12)]
    assert gammas == sorted(gammas) and gammas[:4] == [1, 2, 2, 3] and gammas[-1] <= 4


def sdxl_scheduler(spacing: str):  # type: ignore[no-untyped-def]
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        timestep_spacing=spacing,
        steps_offset=1,
    )
    scheduler.set_timesteps(20)
    return scheduler


def test_sdxl_shifts_by_0_068_gamma() -> None:
    sigma = float(sdxl_scheduler("linspace").sigmas[0])
    latent = torch.ones(1, 4, 2, 2)
    shift = shifted_noise(latent, torch.zeros_like(latent), sigma, 1.0)
    assert shift == pytest.approx(torch.full_like(latent, 0.06826), abs=1e-5)


@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_the_first_input_of_the_unet_is_the_same_everywhere(spacing: str) -> None:
    """ComfyUI's KSampler on the bare latent, diffusers on `shifted_noise`, and the official add_noise."""
    scheduler = sdxl_scheduler(spacing)
    sigma, first = float(scheduler.sigmas[0]), scheduler.timesteps[0]
    latent = init_latent(canvas(), encode, 2.0)
    eps = noise(latent)

    comfy = (eps * math.sqrt(1 + sigma**2) + latent * SDXL_SCALE) / math.sqrt(1 + sigma**2)
    ours = shifted_noise(latent, eps, sigma, SDXL_SCALE)
    assert (ours - comfy).abs().max() <= 1e-6

    pipeline = scheduler.scale_model_input(ours * scheduler.init_noise_sigma, first)
    official = scheduler.add_noise(latent * SDXL_SCALE, eps, first[None]) / math.sqrt(1 + sigma**2)
    # Euler's sigma stands for the noise's sqrt(1 + sigma^2), up to 0.23 % at SDXL's last step, more where leading
    # spacing begins lower.
    tolerance = 1 - sigma / math.sqrt(1 + sigma**2)
    assert tolerance < 0.005
    scale = float(eps.abs().max() + latent.abs().max())
    assert (pipeline - ours).abs().max() <= 1.01 * tolerance * scale
    assert (official - ours).abs().max() <= 1.01 * tolerance * scale


@pytest.mark.parametrize("sigma", [4518.0, 120.0, 80.0, math.inf])
def test_a_model_that_begins_in_noise_alone_sees_what_sdxl_sees(sigma: float) -> None:
    """NoobAI v-pred and others with zero terminal SNR, CosXL, Playground 2.5: a shift of 0.137 at a gamma of 2."""
    latent = torch.full((1, 4, 8, 8), 2.0)
    shift = shifted_noise(latent, torch.zeros_like(latent), sigma, 1.0)
    assert shift == pytest.approx(torch.full_like(latent, 0.13653), abs=1e-4)
