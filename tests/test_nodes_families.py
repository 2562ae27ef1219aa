"""LoRAs on every family of base models that ComfyUI loads, by tiny members with random weights."""

from __future__ import annotations

import fnmatch
import importlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import in_fewer_bits, weights
from safetensors.torch import load_file
from tiny_models import TINY, Vae, conditions, encoded, known, tiny

from mudi_core.bases.families import FAMILIES, OTHER, usual
from mudi_core.bases.promise import Denoiser
from mudi_core.jobs.train import Training
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import load_lora, save_lora
from mudi_core.train.cache import Cache
from mudi_core.train.config import TrainConfig
from mudi_core.train.encode import Encoder
from mudi_core.train.parts import BadTrainConfig
from mudi_core.train.plan import Plan
from mudi_core.train.recompute import checkpointing
from mudi_core.train.step import Trainee, batch_loss
from mudi_core.types import SubjectSet

NOT_LEARNED = ("*mod*", "*adaLN*", "*embed*", "*llm_adapter*", "*refiner*", "*guidance*", "*txt*", "*context*")
"""Modulation, embedders and what reads the text."""
QUICK, SECONDS = ("flux1", "chroma", "sd3", "lumina2", "qwen_image"), 12
"""Families that every ComfyUI here has, and the CPU time of each: less than a minute for the five."""


@pytest.fixture(params=list(TINY))
def family(request: pytest.FixtureRequest, comfy: Comfy) -> str:
    name: str = request.param
    if not known(comfy, name):
        pytest.skip(f"this ComfyUI has no {TINY[name].kind}")
    return name


def trainee_of(denoiser: Denoiser, adapter: Adapter, family: str) -> Trainee:
    latents = encoded(family, 2)
    side = latents.shape[-2:]
    plan = Plan(
        latents=tuple(latents), masks=tuple(torch.ones(2, 1, *side)), names=("1", "2"), caption_of=(0, 1),
        captions=("one", "two"), conditions=tuple(conditions(family, seed) for seed in (1, 2)),
        time_ids=torch.full((2, 6), 64.0), steps=torch.tensor([[0, 1]] * 30),
        priors=torch.zeros(30, 0, dtype=torch.long), plan_hash="",
    )  # fmt: skip
    learning = {"target_modules": usual("", family).training["target_modules"], "dco_beta": 0.0}
    config = TrainConfig.of(steps=30, batch_size=2, rank=4, **learning)
    return Trainee(denoiser, adapter, plan, config)


def gradient_of(trainee: Trainee, how: str) -> tuple[float, torch.Tensor]:
    for one in trainee.adapter.parameters():
        one.grad = None
    with checkpointing(trainee.denoiser, how):
        loss, _ = batch_loss(trainee, 0)
        loss.backward()
    return loss.item(), torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trainee.adapter.parameters()]
    )


def sampled(comfy: Comfy, model: Any, family: str) -> torch.Tensor:
    """What a MODEL answers where ComfyUI samples."""
    management, asking = comfy.core("comfy.model_management"), comfy.module("denoiser.asking")
    with torch.inference_mode():
        management.load_models_gpu([model])
        x = encoded(family, 1, seed=7)
        inputs = asking.inputs_of(model.model, conditions(family), [64.0, 64.0, 0, 0, 64.0, 64.0], x, x.device)
        answer = asking.answer(model.model, x, torch.tensor([0.6]), [inputs], x.device).clone()
        management.unload_all_models()
    return answer


