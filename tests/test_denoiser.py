"""A diffusers U-Net as what a LoRA is trained on: its noise law against the formulas and diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_sdxl import SCALE, denoiser, tiny_unet

from mudi_core.bases.promise import NoiseLevel
from mudi_core.bases.unet import BadSchedule, UNetDenoiser

KINDS = ("epsilon", "v_prediction")


def level(abar: float, kind: str) -> NoiseLevel:
    """That of a schedule with this share of signal."""
    return UNetDenoiser(tiny_unet(), torch.tensor([abar]), kind, SCALE).level(torch.tensor([0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("abar", [0.9999, 0.8, 0.3, 0.002])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_caps_the_ratio(kind: str, abar: float, gamma: float) -> None:
    snr = abar / (1 - abar)
    expected = min(snr, gamma) / (snr if kind == "epsilon" else snr + 1)
    assert level(abar, kind).min_snr(gamma).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("abar", [0.0, 1.0])
def test_min_snr_is_finite_at_the_ends_of_a_schedule(kind: str, abar: float) -> None:
    assert level(abar, kind).min_snr(5.0).isfinite().all()


@pytest.mark.parametrize("abar", [0.999, 0.5, 0.01])
def test_both_answers_give_back_the_clean_latent(abar: float) -> None:
    z0, eps = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    for kind in KINDS:
        at = level(abar, kind)
        x, answer = at.noisy(z0, eps), at.wanted(z0, eps)
        clean = (x - answer * at.noise) / at.signal if kind == "epsilon" else at.signal * x - at.noise * answer
        torch.testing.assert_close(clean, z0, rtol=1e-4, atol=1e-4)


def test_noise_and_answer_agree_with_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    z0, eps = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    timesteps = torch.tensor([0, 250, 700, 999])
    noise, velocity = (
        UNetDenoiser(tiny_unet(), scheduler.alphas_cumprod, kind, SCALE).level(timesteps) for kind in KINDS
    )
    torch.testing.assert_close(noise.noisy(z0, eps), scheduler.add_noise(z0, eps, timesteps))
    assert torch.equal(noise.wanted(z0, eps), eps)
    torch.testing.assert_close(
        velocity.wanted(z0, eps), scheduler.get_velocity(z0, eps, timesteps), rtol=1e-5, atol=1e-5
    )


def test_every_timestep_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    one = denoiser(tiny_unet())
    drawn = torch.cat([one.draw_level(generator) for _ in range(2000)])
    assert drawn.min() < 10 and drawn.max() > 990 and len(drawn.unique()) > 800


def test_an_unknown_kind_of_answer_is_refused() -> None:
    with pytest.raises(BadSchedule, match="'flow'"):
        UNetDenoiser(tiny_unet(), torch.ones(3), "flow", SCALE)
