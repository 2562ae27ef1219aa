"""The mini FLUX: one transformer in diffusers and in ComfyUI; trained, started and sampled by both in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy

from mudi_core.bases import embedded as family
from mudi_core.bases.checkpoint import Checkpoint, NoPictures, open_checkpoint
from mudi_core.bases.flux import FluxDenoiser, packed, unpacked
from mudi_core.jobs.generate import GenerateConfig, generate
from mudi_core.jobs.train import LoraFiles, Training, train_lora
from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.stage.cutouts import cut_outs
from mudi_core.start.init_latent import SHARE
from mudi_core.train.config import TrainConfig
from mudi_core.train.step import Trainee, batch_loss
from mudi_core.types import SubjectSet

PROMPT = "a photo of olis cat and hta cat, on the beach"


@pytest.fixture
def flux(random_mini: None) -> Checkpoint:
    return open_checkpoint("mini-flux")


def _loaded(comfy: Comfy) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE."""
    models = comfy.module("mini_models")
    return models.load_flux(), models.load_clip(), models.load_vae()


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_told_to_be_unfinished() -> None:
    with pytest.raises(family.MissingMiniWeights, match="its training is not finished. Use 'mini'."):
        open_checkpoint("mini-flux")


def test_a_diffusers_without_a_negative_prompt_for_flux_is_refused(
    flux: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.FluxPipeline.__call__", lambda self, prompt, latents: None)  # as in diffusers 0.30
    with pytest.raises(NoPictures, match=r"cannot make pictures with diffusers [0-9.]+, .*pip install -U"):
        flux.flux_pipeline()


def test_tokens_are_latents_in_squares_of_four() -> None:
    z = _noise(2, 4, 6, 10)
    assert torch.equal(unpacked(packed(z), 6, 10), z)
    assert torch.equal(packed(z)[1, 6].view(4, 2, 2), z[1, :, 2:4, 2:4])  # the second row has 5 tokens


def test_it_is_taught_the_flow(flux: Checkpoint) -> None:
    denoiser = flux.denoiser()
    assert isinstance(denoiser, FluxDenoiser) and denoiser.is_flow
    z0, eps = _noise(3, 4, 8, 8), _noise(3, 4, 8, 8, seed=1)
    level = denoiser.level(torch.tensor([0.0, 0.25, 1.0]))
    assert torch.allclose(level.noisy(z0, eps)[1], 0.75 * z0[1] + 0.25 * eps[1])
    assert torch.equal(level.noisy(z0, eps)[2], eps[2])
    assert torch.equal(level.wanted(z0, eps), eps - z0)
    # From the prediction back to the clean latent.
    assert torch.allclose(level.noisy(z0, eps) - level.moves.view(3, 1, 1, 1) * level.wanted(z0, eps), z0, atol=1e-6)
    drawn = torch.cat([denoiser.draw_level(torch.Generator().manual_seed(seed)) for seed in range(2000)])
    assert drawn.min() > 0 and drawn.max() < 1
    assert abs(drawn.logit().mean().item()) < 0.1 and abs(drawn.logit().std().item() - 1) < 0.1


def test_kl_is_the_squared_distance_of_the_velocities(flux: Checkpoint, drawn_subjects: SubjectSet) -> None:
    config = TrainConfig.usual(flux.usual).but(steps=1, batch_size=2, resolution=64)
    plan, denoiser = Training(flux, drawn_subjects, config).plan(), flux.denoiser()
    answers: list[torch.Tensor] = []
    predict = denoiser.predict

    def watched(*inputs: Any) -> torch.Tensor:
        answers.append(predict(*inputs))
        return answers[-1]

    denoiser.predict = watched  # type: ignore[method-assign]
    adapter = Adapter.new(denoiser, 4, 4.0, config.learning.target_modules)
    with denoiser.ready(bf16=False), adapter, torch.no_grad():
        adapter.start(1)
        for one in adapter.parameters():
            one.add_(0.02)
        plain, held = (
            batch_loss(Trainee(denoiser, adapter, plan, config.but(kl_weight=weight)), 0)[0] for weight in (0.0, 0.7)
        )
    _, without_lora, with_lora = answers
    distance = (with_lora - without_lora).square().mean()
    assert distance > 1e-4
    assert held - plain == pytest.approx(0.7 * distance.item(), rel=1e-4)


def test_a_lora_trains_and_changes_the_pictures(flux: Checkpoint, drawn_subjects: SubjectSet, tmp_path: Path) -> None:
    config = TrainConfig.usual(flux.usual).but(steps=2, batch_size=1, resolution=64)
    training = Training(flux, drawn_subjects, config)
    before = {name: value.clone() for name, value in flux.unet.state_dict().items()}
    result = train_lora(training, training.plan(), LoraFiles(tmp_path / "lora.safetensors"))
    assert len(result.losses) == 2 and len(result.state) == 3 * 42
    assert not any("add_" in name or "norm" in name for name in result.state)  # neither text's nor noise's own parts
    assert all(torch.equal(value, before[name]) for name, value in flux.unet.state_dict().items())
    asked = GenerateConfig.usual(flux.usual, PROMPT, 2, count=1, steps=2, size=(64, 64))
    (plain,) = generate(flux, cut_outs(drawn_subjects), asked)
    with apply_lora(flux.unet, tmp_path / "lora.safetensors"):
        (changed,) = generate(flux, cut_outs(drawn_subjects), asked)
    assert plain.image.shape == (64, 64, 3)
    assert not torch.equal(plain.image, changed.image)


def test_the_start_is_added_to_the_noise(
    flux: Checkpoint, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``x = eps + 0.068 gamma z0 m``: a flow begins in pure noise, but what begins there counts as for SDXL."""
    seen: list[torch.Tensor] = []

    def first(module: torch.nn.Module, args: object, values: dict[str, torch.Tensor]) -> None:
        seen.append(values["hidden_states"].clone())

    flux.unet.register_forward_pre_hook(first, with_kwargs=True)
    asked = GenerateConfig.usual(flux.usual, PROMPT, 2, count=1, steps=1, size=(64, 64), guidance=1.0)
    for gamma in (0.0, 1.0, 2.0):
        list(generate(flux, cut_outs(drawn_subjects), GenerateConfig(**{**vars(asked), "gamma": gamma})))
    plain, once, twice = (unpacked(one, 8, 8) for one in seen)
    assert (once - plain).abs().max() > 0.01
    assert torch.allclose(twice - plain, 2 * (once - plain), atol=1e-5)
    inside = (once - plain).abs().amax(1) > 0
    assert 0.02 < inside.float().mean() < 0.98
    assert torch.equal(once[:, :, ~inside[0]], plain[:, :, ~inside[0]])
    assert SHARE == pytest.approx(0.0683, abs=1e-4)


def test_it_answers_in_comfyui_as_in_diffusers(comfy: Comfy, random_mini: None) -> None:
    model, clip, _ = _loaded(comfy)
    x, sigma = _noise(2, 4, 24, 16), torch.tensor([0.9, 0.2])
    flux = open_checkpoint("mini-flux")
    (conditioning,) = comfy.run_stock("CLIPTextEncode", clip=clip, text=PROMPT)
    context, pooled = conditioning[0][0], conditioning[0][1]["pooled_output"]
    with torch.inference_mode():
        ours = model.model.diffusion_model(x, sigma, context=context.repeat(2, 1, 1), y=pooled.repeat(2, 1))
        theirs = flux.denoiser().predict(
            x, flux.denoiser().level(sigma), flux.condition([PROMPT, PROMPT]), torch.zeros(2, 6)
        )
    assert theirs.std() > 0.1
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_lora_of_the_command_line_loads_in_comfyui(
    comfy: Comfy, flux: Checkpoint, drawn_subjects: SubjectSet
) -> None:
    config = TrainConfig.usual(flux.usual).but(steps=1, batch_size=1, resolution=64)
    training = Training(flux, drawn_subjects, config)
    train_lora(training, training.plan(), LoraFiles(comfy.base / "models" / "loras" / "of_flux.safetensors"))
    model, clip, _ = _loaded(comfy)
    loaded, _ = comfy.run_stock(
        "LoraLoader", model=model, clip=clip, lora_name="of_flux.safetensors", strength_model=1.0, strength_clip=1.0
    )
    assert sum(len(patches) for patches in loaded.patches.values()) == 42


def test_the_plain_sampler_starts_as_the_command_line(
    comfy: Comfy, flux: Checkpoint, drawn_subjects: SubjectSet
) -> None:
    """KSampler (euler, simple) on the MODEL gives what diffusers' sampler gives from the same noise."""
    model, clip, _ = _loaded(comfy)
    (positive,), (negative,) = (comfy.run_stock("CLIPTextEncode", clip=clip, text=text) for text in (PROMPT, ""))
    noise = _noise(1, 4, 24, 24)
    custom = comfy.core("comfy.sample")
    with torch.inference_mode():
        theirs = custom.sample(
            model, noise, 4, 3.0, "euler", "simple", positive, negative, torch.zeros(1, 4, 24, 24), seed=0
        )
        read = flux.encode_text([PROMPT, ""])
        from mudi_core.bases.sampling import sample

        ours = sample(flux, *read, noise, 4, 3.0, lambda step: None)
    assert ours.std() > 0.1
    assert torch.allclose(theirs * family.LATENT_SCALE, ours, atol=2e-3 * ours.abs().max().item())