def test_a_family_is_learned_saved_and_loaded(comfy: Comfy, family: str) -> None:
    """The answer is ComfyUI's, the gradient that of differences, and the LoRA does in LoraLoader what it did here.

    ``MUDI_LAWS`` names a file that gets a row of the table in docs/families.md.
    """
    model, began = tiny(comfy, family), time.process_time()
    before, own = weights(model), sampled(comfy, model, family)
    denoiser = comfy.module("denoiser").ComfyDenoiser(model)
    denoiser.check(encoded(family, 1)[0], conditions(family), bf16=False)
    modules = usual("", family).training["target_modules"]
    with denoiser.ready(bf16=False), Adapter.new(denoiser, 4, 4.0, modules) as adapter:
        adapter.start(0)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for one in adapter.matrices()[1::2]:
                one.copy_(0.05 * torch.randn(one.shape, generator=generator))
        with adapter.off():
            off = apart(sampled_in_training(denoiser, comfy, family), own)
        assert off < 1e-6
        trainee = trainee_of(denoiser, adapter, family)
        loss, gradient = gradient_of(trainee, "off")
        twice = 0.0
        for how in ("selective", "full"):
            again, computed_twice = gradient_of(trainee, how)
            assert again == pytest.approx(loss, rel=1e-6)
            twice = max(twice, apart(computed_twice, gradient))
        assert twice < 1e-5
        length, losses = gradient.norm(), []
        for step in (2e-3, -4e-3, 2e-3):
            _move(adapter, step * gradient / length)
            losses.append(batch_loss(trainee, 0)[0].item())
        by_differences = (losses[0] - losses[1]) / 4e-3 / float(length)
        assert by_differences == pytest.approx(1, rel=5e-2)
        optimizer, falling = torch.optim.AdamW(adapter.parameters(), lr=3e-3), []
        for _ in range(15):
            falling.append(gradient_of(trainee, "off")[0])
            optimizer.step()
        assert falling[-1] < 0.97 * falling[0]
        loras = Path(comfy.core("folder_paths").get_folder_paths("loras")[0])
        save_lora(loras / f"{family}.safetensors", adapter.state(), {})
        state = load_lora(loras / f"{family}.safetensors")[0]
        adapter.load(state)
        trained = sampled_in_training(denoiser, comfy, family)
    comfy.core("comfy.model_management").unload_all_models()
    assert all(map(torch.equal, weights(model), before))
    wearing, _ = comfy.run_stock(
        "LoraLoader", model=model, clip=None, lora_name=f"{family}.safetensors", strength_model=1.0, strength_clip=0.0
    )
    layers = sum(key.endswith(".alpha") for key in state)
    assert sum(map(len, wearing.patches.values())) == layers > 0
    loaded = sampled(comfy, wearing, family)
    assert apart(loaded, trained) < 1e-5
    assert apart(loaded, own) > 1e-3
    assert all(map(torch.equal, weights(model), before)) and torch.equal(sampled(comfy, model, family), own)
    assert family not in QUICK or time.process_time() - began < SECONDS
    if path := os.environ.get("MUDI_LAWS"):
        with Path(path).open("a", encoding="utf-8") as table:
            fell = f"{falling[0]:.3f} to {falling[-1]:.3f}"
            row = (f"`{family}`", f"{off:.0e}", f"{by_differences:.4f}", f"{twice:.0e}", fell, f"{layers} of {layers}")
            table.write(f"| {' | '.join(row)} | {apart(loaded, trained):.0e} |\n")


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The difference of two tensors, as a share of the second."""
    return float((one - other).norm() / other.norm())


def _move(adapter: Adapter, by: torch.Tensor) -> None:
    with torch.no_grad():
        for one, part in zip(adapter.parameters(), by.split([p.numel() for p in adapter.parameters()]), strict=True):
            one.add_(part.view_as(one))


def sampled_in_training(denoiser: Any, comfy: Comfy, family: str) -> torch.Tensor:
    """What `sampled` asks, of the network with its LoRA on."""
    asking, network = comfy.module("denoiser.asking"), denoiser.patcher.model
    noise = comfy.module("denoiser.noise")
    x, sigma = encoded(family, 1, seed=7), torch.tensor([0.6])
    with torch.no_grad():
        inputs = asking.inputs_of(network, conditions(family), [64.0, 64.0, 0, 0, 64.0, 64.0], x, x.device)
        answer = asking.answer(network, x.clone(), sigma, [inputs], x.device)
        a, b = noise.parts_of_clean(denoiser._sampling, sigma)
    return a * x + b * answer


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
@pytest.mark.parametrize("family", ["flux1", "lumina2", "qwen_image", "aura_flow"])
def test_a_family_in_fewer_bits_is_trained_as_it_is(comfy: Comfy, family: str, dtype: torch.dtype) -> None:
    """The loss and the gradient are those of the rounded weights in float32; no weight is kept in more bits."""
    few = in_fewer_bits(comfy, tiny(comfy, family), dtype)
    rounded = in_fewer_bits(comfy, few, torch.float32)
    stored = {weight.dtype for weight in few.model.diffusion_model.parameters()}
    assert dtype in stored
    found = []
    for model in (few, rounded):
        denoiser = comfy.module("denoiser").ComfyDenoiser(model)
        denoiser.check(encoded(family, 1)[0], conditions(family), bf16=False)
        modules = usual("", family).training["target_modules"]
        with denoiser.ready(bf16=False), Adapter.new(denoiser, 4, 4.0, modules) as adapter:
            adapter.start(0)
            with torch.no_grad():
                for number, one in enumerate(adapter.matrices()[1::2]):
                    one.copy_(0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
            found.append(gradient_of(trainee_of(denoiser, adapter, family), "selective"))
        comfy.core("comfy.model_management").unload_all_models()
    (loss, gradient), (loss_of_rounded, gradient_of_rounded) = found
    assert loss == pytest.approx(loss_of_rounded, rel=1e-5)
    assert float((gradient - gradient_of_rounded).norm() / gradient.norm()) < 1e-4
    assert {weight.dtype for weight in few.model.diffusion_model.parameters()} == stored


class Clip:
    """Reads captions as the text encoders of a tiny model do, by their letters."""

    def __init__(self, family: str) -> None:
        self.family, self.cond_stage_model = family, torch.nn.Identity()

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict[str, Any]:
        read = conditions(self.family, seed=len(tokens))
        return {"cond": read.pop("cross_attn")[None], "pooled_output": None} | {n: v[None] for n, v in read.items()}


@pytest.mark.parametrize(
    "family", ["flux1", "flux1-schnell", "aura_flow", "qwen_image", "sd3", "cosmos_predict2", "hidream"]
)
def test_the_same_graph_trains_and_starts_every_family(
    comfy: Comfy, drawn_subjects: SubjectSet, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Seg-Mix Dataset, Train LoRA by itself, Layout, Init Latent with the model, the plain KSampler."""
    model, shape = tiny(comfy, family), TINY[family].latent
    vae, before = Vae(shape[0], 8, frames=len(shape) == 4), weights(model)
    dataset, _ = comfy.run(
        "MudiSegMixDataset", subjects=drawn_subjects, probability=0.5, relative_sizes="", overlap=0.2,
        background_weight=1.0,
    ).result  # fmt: skip
    output = comfy.run(
        "MudiTrainLora", model=model, clip=Clip(family), vae=vae, dataset=dataset, name=f"graph_{family}",
        method="segmix", preset="auto", steps=2, rank=0, learning_rate=0.0, batch_size=0, seed=1,
    )  # fmt: skip
    wearing, name, _ = output.result
    about = load_lora(comfy.base / "models" / "loras" / name)[1]
    learned = json.loads(about["mudi_config"])
    assert learned["layout"]["scale"] == ([0.9, 1.0] if family.startswith("flux1") else [0.75, 1.0])
    assert learned["layout"]["max_overlap"] == 0.2 and learned["accumulation"] == 4
    assert (usual("", family).remark or "Prompt it with") in output.ui["text"][0]
    assert ("trained with general ones" in output.ui["text"][0]) == (family == "hidream")
    assert (
        about["ss_base_model_version"] == (family if family in FAMILIES else OTHER)
        and learned["dco_beta"] == 0
        and learned["resolution"] == 512
    )
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, mode="random", width=128, height=128, seed=3, text="", overlap=0.2,
        relative_sizes="",
    ).result[:1]  # fmt: skip
    latent, sees, *_ = comfy.run(
        "MudiInitLatent", layout=placed, vae=vae, gamma=2.0, batch_size=1, seed=3, model=wearing
    ).result
    words = [[conditions(family)["cross_attn"][None], {n: v[None] for n, v in TINY[family].more.items()}]]
    pictures = []
    for by in (sees, wearing):
        (samples,) = comfy.run_stock(
            "KSampler", model=by, seed=5, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", positive=words,
            negative=words, latent_image=latent, denoise=1.0,
        )  # fmt: skip
        pictures.append(samples["samples"])
    assert all(one.isfinite().all() and one.shape == latent["samples"].shape for one in pictures)
    assert not torch.allclose(*pictures, atol=1e-3)
    comfy.core("comfy.model_management").unload_all_models()
    assert all(map(torch.equal, weights(model), before))


