"""A MODEL is copied in few bits, whatever its own layers store: those in few bits already stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import host_quantized, scaled_fp8, weights, with_layers
from torch import Tensor

INSIDE, OUTSIDE = ".attn1.to_q", "time_embed.0"
"""A linear layer of every block, and one of none."""


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


@pytest.fixture
def quantizes(comfy: Comfy) -> None:
    if not hasattr(comfy.core("comfy.ops"), "mixed_precision_ops"):
        pytest.skip("this ComfyUI has no layers of its own in few bits")


@pytest.fixture
def scales(comfy: Comfy) -> None:
    if not hasattr(comfy.core("comfy.ops"), "scaled_fp8_ops"):
        pytest.skip("this ComfyUI turns scaled fp8 into other layers")


def answers(comfy: Comfy, mini: tuple[Any, Any, Any], model: Any, base_weights: str) -> dict[str, Tensor]:
    """What the layers of a MODEL answer in a training with this format, which is checked as Train LoRA does."""
    convert = comfy.module("convert")
    encoded = convert.encode_image(mini[2], model)(torch.zeros(1, 64, 64, 3))[0]
    denoiser = comfy.module("denoiser").ComfyDenoiser(model, base_weights)
    denoiser.check(encoded, convert.encode_text(mini[1])(["a photo"])[0], False)
    before = weights(model)
    with denoiser.ready(bf16=False), torch.no_grad():
        found = {name: layer(random_input(layer)) for name, layer in denoiser.layers().items()}
    assert all(map(torch.equal, weights(model), before))
    return found


def random_input(layer: Any) -> Tensor:
    return torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(1))


def own_answers(model: Any) -> dict[str, Tensor]:
    """What ComfyUI's own layers answer in sampling."""
    network = model.model.diffusion_model
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "in_features")}
    with torch.inference_mode():
        return {name: layer(random_input(layer)) for name, layer in layers.items()}


def apart(expected: Tensor, found: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def in_the_weights(layer: Any, difference: Tensor) -> Tensor:
    """The layer's answer with a difference in its weight, where it may scale its input."""
    x, scale = random_input(layer), getattr(layer, "pre_quant_scale", None)
    if scale is not None:
        x = x * scale.detach()
    weight = layer.convert_weight(layer.weight.detach().to(torch.float32), inplace=False) + difference
    return torch.nn.functional.linear(x, weight, layer.bias)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("base_weights", ["int8", "nf4"])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
def test_layers_that_comfyui_keeps_in_few_bits_stay_so(
    comfy: Comfy, mini: tuple[Any, Any, Any], quantizes: None, kind: str, base_weights: str, smoothed: bool
) -> None:
    model = with_layers(mini[0], lambda layer: host_quantized(comfy, layer, kind, smoothed), INSIDE, OUTSIDE)
    full, few = (answers(comfy, mini, model, how) for how in ("full", base_weights))
    own = own_answers(model)
    assert full.keys() == few.keys() == own.keys()
    blocks = [name for name in full if ".transformer_blocks." in name]
    for name in full:
        if name.endswith((INSIDE, OUTSIDE)) or name not in blocks:
            assert torch.equal(full[name], few[name])
        else:
            assert 1e-4 < apart(full[name], few[name]) < {"int8": 0.02, "nf4": 0.15}[base_weights]
        assert apart(own[name], full[name]) < 0.05  # its own rounds the input, too


@pytest.mark.parametrize("smoothed", [False, True])
def test_a_lora_on_such_layers_is_trained_upon(
    comfy: Comfy, mini: tuple[Any, Any, Any], quantizes: None, smoothed: bool
) -> None:
    model = with_layers(
        mini[0], lambda layer: host_quantized(comfy, layer, "int8_tensorwise", smoothed), INSIDE, OUTSIDE
    ).clone()
    differences = patched(model)
    few = answers(comfy, mini, model, "int8")
    for name, difference in differences.items():
        expected = in_the_weights(model.model.diffusion_model.get_submodule(name), difference)
        assert apart(expected, few[name]) < (0.02 if name.endswith(INSIDE) else 1e-5)


def test_how_many_layers_stay_as_they_are_is_said(comfy: Comfy, mini: tuple[Any, Any, Any], quantizes: None) -> None:
    model = with_layers(mini[0], lambda layer: host_quantized(comfy, layer, "int8_tensorwise"))
    base = comfy.module("base").ComfyBase
    every = len(comfy.module("denoiser").ComfyDenoiser(model).layers())
    count = sum(name.endswith(INSIDE) for name, _ in model.model.diffusion_model.named_modules())
    said = f"{count} of the MODEL's {every} layers are in few bits already and stay as they are."
    assert base(model, *mini[1:], "nf4").remark == said
    assert base(model, *mini[1:]).remark == ""


@pytest.mark.parametrize("base_weights", ["fp8", "int8", "nf4"])
def test_scaled_fp8_is_scaled_once(comfy: Comfy, mini: tuple[Any, Any, Any], scales: None, base_weights: str) -> None:
    """Inside of the blocks, where weights are copied in few bits, and outside, where they are copied as they are."""
    model = with_layers(mini[0], lambda layer: scaled_fp8(comfy, layer), INSIDE, OUTSIDE)
    few, own = answers(comfy, mini, model, base_weights), own_answers(model)
    for name in few:
        if ".transformer_blocks." not in name:
            assert apart(own[name], few[name]) < 1e-5
        else:
            assert apart(own[name], few[name]) < {"fp8": 0.05, "int8": 0.02, "nf4": 0.15}[base_weights]


def test_a_lora_on_scaled_fp8_is_scaled_once(comfy: Comfy, mini: tuple[Any, Any, Any], scales: None) -> None:
    model = with_layers(mini[0], lambda layer: scaled_fp8(comfy, layer), INSIDE, OUTSIDE).clone()
    differences = patched(model)
    few = answers(comfy, mini, model, "int8")
    for name, difference in differences.items():
        expected = in_the_weights(model.model.diffusion_model.get_submodule(name), difference)
        assert apart(expected, few[name]) < (0.02 if name.endswith(INSIDE) else 1e-5)


def patched(model: Any) -> dict[str, Tensor]:
    """Put a difference on the MODEL's layers `INSIDE` and `OUTSIDE`, as a LoRA does, and return each by name."""
    network = model.model.diffusion_model
    found = {}
    for name, layer in network.named_modules():
        if name.endswith((INSIDE, OUTSIDE)):
            shape = layer.out_features, layer.in_features
            found[name] = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    keys = {f"diffusion_model.{name}.weight": ("diff", (value,)) for name, value in found.items()}
    assert set(model.add_patches(keys)) == set(keys)
    return found
