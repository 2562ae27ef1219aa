"""A MODEL as what a LoRA is trained on: the same steps as on diffusers' U-Net, and the MODEL as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from diffusers import UNet2DConditionModel
from models import FLUX, advanced, in_fewer_bits, other_model, random_lora, weights

from mudi_core.bases import sdxl
from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.promise import Denoiser
from mudi_core.bases.quantize import BaseWeights, quantize
from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.lora.file import kohya_name, load_lora
from mudi_core.train.config import TrainConfig
from mudi_core.train.plan import Plan
from mudi_core.train.recompute import checkpointing
from mudi_core.train.step import Trainee, batch_loss

CONFIG = TrainConfig.of(
    steps=2, batch_size=2, resolution=64, rank=4, dco_beta=1000.0, kl_weight=1.0, background_weight=0.5
)
PLAIN = CONFIG.but(dco_beta=0.0, kl_weight=0.0)
SIZES = torch.tensor([[64.0, 64, 0, 0, 64, 64], [96, 64, 8, 0, 64, 64]] * 2)


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


def plan(conditions: Any, latents: torch.Tensor) -> Plan:
    """Four samples of two captions, as if they had been drawn and encoded."""
    generator = torch.Generator().manual_seed(0)
    return Plan(
        latents=tuple(latents),
        masks=tuple(torch.rand(4, 1, *latents.shape[-2:], generator=generator).round()),
        names=("a", "b", "c", "d"),
        time_ids=SIZES,
        captions=("a photo of olis cat", "a photo of hta dog"),
        caption_of=(0, 1, 0, 1),
        conditions=tuple(conditions),
        steps=torch.tensor([[0, 1], [2, 3]]),
        priors=torch.empty(2, 0, dtype=torch.long),
        plan_hash="",
    )


@contextmanager
def worn(denoiser: Denoiser, modules: tuple[str, ...] = CONFIG.learning.target_modules) -> Iterator[Adapter]:
    """A network with a LoRA that does something, by the layers' names in files."""
    adapter = Adapter.new(denoiser, 4, 4.0, modules)
    adapter.start(3)
    state, generator = adapter.state(), torch.Generator().manual_seed(1)
    for name in sorted(state):
        if not name.endswith(".alpha"):
            state[name] = 0.05 * torch.randn(state[name].shape, generator=generator)
    adapter.load(state)
    with denoiser.ready(bf16=False), adapter:
        yield adapter


def gradients(trainee: Trainee, how: str = "off") -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch, and its gradient by the names in a LoRA's file."""
    with checkpointing(trainee.denoiser, how):  # type: ignore[arg-type]
        loss, _ = batch_loss(trainee, 1)
        loss.backward()  # type: ignore[no-untyped-call]
    names = [name for name in trainee.adapter.state() if not name.endswith(".alpha")]
    found = {}
    for name, matrix in zip(names, trainee.adapter.matrices(), strict=True):
        assert matrix.grad is not None, name
        found[name] = matrix.grad.clone()
        matrix.grad = None
    return loss.item(), found


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """How far two gradients are from each other, relative to the first."""
    assert first.keys() == second.keys()
    one, two = (torch.cat([part[name].flatten() for name in sorted(first)]) for part in (first, second))
    return float((one - two).norm() / one.norm())


def of_mini(comfy: Comfy, mini: tuple[Any, Any, Any], model: Any = None) -> tuple[Any, Plan]:
    """The MODEL's denoiser, and a plan that its own CLIP has encoded."""
    model, clip, _ = (model or mini[0], *mini[1:])
    denoiser = comfy.module("denoiser").ComfyDenoiser(model)
    conditions = comfy.module("convert").encode_text(clip)(["a photo of olis cat", "a photo of hta dog"])
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2)) / 0.13025
    return denoiser, plan(conditions, latents)


def as_diffusers_reads_it(encoded: Plan) -> Plan:
    names = {"context": "cross_attn", "pooled": "pooled_output"}
    return replace(encoded, conditions=tuple({n: one[ours] for n, ours in names.items()} for one in encoded.conditions))