@pytest.mark.parametrize("family", ["krea2", "anima", "flux1", "aura_flow"])
def test_a_second_file_in_diffusers_form_where_it_reads_no_other(
    comfy: Comfy, drawn_subjects: SubjectSet, family: str
) -> None:
    """ComfyUI's loader finds a place for every layer of it, and the model answers as with the first file."""
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    model, shape = tiny(comfy, family), TINY[family].latent
    dataset, _ = comfy.run(
        "MudiSegMixDataset", subjects=drawn_subjects, probability=0.5, relative_sizes="", overlap=0.2,
        background_weight=1.0,
    ).result  # fmt: skip
    (settings,) = comfy.run(
        "MudiTrainSettings", learning="as in Train LoRA", memory="as in Train LoRA", optimizer="adamw",
        schedule="constant", warm_up=0, accumulation=1, alpha=2.0, min_snr_gamma=0.0, noise_offset=0.0, kl_weight=0.0,
        buckets=False, save_every=0, resolution=64, start_from="none", diffusers_file=True,
    ).result  # fmt: skip
    output = comfy.run(
        "MudiTrainLora", model=model, clip=Clip(family), vae=Vae(shape[0], 8, frames=len(shape) == 4), dataset=dataset,
        name=f"both_{family}", method="segmix", preset="auto", steps=3, rank=4, learning_rate=0.01, batch_size=1,
        seed=1, settings=settings,
    )  # fmt: skip
    (text,), loras = output.ui["text"], comfy.base / "models" / "loras"
    name, second = output.result[1], f"both_{family}_00001-diffusers.safetensors"
    if family == "flux1":
        assert "diffusers reads this file as it is." in text and not (loras / second).exists()
        return
    if family == "aura_flow":
        assert "not known to read LoRAs of this kind" in text and not (loras / second).exists()
        return
    assert f"For diffusers: {second}." in text
    layers, paths = load_lora(loras / name)[0], load_file(loras / second)
    assert all(re.fullmatch(r"diffusion_model\..+\.lora_[AB]\.weight", key) for key in paths)
    assert len(paths) // 2 == len(layers) // 3
    answers = []
    for file in (name, second):
        wearing, _ = comfy.run_stock(
            "LoraLoader", model=model, clip=None, lora_name=file, strength_model=1.0, strength_clip=0.0
        )
        assert sum(map(len, wearing.patches.values())) == len(paths) // 2
        answers.append(sampled(comfy, wearing, family))
    plain = sampled(comfy, model, family)
    assert float((answers[0] - answers[1]).norm() / plain.norm()) < 1e-5
    assert float((answers[0] - plain).norm() / plain.norm()) > 1e-4
    diffusers = importlib.import_module("diffusers")
    reader = getattr(importlib.import_module("diffusers.loaders"), f"{READERS[family]}LoraLoaderMixin", None)
    if reader is None:
        return
    there = {name for name, _ in in_diffusers(diffusers, family).named_modules()}
    read = {key.rpartition(".lora_")[0] for key in reader.lora_state_dict(dict(paths))}
    assert len(read) == len(paths) // 2 and {one.removeprefix("transformer.") for one in read} <= there


