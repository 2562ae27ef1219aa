"""Mini Checkpoint and Mini Photos: the embedded family as ComfyUI has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from tiny_models import tiny

from mudi_core.bases import embedded as family
from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.embedded.ready_lora import MADE_FOR, READY_LORA
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import load_lora, save_lora
from mudi_core.lora.metadata import read_lora_subjects
from mudi_core.toy.world import PAIRS
from mudi_core.types import SubjectSet

PROMPT = "a photo of olis cat and hta cat, on the beach"


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


def test_the_unet_answers_as_in_diffusers(mini: tuple[Any, Any, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 24, 24, generator=generator)
    context, pooled = torch.randn(2, 77, 256, generator=generator), torch.randn(2, 160, generator=generator)
    time_ids, t = torch.tensor([[192, 192, 8, 0, 192, 192]] * 2), torch.tensor([37, 811])
    model = mini[0].model
    embedded = torch.cat([model.embedder(torch.tensor([float(n)])) for n in time_ids[0]]).flatten()
    with torch.inference_mode():
        y = torch.cat([pooled, embedded.expand(2, -1)], dim=1)
        ours = model.diffusion_model(latents, t, context=context, y=y)
        theirs = family.load_unet()(
            latents,
            t,
            encoder_hidden_states=context,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert theirs.std() > 0.1


def test_the_text_encoders_answer_as_in_transformers(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    ((context, extra),) = comfy.run_stock("CLIPTextEncode", clip=mini[1], text=PROMPT)[0]
    theirs, pooled = open_checkpoint("mini").encode_text([PROMPT])
    assert torch.allclose(context, theirs, atol=1e-4)
    assert torch.allclose(extra["pooled_output"], pooled, atol=1e-4)


def test_the_vae_answers_as_in_diffusers(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    images = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    checkpoint = open_checkpoint("mini")
    (encoded,) = comfy.run_stock("VAEEncode", vae=mini[2], pixels=images)
    assert torch.allclose(encoded["samples"], checkpoint.encode_image(images), atol=1e-4)
    (decoded,) = comfy.run_stock("VAEDecode", vae=mini[2], samples=encoded)
    theirs = checkpoint.decode(encoded["samples"] * checkpoint.latent_scale)
    assert torch.allclose(decoded, theirs, atol=1e-4)


def test_the_stock_sampler_runs(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    model, clip, vae = mini
    (positive,), (negative,) = (comfy.run_stock("CLIPTextEncode", clip=clip, text=text) for text in (PROMPT, ""))
    (latent,) = comfy.run_stock("EmptyLatentImage", width=192, height=192, batch_size=1)
    (sampled,) = comfy.run_stock(
        "KSampler", model=model, seed=1, steps=2, cfg=4.0, sampler_name="euler", scheduler="normal",
        positive=positive, negative=negative, latent_image=latent,
    )  # fmt: skip
    (image,) = comfy.run_stock("VAEDecode", vae=vae, samples=sampled)
    assert image.shape == (1, 192, 192, 3)
    assert image.isfinite().all()


def test_a_lora_patches_every_module(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    with Adapter.new(open_checkpoint("mini").denoiser(), 2, 2.0, ("to_k", "to_q", "to_v", "to_out.0")) as adapter:
        adapter.start(0)
        state = adapter.state()
    modules = {key for key in state if key.endswith(".alpha")}
    save_lora(comfy.base / "models" / "loras" / "all_modules.safetensors", state, {})
    model, _ = comfy.run_stock(
        "LoraLoader", model=mini[0], clip=mini[1], lora_name="all_modules.safetensors",
        strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    assert len(model.patches) == len(modules) == 56
    assert not mini[0].patches


def test_the_mini_photos_are_those_of_the_pair(comfy: Comfy) -> None:
    pair = comfy.module("mini").PAIR_CHOICES[2]
    a, b, token_a, class_a, token_b, class_b = comfy.run("MudiMiniPhotos", pair=pair, count=2, side=96, seed=5).result
    assert (token_a, class_a, token_b, class_b) == (
        PAIRS[2][0].token, PAIRS[2][0].class_noun, PAIRS[2][1].token, PAIRS[2][1].class_noun,
    )  # fmt: skip
    assert [photo.shape for photo in a + b] == [(1, 96, 96, 3)] * 4
    assert not torch.equal(a[0], a[1]) and not torch.equal(a[0], b[0])
    again = comfy.run("MudiMiniPhotos", pair=pair, count=2, side=96, seed=5).result
    other = comfy.run("MudiMiniPhotos", pair=pair, count=2, side=96, seed=6).result
    assert torch.equal(a[1], again[0][1]) and not torch.equal(a[0], other[0][0])


@pytest.fixture
def ready(comfy: Comfy, mini_weights: None) -> Any:
    """The mini model of today, with its own weights."""
    return comfy.run("MudiMiniCheckpoint").result[0]


def test_the_ready_lora_was_trained_on_the_weights_of_the_day(mini_weights: None) -> None:
    """Otherwise: python -m workshop.ready_lora."""
    about = load_lora(READY_LORA)[1]
    assert about[MADE_FOR] == open_checkpoint("mini").denoiser().fingerprint()
    assert read_lora_subjects(READY_LORA).names == [f"{one.token} {one.class_noun}" for one in PAIRS[0]]
    assert READY_LORA.stat().st_size < 1_000_000


def test_the_ready_lora_changes_every_layer_that_it_names_and_the_model_stays(comfy: Comfy, ready: Any) -> None:
    (model,) = comfy.run("MudiMiniLora", model=ready, train=False).result
    layers = [key for key in load_lora(READY_LORA)[0] if key.endswith(".alpha")]
    assert len(model.patches) == len(layers) == 84 and not ready.patches


def test_the_switch_takes_the_trained_model_and_asks_for_it_only_then(comfy: Comfy, ready: Any) -> None:
    node = comfy.nodes["MudiMiniLora"]
    assert node.check_lazy_status(model=ready, train=True, trained=None) == ["trained"]
    assert node.check_lazy_status(model=ready, train=False, trained=None) == []
    assert node.check_lazy_status(model=ready, train=True) == []
    trained = ready.clone()
    assert comfy.run("MudiMiniLora", model=ready, train=True, trained=trained).result == (trained,)
    with pytest.raises(comfy.module("mini_lora").NotTrained, match="not muted"):
        comfy.run("MudiMiniLora", model=ready, train=True)


def test_the_ready_lora_is_refused_where_it_knows_nobody(comfy: Comfy, ready: Any, drawn_subjects: SubjectSet) -> None:
    refusal = comfy.module("mini_lora").NotTheirs
    (model,) = comfy.run("MudiMiniLora", model=ready, train=False, subjects=drawn_subjects).result
    assert model.patches
    bears = SubjectSet(tuple(replace(one, class_noun="bear") for one in drawn_subjects))
    with pytest.raises(refusal, match="knows olis cat and hta cat, not olis bear and hta bear"):
        comfy.run("MudiMiniLora", model=ready, train=False, subjects=bears)
    with pytest.raises(refusal, match="for the mini model alone"):
        comfy.run("MudiMiniLora", model=tiny(comfy, "flux1"), train=False)
