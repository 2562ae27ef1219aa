"""The start of a picture for every noise law: what a stock sampler sees first is the paper's formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import advanced, taught
from tiny_models import TINY, Vae, conditions, encoded, known, tiny

from mudi_core.start.init_latent import SHARE, BadCanvas, init_latent, missing_share
from mudi_core.types import Layout, Mix

SHIFT = 0.06826
"""How much a canvas counts beside the noise where SDXL begins: sqrt(abar_T)."""
LAWS = ("eps", "v", "zsnr", "edm", "flow")
SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform"),
    *("beta", "normal", "linear_quadratic", "kl_optimal"),
)


def under(comfy: Comfy, law: str) -> Any:
    """A MODEL of four channels that was taught noise in this way."""
    model = tiny(comfy, "aura_flow")
    if law == "flow":
        return model
    model = taught(comfy, model, "V_PREDICTION" if law in ("v", "zsnr") else "EPS")
    if law == "zsnr":
        return advanced(comfy, "ModelSamplingDiscrete", model, sampling="v_prediction", zsnr=True)
    if law == "edm":
        edm = comfy.core("comfy_extras.nodes_model_advanced").ModelSamplingContinuousEDM()
        return edm.patch(model, "edm_playground_v2.5", 80.0, 0.002)[0]
    return model


def first_seen(
    comfy: Comfy, model: Any, latent: torch.Tensor, sigmas: torch.Tensor, noise: torch.Tensor, mask: Any = None
) -> Any:
    """What a stock sampler would begin with, ``x`` of the first step."""
    seen: list[torch.Tensor] = []

    def sampler(net: Any, x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        seen.append(x.clone())
        return x

    words = [[conditions("aura_flow")["cross_attn"][None], {}]]
    with torch.inference_mode():
        comfy.core("comfy.sample").sample_custom(
            model, noise, 1.0, comfy.core("comfy.samplers").KSAMPLER(sampler), sigmas, words, words, latent,
            noise_mask=mask, disable_pbar=True, seed=0,
        )  # fmt: skip
    return seen[0]


def begins(comfy: Comfy, model: Any, scheduler: str, steps: int = 20) -> torch.Tensor:
    sampling = model.get_model_object("model_sampling")
    sigmas: torch.Tensor = comfy.core("comfy.samplers").calculate_sigmas(sampling, scheduler, steps)
    return sigmas


def a_start() -> torch.Tensor:
    start = torch.zeros(2, 4, 16, 16)
    start[:, :, 4:9, 3:12] = 2 * torch.randn(2, 4, 5, 9, generator=torch.Generator().manual_seed(4))
    return start


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_first_x_is_the_formulas(comfy: Comfy, law: str, scheduler: str) -> None:
    """``x / its noise = eps + share gamma z0 m``; the share is SDXL's, or the sampler's own where that is more."""
    model = under(comfy, law)
    module, start = comfy.module("start"), a_start()
    sigmas = begins(comfy, model, scheduler)
    eps = torch.randn(start.shape, generator=torch.Generator().manual_seed(5))
    empty = first_seen(comfy, model, torch.zeros_like(start), sigmas, eps)
    scale = float((empty / eps).median())  # of the noise
    x = first_seen(comfy, module.with_start(model, start), start, sigmas, eps)
    signal = 1.0 if law != "flow" else 1 - float(sigmas[0])
    share = max(SHARE, signal / scale)
    wanted = eps + share * model.model.process_latent_in(start)
    assert float((x / scale - wanted).norm() / wanted.norm()) < 1e-6
    assert share >= 0.9999 * SHIFT and (x - empty).abs().max() > 0.02 * scale


def test_every_stock_scheduler_is_tried(comfy: Comfy) -> None:
    assert set(SCHEDULERS) == set(comfy.core("comfy.samplers").SCHEDULER_NAMES)


@pytest.mark.parametrize("law", ["zsnr", "flow"])
def test_the_start_is_in_the_noise_of_sampler_custom_advanced(comfy: Comfy, law: str) -> None:
    """With the NOISE of our Noise and with the stock one, through a guider that has Init Latent's model."""
    model, start = under(comfy, law), a_start()
    changed, sigmas = comfy.module("start").with_start(model, start), begins(comfy, model, "simple")
    words = [[conditions("aura_flow")["cross_attn"][None], {}]]
    seen: list[torch.Tensor] = []

    def sampler(net: Any, x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        seen.append(x.clone())
        return x

    custom = comfy.core("comfy_extras.nodes_custom_sampler")
    samplers = comfy.core("comfy.samplers")
    for noise in (comfy.run("MudiNoise", model=model, sigmas=sigmas, seed=3).result[0], custom.Noise_RandomNoise(3)):
        seen.clear()
        for one in (model, changed):
            guider = samplers.CFGGuider(one)
            guider.set_conds(words, words)
            with torch.inference_mode():
                guider.sample(
                    noise.generate_noise({"samples": start}), start, samplers.KSAMPLER(sampler), sigmas,
                    disable_pbar=True, seed=3,
                )  # fmt: skip
        plain, ours = seen
        scale = float(sigmas[0]) if law == "zsnr" else 1.0
        signal = 1.0 if law == "zsnr" else 0.0
        added = (SHARE * scale - signal) * model.model.process_latent_in(start)
        assert torch.allclose(ours - plain, added, atol=2e-6 * scale)
        assert added.abs().max() > 0.05 * scale


@pytest.mark.parametrize("law", LAWS)
def test_only_the_start_itself_goes_into_the_noise(comfy: Comfy, law: str) -> None:
    """Another picture's latent, in a second pass, is left as ComfyUI leaves it, and so is an empty one."""
    model, start = under(comfy, law), a_start()
    changed = comfy.module("start").with_start(model, start)
    sigmas, eps = begins(comfy, model, "normal"), torch.randn(2, 4, 16, 16)
    for latent in (torch.zeros_like(start), torch.randn_like(start)):
        plain, ours = (first_seen(comfy, one, latent, sigmas, eps) for one in (model, changed))
        assert torch.equal(plain, ours)
    mixed = torch.stack([start[1], torch.ones(4, 16, 16)])
    plain, ours = (first_seen(comfy, one, mixed, sigmas, eps) for one in (model, changed))
    assert torch.equal(plain[1], ours[1])
    assert torch.equal(plain[0], ours[0]) == (law in ("eps", "v"))


@pytest.mark.parametrize("batch", [1, 2])
def test_nothing_goes_into_the_noise_of_what_is_masked(comfy: Comfy, batch: int) -> None:
    """Of a scene that the subjects are put into: its noise stays that of inpainting."""
    model, start = under(comfy, "flow"), torch.randn(2, 4, 16, 16)
    sigmas, eps, mask = begins(comfy, model, "normal"), torch.randn(2, 4, 16, 16), torch.zeros(batch, 1, 16, 16)
    mask[..., :8] = 1
    changed = comfy.module("start").with_start(model, start)
    plain, ours, whole = (
        first_seen(comfy, one, start, sigmas, eps, changes)
        for one, changes in ((model, mask), (changed, mask), (changed, None))
    )
    assert torch.equal(ours[..., 8:], plain[..., 8:]) and not torch.equal(whole[..., 8:], plain[..., 8:])
    assert torch.equal(ours[..., :8], whole[..., :8]) and not torch.equal(ours[..., :8], plain[..., :8])


def test_sdxls_own_way_keeps_its_bits(comfy: Comfy) -> None:
    model, start = under(comfy, "eps"), a_start()
    changed, eps = comfy.module("start").with_start(model, start), torch.randn(2, 4, 16, 16)
    for denoise in (1.0, 0.8):
        sigmas = begins(comfy, model, "karras")[int(20 * (1 - denoise)) :]
        plain, ours = (first_seen(comfy, one, start, sigmas, eps) for one in (model, changed))
        assert torch.equal(plain, ours)
    assert comfy.module("start").sees_latents(model)


def test_a_flow_at_a_lower_denoise_sees_the_latent_alone(comfy: Comfy) -> None:
    """From the level where a latent counts as it does for SDXL, nothing is added."""
    model, start = under(comfy, "flow"), a_start()
    changed, eps = comfy.module("start").with_start(model, start), torch.randn(2, 4, 16, 16)
    assert not comfy.module("start").sees_latents(model)
    for first, adds in ((1.0, True), (0.98, True), (0.93, False), (0.5, False)):
        sigmas = torch.tensor([first, 0.3, 0.0])
        plain, ours = (first_seen(comfy, one, start, sigmas, eps) for one in (model, changed))
        assert torch.equal(plain, ours) != adds
        share = max(SHARE, (1 - first) / first)
        wanted = first * (eps + share * model.model.process_latent_in(start))
        assert torch.allclose(ours, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("steps", "denoise", "begins_at"), [(4, 1.0, 1.0), (4, 0.95, 1.0), (4, 0.8, 0.874), (4, 0.5, 0.634)]
)
def test_four_steps_at_a_lower_denoise(comfy: Comfy, steps: int, denoise: float, begins_at: float) -> None:
    """KSampler has whole steps: at 0.95 it still begins in noise alone, where the start goes into the noise.

    Below, it begins at a lower level, where the latent alone counts more than the start does for SDXL.
    """
    model, start = under(comfy, "flow"), a_start()
    changed = comfy.module("start").with_start(model, start)
    sampler = comfy.core("comfy.samplers").KSampler(
        model, steps, torch.device("cpu"), sampler="euler", scheduler="simple", denoise=denoise, model_options={}
    )
    sigmas = sampler.sigmas
    assert len(sigmas) == steps + 1 and float(sigmas[0]) == pytest.approx(begins_at, abs=5e-3)
    eps = torch.randn(2, 4, 16, 16)
    x = first_seen(comfy, changed, start, sigmas, eps)
    at = float(sigmas[0])
    share = max(SHARE, (1 - at) / at)
    assert torch.allclose(x, at * (eps + share * model.model.process_latent_in(start)), atol=2e-6)
    plain = first_seen(comfy, model, start, sigmas, eps)
    assert torch.equal(plain, x) == (denoise <= 0.8)


def test_a_batch_may_be_taken_apart_and_repeated(comfy: Comfy) -> None:
    model, start = under(comfy, "flow"), a_start()
    changed, sigmas = comfy.module("start").with_start(model, start), torch.tensor([1.0, 0.5, 0.0])
    rows = torch.cat([start[1:], start[1:], start[:1]])
    eps = torch.randn(3, 4, 16, 16)
    x = first_seen(comfy, changed, rows, sigmas, eps)
    assert torch.allclose(x, eps + SHARE * model.model.process_latent_in(rows), atol=2e-6)


def test_a_second_start_replaces_the_first(comfy: Comfy) -> None:
    module, model, start = comfy.module("start"), under(comfy, "flow"), a_start()
    twice = module.with_start(module.with_start(model, start), start)
    sigmas, eps = torch.tensor([1.0, 0.0]), torch.randn(2, 4, 16, 16)
    once = first_seen(comfy, module.with_start(model, start), start, sigmas, eps)
    assert torch.equal(first_seen(comfy, twice, start, sigmas, eps), once)


def canvas(side: int = 128) -> Mix:
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : side // 2] = 1
    return Mix(torch.rand(side, side, 3), mask, Layout((side, side), ()), "")


@pytest.mark.parametrize("family", ["flux1", "flux2", "qwen_image", "z_image", "sd3", "aura_flow"])
def test_the_latent_is_nothing_outside_of_the_subjects_in_every_latent_space(comfy: Comfy, family: str) -> None:
    """FLUX's latent of zeros is not the VAE's, so ``gamma z0 m`` is made where the network's zero is zero."""
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    model, shape = tiny(comfy, family), TINY[family].latent
    vae, mix = Vae(shape[0], 16 if family == "flux2" else 8, len(shape) == 4), canvas()
    latent = comfy.module("start").start(mix, vae, 2.0, model)
    seen = model.model.process_latent_in(latent)
    assert latent.ndim == len(shape) + 1 and seen.abs().max() > 0.1
    rows = seen.shape[-2]
    outside = torch.cat([seen[..., : rows // 4 - 1, :], seen[..., rows // 2 + 1 :, :]], -2)
    assert outside.abs().max() < 1e-5
    inside = model.model.process_latent_in(vae.encode(mix.image[None]))[..., rows // 4 + 1 : rows // 2 - 1, :]
    assert torch.allclose(seen[..., rows // 4 + 1 : rows // 2 - 1, :], 2 * inside, atol=1e-4)


def test_a_canvas_that_the_vae_would_cut_is_refused(comfy: Comfy) -> None:
    vae = Vae(4, 16)
    with pytest.raises(BadCanvas, match="120x120 px; both sides must be a multiple of 16, for example 128x128"):
        init_latent(canvas(120), vae.encode, 1.0)


def test_what_is_missing_is_what_sdxl_has() -> None:
    assert SHARE == pytest.approx(SHIFT, abs=1e-5)
    assert missing_share(0.0) == SHARE and missing_share(0.03) == pytest.approx(SHARE - 0.03)
    assert missing_share(1 / math.sqrt(1 + 14.6146**2)) == missing_share(0.2) == 0


@pytest.mark.parametrize("family", [name for name in TINY if name not in ("hidream", "pixart_sigma")])
def test_noise_levels_of_training_follow_the_familys_shift(comfy: Comfy, family: str) -> None:
    """The median of ``sigmoid(N(0, 1))`` is a half, which a shift of s moves to s / (s + 1)."""
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    from mudi_core.bases.families import usual

    denoiser = comfy.module("denoiser").ComfyDenoiser(tiny(comfy, family))
    assert denoiser.is_flow
    generator = torch.Generator().manual_seed(0)
    levels = denoiser.level(torch.cat([denoiser.draw_level(generator) for _ in range(2000)]))
    share = levels.noise / (levels.noise + levels.signal)
    shift = usual("", family).shift
    if shift is not None:
        assert float(share.median()) == pytest.approx(shift / (shift + 1), abs=0.02)
    assert 0 < share.min() < 0.3 and 0.7 < share.max() < 1
    z0, eps = encoded(family, 1), torch.randn(1, *TINY[family].latent)
    level = denoiser.level(denoiser.draw_level(generator))
    if family == "cosmos_predict2":  # the clean latent and the noise, both scaled alike
        return
    assert torch.allclose(level.noisy(z0, eps), level.signal * z0 + (1 - level.signal) * eps, atol=1e-6)
    assert torch.allclose(level.wanted(z0, eps), eps - z0, atol=1e-4)
    assert float(level.as_noise()) == pytest.approx((1 - float(level.noise)) ** 2, rel=1e-3)