@pytest.mark.parametrize(("config", "rounding"), [(PLAIN, 1e-6), (CONFIG, 1e-4)], ids=["plain", "dco"])
def test_a_step_on_the_model_is_a_step_on_diffusers_unet(
    comfy: Comfy, mini: tuple[Any, Any, Any], config: TrainConfig, rounding: float
) -> None:
    """DCO takes a difference of errors times its beta of 1000, and so makes as much more of their rounding."""
    checkpoint = open_checkpoint("mini")
    theirs, (ours, encoded) = checkpoint.denoiser(), of_mini(comfy, mini)
    read = as_diffusers_reads_it(encoded)
    with worn(theirs) as adapter:
        loss, gradient = gradients(Trainee(theirs, adapter, read, config))
    before = weights(mini[0])
    with worn(ours) as adapter:
        model_loss, model_gradient = gradients(Trainee(ours, adapter, encoded, config))
    assert model_loss == pytest.approx(loss, rel=rounding)
    assert apart(gradient, model_gradient) < 10 * rounding
    assert all(map(torch.equal, weights(mini[0]), before))


def test_a_fresh_lora_starts_alike_on_both(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    """In the same order of layers: one seed means one LoRA, on the command line and in ComfyUI."""
    both = [open_checkpoint("mini").denoiser(), of_mini(comfy, mini)[0]]
    first, second = (Adapter.new(one, 2, 2.0, CONFIG.learning.target_modules) for one in both)
    for adapter in (first, second):
        adapter.start(5)
    assert list(first.state()) == list(second.state())
    assert all(torch.equal(first.state()[name], second.state()[name]) for name in first.state())


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_computed_twice_changes_nothing(comfy: Comfy, mini: tuple[Any, Any, Any], how: str) -> None:
    denoiser, encoded = of_mini(comfy, mini)
    with worn(denoiser) as adapter:
        trainee = Trainee(denoiser, adapter, encoded, CONFIG)
        loss, gradient = gradients(trainee)
        again, computed_twice = gradients(trainee, how)
    assert again == pytest.approx(loss, rel=1e-6) and apart(gradient, computed_twice) < 1e-6


def test_the_model_is_as_before_after_an_error_in_a_step(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    denoiser, encoded = of_mini(comfy, mini)
    model = mini[0].model
    before, parameters, training = weights(mini[0]), list(model.parameters()), model.training
    sampling, forwards = model.model_sampling, [vars(module).get("forward") for module in model.modules()]
    cast = [vars(module).get("comfy_cast_weights") for module in model.modules()]

    class Cancelled(BaseException):
        pass

    with pytest.raises(Cancelled), worn(denoiser) as adapter, checkpointing(denoiser, "full"):
        model.diffusion_model.out[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(Cancelled()))
        batch_loss(Trainee(denoiser, adapter, encoded, CONFIG), 0)
    assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))
    assert all(map(torch.equal, weights(mini[0]), before))
    assert model.model_sampling is sampling and model.manual_cast_dtype is None and model.training == training
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert [vars(module).get("comfy_cast_weights") for module in model.modules()] == cast


def test_a_lora_on_the_model_is_trained_upon(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    path = random_lora(comfy.base / "models" / "loras" / "upon.safetensors")
    (wearing,) = comfy.run_stock("LoraLoaderModelOnly", model=mini[0], lora_name=path.name, strength_model=0.5)
    checkpoint = open_checkpoint("mini")
    ours, encoded = of_mini(comfy, mini, wearing)
    assert ours.fingerprint() != of_mini(comfy, mini)[0].fingerprint()
    told_before = ours.fingerprint()
    read = as_diffusers_reads_it(encoded)
    theirs = checkpoint.denoiser()
    x, level = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), theirs.level(torch.tensor([500]))
    with apply_lora(checkpoint.unet, path, 0.5), torch.no_grad():
        expected = theirs.predict(x, level, read.conditions[:1], SIZES[:1])
    sigma = level.noise / level.signal
    with ours.ready(bf16=False), torch.no_grad():
        found = ours.predict(x / level.signal, ours.level(sigma), encoded.conditions[:1], SIZES[:1])
        assert ours.fingerprint() == told_before  # also while it is loaded
    assert torch.allclose(found, expected, atol=1e-4)