READERS = {"krea2": "Krea2", "anima": "Anima"}
"""What diffusers calls what reads LoRAs of a family."""


def in_diffusers(diffusers: Any, family: str) -> torch.nn.Module:
    """A network of diffusers' class without weights, with as many blocks as the tiny one."""
    with torch.device("meta"):
        kind = diffusers.Krea2Transformer2DModel if family == "krea2" else diffusers.CosmosTransformer3DModel
        network: torch.nn.Module = kind(num_layers=2)
    return network


def test_min_snr_has_no_meaning_for_a_flow(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    base = comfy.module("base").ComfyBase(tiny(comfy, "flux1"), Clip("flux1"), Vae(16, 8))
    config = TrainConfig.usual(base.usual, min_snr_gamma=5.0)
    with pytest.raises(BadTrainConfig, match="taught a flow, which has none. Leave it off"):
        Training(base, drawn_subjects, config)


def test_what_a_caption_becomes_keeps_its_kinds(comfy: Comfy) -> None:
    """Ids stay whole numbers, also through the trainer's encoder; what has no batch dimension gets none."""
    convert = comfy.module("convert")

    class Ids(Clip):
        def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict[str, Any]:
            ids = {
                "t5xxl_ids": torch.arange(5, dtype=torch.int),
                "layers": 3,
                "attention_mask": torch.ones(1, 4).long(),
            }
            return super().encode_from_tokens(tokens, return_dict) | ids

    read = convert.encode_text(Ids("flux1"))
    encoder = Encoder(lambda images: torch.zeros(len(images), 16, 8, 8), read, Cache(None))
    (kept,) = encoder.texts(["a photo"], None)
    given = convert.conditioning(kept)
    assert given["layers"] == 3 and given["cross_attn"].shape == (1, 12, 24)
    assert (
        torch.equal(given["t5xxl_ids"], torch.arange(5, dtype=torch.int))
        and not given["attention_mask"].is_floating_point()
    )
    assert given["attention_mask"].shape == (1, 4) and given["pooled_output"].shape == (1, 16)


def test_a_family_is_recognized(comfy: Comfy, family: str) -> None:
    assert comfy.module("denoiser").kohya_family(tiny(comfy, family)) == (family if family in FAMILIES else OTHER)


def test_every_layer_that_learns_can_be_computed_twice(comfy: Comfy, family: str) -> None:
    """Otherwise checkpointing would keep what it leaves out."""
    denoiser = comfy.module("denoiser").ComfyDenoiser(tiny(comfy, family))
    adapter = Adapter.new(denoiser, 4, 4.0, usual("", family).training["target_modules"])
    inside = {id(module) for block in denoiser.blocks() for module in block.modules()}
    assert all(id(one.layer) in inside for one in adapter._parts)


def test_only_attention_and_mlp_of_the_pictures_stream_learn(comfy: Comfy, family: str) -> None:
    denoiser = comfy.module("denoiser").ComfyDenoiser(tiny(comfy, family))
    adapter = Adapter.new(denoiser, 4, 4.0, usual("", family).training["target_modules"])
    learned = [name for name, layer in denoiser.layers().items() if any(layer is one.layer for one in adapter._parts)]
    assert not [name for name in learned for pattern in NOT_LEARNED if fnmatch.fnmatchcase(name, pattern)]
    kinds = " ".join(learned)
    assert any(word in kinds for word in ("attn", "attention")) and any(
        word in kinds for word in ("mlp", "feed_forward", "linear2", "ff_")
    )