def test_weights_that_comfyui_gives_out_per_use_teach_the_same(
    comfy: Comfy, mini: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card too small for the MODEL: ComfyUI keeps its weights elsewhere and puts a LoRA on each at its use."""
    path = random_lora(comfy.base / "models" / "loras" / "offloaded.safetensors")
    (wearing,) = comfy.run_stock("LoraLoaderModelOnly", model=mini[0], lora_name=path.name, strength_model=0.5)
    management, found = comfy.core("comfy.model_management"), []

    def load_little(models: list[Any], *more: Any, **named: Any) -> None:
        for one in models:
            one.load(torch.device("cpu"), lowvram_model_memory=1)

    for offloads in (False, True):
        if offloads:
            management.unload_all_models()
            monkeypatch.setattr(management, "load_models_gpu", load_little)
        denoiser, encoded = of_mini(comfy, mini, wearing)
        with worn(denoiser) as adapter:
            asked = sum(bool(getattr(layer, "weight_function", ())) for layer in denoiser.layers().values())
            found.append(gradients(Trainee(denoiser, adapter, encoded, PLAIN), "full" if offloads else "off"))
            assert (asked > 0) == offloads
    wearing.detach()
    (loss, whole), (same, in_parts) = found
    assert same == pytest.approx(loss, rel=1e-5) and apart(whole, in_parts) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_in_fewer_bits_is_trained_upon_without_a_copy(
    comfy: Comfy, mini: tuple[Any, Any, Any], dtype: torch.dtype, bf16: bool
) -> None:
    exact, encoded = of_mini(comfy, mini)
    with worn(exact) as adapter:
        _, expected = gradients(Trainee(exact, adapter, encoded, PLAIN))
    model = in_fewer_bits(comfy, mini[0], dtype)
    before = weights(model)
    few, _ = of_mini(comfy, mini, model)
    few.check(encoded.latents[0], encoded.conditions[0], bf16)
    few_bits = Adapter.new(few, 4, 4.0, CONFIG.learning.target_modules)
    few_bits.load(adapter.state())
    kept: list[torch.Tensor] = []
    with few.ready(bf16), few_bits:
        trainee = Trainee(few, few_bits, encoded, PLAIN)
        with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
            _, gradient = gradients(trainee)
    shapes = {tuple(m.weight.shape) for m in few.layers().values() if m.in_features != m.out_features}
    assert not [one for one in kept if tuple(one.shape) in shapes and one.dtype != dtype and one.shape[0] > 64]
    assert apart(expected, gradient) < {torch.float16: 0.01, torch.bfloat16: 0.15, torch.float8_e4m3fn: 0.9}[dtype] + (
        0.15 if bf16 else 0
    )
    assert all(map(torch.equal, weights(model), before))


@pytest.mark.parametrize("base_weights", ["fp8", "int8", "nf4"])
def test_a_model_is_kept_in_few_bits_as_diffusers_unet_is(
    comfy: Comfy, mini: tuple[Any, Any, Any], base_weights: BaseWeights
) -> None:
    path = random_lora(comfy.base / "models" / "loras" / "upon.safetensors")
    (wearing,) = comfy.run_stock("LoraLoaderModelOnly", model=mini[0], lora_name=path.name, strength_model=0.5)
    _, encoded = of_mini(comfy, mini)
    ours = comfy.module("denoiser").ComfyDenoiser(wearing, base_weights)
    checkpoint = open_checkpoint("mini")
    for name, layer in checkpoint.denoiser().layers().items():  # the LoRA in the weights, as ComfyUI puts it there
        lora, _ = load_lora(path)
        if (key := kohya_name(name)) + ".alpha" in lora:
            layer.weight += 0.5 * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    quantize(checkpoint.unet, base_weights)
    theirs = checkpoint.denoiser()
    with worn(theirs) as adapter:
        loss, gradient = gradients(Trainee(theirs, adapter, as_diffusers_reads_it(encoded), PLAIN))
    before = weights(mini[0])
    for _ in range(2):  # as after a preview
        with worn(ours) as adapter:
            model_loss, model_gradient = gradients(Trainee(ours, adapter, encoded, PLAIN))
        assert model_loss == pytest.approx(loss, rel=1e-3) and apart(gradient, model_gradient) < 0.02
    assert all(map(torch.equal, weights(mini[0]), before))


@pytest.mark.parametrize(
    ("node", "settings"),
    [
        ("ModelSamplingDiscrete", {"sampling": "x0", "zsnr": False}),
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": True}),
        *(
            ("ModelSamplingContinuousEDM", {"sampling": kind, "sigma_max": 120.0, "sigma_min": 0.002})
            for kind in ("v_prediction", "edm", "edm_playground_v2.5", "eps")
        ),
        ("ModelSamplingContinuousV", {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03}),
        ("ModelSamplingSD3", {"shift": 3.0}),
    ],
)
def test_noise_that_the_checkpoint_was_not_taught_is_refused(
    comfy: Comfy, mini: tuple[Any, Any, Any], node: str, settings: dict[str, Any]
) -> None:
    patched = advanced(comfy, node, mini[0], **settings)
    with pytest.raises(comfy.module("convert").BadModel, match="a node before says so"):
        comfy.module("denoiser").ComfyDenoiser(patched)


@pytest.mark.parametrize("loaded", [False, True])
def test_lcm_leaves_the_checkpoints_own_noise(comfy: Comfy, mini: tuple[Any, Any, Any], loaded: bool) -> None:
    patched = advanced(comfy, "ModelSamplingDiscrete", mini[0], sampling="lcm", zsnr=False)
    if loaded:
        comfy.core("comfy.model_management").load_models_gpu([patched])  # the patch lies on the shared model now
    ours, plain = (comfy.module("denoiser").ComfyDenoiser(model) for model in (patched, mini[0]))
    drawn = [[one.draw_level(torch.Generator().manual_seed(seed)) for seed in range(20)] for one in (ours, plain)]
    assert drawn[0] == drawn[1] and len(set(map(float, drawn[0]))) > 10


def test_a_patch_of_guidance_alone_leaves_the_noise(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    rescaled = comfy.module("denoiser").ComfyDenoiser(advanced(comfy, "RescaleCFG", mini[0], multiplier=0.7))
    level = rescaled.level(torch.tensor([1.0]))
    assert float(level.noise) == 1.0 and float(level.of_latent) == 0.0


def test_a_lora_in_bypass_mode_is_refused_for_training_would_not_see_it(
    comfy: Comfy, mini: tuple[Any, Any, Any]
) -> None:
    sd = comfy.core("comfy.sd")
    if not hasattr(sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass mode")
    lora = Adapter.new(open_checkpoint("mini").denoiser(), 2, 2.0, CONFIG.learning.target_modules)
    worn = sd.load_bypass_lora_for_models(mini[0], None, lora.state(), 1.0, 0.0)[0]
    with pytest.raises(comfy.module("convert").BadModel, match="bypass_lora.*Load the LoRA without bypass"):
        comfy.module("denoiser").ComfyDenoiser(worn)


def test_sdxl_itself_is_known(comfy: Comfy) -> None:
    """As ComfyUI detects it from a file's keys; without its 5 GB of values."""
    meta = torch.device("meta")
    wanted = json.loads((sdxl.CONFIGS / "unet" / "config.json").read_text())
    small = comfy.core("comfy.supported_models").SDXL(comfy.module("mini_models").unet_config(wanted))
    small.set_inference_dtype(torch.float16, None)
    keys = small.get_model({}, "", device=meta).diffusion_model.state_dict()
    detected = comfy.core("comfy.model_detection").model_config_from_unet(keys, "")
    detected.set_inference_dtype(torch.float16, None)
    model = comfy.core("comfy.model_patcher").ModelPatcher(detected.get_model({}, "", device=meta), meta, meta)
    denoiser = comfy.module("denoiser")
    assert type(detected).__name__ == "SDXL" and denoiser.kohya_family(model) == "sdxl_base_v1-0"
    ours = denoiser.ComfyDenoiser(model)
    named = [ours.file_name(name) for name in ours.layers() if name.endswith(TrainConfig().learning.target_modules)]
    with meta:
        theirs = UNet2DConditionModel.from_config(wanted)
    expected = [
        kohya_name(name)
        for name, layer in theirs.named_modules()
        if name.endswith(TrainConfig().learning.target_modules)
    ]
    assert named == expected and len(named) == 560
    assert sum(type(block).__name__ == "BasicTransformerBlock" for block in ours.blocks()) == 70


def tiny(comfy: Comfy, kind: str) -> Any:
    """A MODEL of another family with random weights, made in inference mode as a loader makes it."""
    known = comfy.core("comfy.ldm.flux.model").FluxParams.__annotations__
    configs: dict[str, dict[str, Any]] = {
        "Flux": {"image_model": "flux", **{name: value for name, value in FLUX.items() if name in known}},
        "AuraFlow": {
            "max_seq": 64, "cond_seq_dim": 8, "dim": 32, "n_heads": 2, "n_double_layers": 1,
            "n_layers": 2,
        },
    }  # fmt: skip
    with torch.inference_mode():
        model = other_model(comfy, kind, configs[kind])
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.model.diffusion_model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(values * scale + (weight.ndim < 2 and name.endswith(("scale", "weight"))))
    model.model.eval()
    return model


@pytest.mark.parametrize("kind", ["Flux", "AuraFlow"])
def test_flow_models_are_stepped_on_right(comfy: Comfy, kind: str) -> None:
    """The answer is ComfyUI's own, and the gradient that of differences, also where blocks are computed twice."""
    model = tiny(comfy, kind)
    denoiser = comfy.module("denoiser").ComfyDenoiser(model)
    before = weights(model)
    generator = torch.Generator().manual_seed(1)
    conditions = [
        {"cross_attn": torch.randn(6, 8, generator=generator), "pooled_output": torch.randn(8, generator=generator)}
        for _ in range(2)
    ]
    channels = model.get_model_object("latent_format").latent_channels
    encoded = plan(conditions, torch.randn(4, channels, 8, 8, generator=generator))
    denoiser.check(encoded.latents[0], conditions[0], bf16=False)
    names = [name for name in denoiser.layers() if "blocks" in name or "layers" in name]
    with worn(denoiser, tuple(names)) as adapter:
        trainee = Trainee(denoiser, adapter, encoded, PLAIN)
        loss, gradient = gradients(trainee)
        for how in ("selective", "full"):
            again, computed_twice = gradients(trainee, how)
            assert again == pytest.approx(loss, rel=1e-6) and apart(gradient, computed_twice) < 1e-5
        state, length = adapter.state(), torch.cat([one.flatten() for one in gradient.values()]).norm()
        losses = []
        for step in (1e-2, -1e-2):
            adapter.load({name: value + step * gradient.get(name, 0) / length for name, value in state.items()})
            losses.append(batch_loss(trainee, 1)[0].item())
        assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(length), rel=2e-2)
    assert all(map(torch.equal, weights(model), before))
    assert all(denoiser.file_name(name) == "lora_unet_" + name.replace(".", "_") for name in names)


@pytest.mark.parametrize("seed", range(3))
def test_noise_levels_are_those_of_the_sampling(comfy: Comfy, mini: tuple[Any, Any, Any], seed: int) -> None:
    """Under each patch: the answer that is wanted gives the clean latent back."""
    drawn = random.Random(seed)
    for settings in ({"sampling": "eps"}, {"sampling": "v_prediction"}, {"sampling": "v_prediction", "zsnr": True}):
        model = advanced(comfy, "ModelSamplingDiscrete", mini[0], **{"zsnr": False, **settings})
        denoiser = comfy.module("denoiser").ComfyDenoiser(model)
        sampling = model.get_model_object("model_sampling")
        sigma = sampling.sigmas[torch.tensor([drawn.randrange(1000)])].float()
        z0, eps = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
        level = denoiser.level(sigma)
        x = level.noisy(z0, eps)
        assert torch.allclose(x, sampling.noise_scaling(sigma, eps.clone(), z0, False), rtol=1e-5, atol=1e-5)
        if sigma < 100:
            clean = sampling.calculate_denoised(sigma, level.wanted(z0, eps), x)
            assert torch.allclose(clean, z0, atol=1e-3 * max(1.0, float(sigma)))
