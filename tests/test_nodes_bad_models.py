"""A MODEL that training cannot step on is refused in a sentence before the first step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import host_quantized, in_fewer_bits, with_layers
from tiny_models import TINY, Vae, conditions, known, tiny
from torch import Tensor, nn
from torch.nn.functional import linear

from mudi_core.types import SubjectSet


class Packed(nn.Linear):
    """Two weights of four bits in each byte, as nvfp4 and GGUF files have them; only the layer itself unpacks them."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.step = layer.weight.abs().max() / 7
        levels = (layer.weight / self.step).round().clamp(-7, 7).to(torch.int8) + 8
        packed = (levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.stack([self.weight // 16, self.weight % 16], dim=-1).flatten(-2)
        return linear(x, ((pairs.to(x.dtype) - 8) * self.step).to(x.dtype), self.bias)


class Scaled(nn.Linear):
    """Whole numbers of eight bits, and a scale for each row that only the layer itself knows of."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.steps = layer.weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight / self.steps).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, (self.weight * self.steps).to(x.dtype), self.bias)


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


def check(comfy: Comfy, mini: tuple[Any, Any, Any], model: Any, bf16: bool = False, base_weights: str = "full") -> None:
    """What Train LoRA asks of a MODEL before anything else."""
    convert = comfy.module("convert")
    encoded = convert.encode_image(mini[2], model)(torch.zeros(1, 64, 64, 3))[0]
    conditions = convert.encode_text(mini[1])(["a photo"])[0]
    comfy.module("denoiser").ComfyDenoiser(model, base_weights).check(encoded, conditions, bf16)


@pytest.mark.parametrize("kind", [Packed, Scaled])
@pytest.mark.parametrize("bf16", [False, True])
def test_layers_that_store_their_weights_in_an_unknown_way_are_named(
    comfy: Comfy, mini: tuple[Any, Any, Any], kind: type[nn.Module], bf16: bool
) -> None:
    """Also in half precision, where the answers of whole networks cannot be compared exactly."""
    check(comfy, mini, mini[0], bf16)
    sentence = rf"weights of \d+ of its \d+ layers .* cannot read \({kind.__name__}, such as .*attn1\.to_q\)"
    with pytest.raises(comfy.module("convert").BadModel, match=sentence):
        check(comfy, mini, with_layers(mini[0], kind), bf16)


def test_a_layer_that_says_how_its_weight_is_read_is_trained_upon(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    """As those of GGUF loaders do."""

    class Unpacking(Packed):
        def cast_bias_weight(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
            unit = torch.eye(self.in_features, dtype=dtype, device=device)
            bias = None if self.bias is None else self.bias.to(device, dtype)
            return (Packed.forward(self, unit) - (0 if bias is None else bias)).T.contiguous(), bias

    check(comfy, mini, with_layers(mini[0], Unpacking))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_fewer_bits_are_read(comfy: Comfy, mini: tuple[Any, Any, Any], dtype: torch.dtype) -> None:
    check(comfy, mini, in_fewer_bits(comfy, mini[0], dtype))


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise"])
def test_comfyuis_own_quantized_layers_are_read(
    comfy: Comfy, mini: tuple[Any, Any, Any], kind: str, smoothed: bool
) -> None:
    """``smoothed``: with the scale of the input that checkpoints quantized by AWQ bring."""
    if not hasattr(comfy.core("comfy.ops"), "mixed_precision_ops"):
        pytest.skip("this ComfyUI has no such layers")
    model = with_layers(mini[0], lambda layer: host_quantized(comfy, layer, kind, smoothed))
    check(comfy, mini, model)
    denoiser = comfy.module("denoiser").ComfyDenoiser(model)
    layer = next(one for one in denoiser.layers().values() if hasattr(one, "layout_type"))
    x = torch.randn(4, layer.in_features, requires_grad=True)
    with denoiser.ready(bf16=False):
        layer(x).square().sum().backward()
        (expected,) = torch.autograd.grad(x_times(layer, x).square().sum(), x)
    assert torch.allclose(x.grad, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("base_weights", ["full", "int8"])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8"])
def test_layers_that_this_device_cannot_compute_are_named(
    comfy: Comfy, mini: tuple[Any, Any, Any], kind: str, base_weights: str
) -> None:
    """CLIP and VAE are not what is wrong."""
    if not hasattr(comfy.core("comfy.ops"), "mixed_precision_ops"):
        pytest.skip("this ComfyUI has no such layers")
    model = with_layers(mini[0], lambda layer: host_quantized(comfy, layer, kind))
    sentence = rf"cannot compute on this device \(cpu\) with \d+ of .* layers \({kind}, such as .*attn1\.to_q\): .*fp16"
    with pytest.raises(comfy.module("convert").BadModel, match=sentence):
        check(comfy, mini, model, base_weights=base_weights)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8"])
def test_layers_that_only_a_card_computes_are_trained_upon_by_their_weights(
    comfy: Comfy, mini: tuple[Any, Any, Any], kind: str
) -> None:
    """What training computes of them needs no card: the product with the weight as ComfyUI unpacks it."""
    if not hasattr(comfy.core("comfy.ops"), "mixed_precision_ops"):
        pytest.skip("this ComfyUI has no such layers")
    denoiser = comfy.module("denoiser").ComfyDenoiser(
        with_layers(mini[0], lambda one: host_quantized(comfy, one, kind))
    )
    layer = next(one for one in denoiser.layers().values() if hasattr(one, "layout_type"))
    x = torch.randn(4, layer.in_features, requires_grad=True)
    with denoiser.ready(bf16=False):
        found = layer(x)
        found.square().sum().backward()
    expected = x_times(layer, x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(x.grad, gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def x_times(layer: Any, x: Tensor) -> Tensor:
    """The product by autograd itself, with the scale where the layer has it: on the input."""
    scale = getattr(layer, "pre_quant_scale", None)
    return linear(x if scale is None else x * scale.clone(), layer.weight.dequantize().float().clone(), layer.bias)


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION"])
def test_a_sampling_that_bends_the_answer_is_refused(comfy: Comfy, mini: tuple[Any, Any, Any], kind: str) -> None:
    """What the network should answer is only known where the clean latent is a sum of shares of answer and input."""
    law = comfy.core("comfy.model_sampling")
    own = mini[0].get_model_object("model_sampling")

    class Bent(law.ModelSamplingDiscrete, getattr(law, kind)):  # type: ignore[misc, name-defined]
        def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
            return super().calculate_denoised(sigma, model_output, model_input).clamp(-1, 1)

    bent = Bent(mini[0].model.model_config)
    bent.set_sigmas(own.sigmas)
    patched = mini[0].clone()
    patched.add_object_patch("model_sampling", bent)
    with pytest.raises(comfy.module("convert").BadModel, match="not taught noise in a way that is known here"):
        comfy.module("denoiser").ComfyDenoiser(patched)


class Reads:
    """A CLIP: what the text encoders of a family give, whatever the MODEL is."""

    def __init__(self, family: str) -> None:
        self.family, self.cond_stage_model = family, nn.Identity()

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict[str, Any]:
        read = conditions(self.family, seed=len(tokens))
        return {"cond": read.pop("cross_attn")[None], "pooled_output": None} | {n: v[None] for n, v in read.items()}


def vae_of(family: str) -> Vae:
    shape = TINY[family].latent
    return Vae(shape[0], 16 if shape[0] == 128 else 8, frames=len(shape) == 4)


@pytest.mark.parametrize(
    ("family", "clip", "vae", "words"),
    [
        ("flux1", "flux1", "flux1", ""),
        ("qwen_image", "qwen_image", "qwen_image", ""),
        ("flux1", "anima", "flux1", r"\(Flux\) cannot read what this CLIP .* Connect CLIP and VAE of the same"),
        ("sd3", "krea2", "sd3", r"\(SD3\) cannot read what this CLIP .* Connect CLIP and VAE of the same"),
        ("qwen_image", "anima", "qwen_image", r"\(QwenImage\) cannot read what this CLIP .* Connect CLIP and VAE"),
        ("flux1", "flux1", "aura_flow", "VAE makes latents of 4 channels, this MODEL reads 16. Connect the VAE of"),
        ("aura_flow", "aura_flow", "flux1", "VAE makes latents of 16 channels, this MODEL reads 4. Connect the VAE of"),
        ("flux1", "flux1", "flux2", "VAE makes latents of 128 channels, this MODEL reads 16. Connect the VAE of"),
        ("flux1", "flux1", "qwen_image", "VAE makes latents of 3 dimensions, this MODEL reads 2. Connect the VAE"),
        ("qwen_image", "qwen_image", "flux1", "VAE makes latents of 2 dimensions, this MODEL reads 3. Connect the VAE"),
    ],
)
def test_clip_and_vae_of_another_family_are_told(
    comfy: Comfy, drawn_subjects: SubjectSet, family: str, clip: str, vae: str, words: str
) -> None:
    """Before anything is trained; and Init Latent refuses the VAE with the same sentence."""
    model, encoder = tiny(comfy, family), vae_of(vae)
    bad = comfy.module("convert").BadModel
    (layout,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, mode="random", width=128, height=128, seed=3, text="", overlap=0.2,
        relative_sizes="",
    ).result[:1]  # fmt: skip

    def asked() -> None:
        comfy.module("base").ComfyBase(model, Reads(clip), encoder).check(bf16=False)

    def started() -> None:
        comfy.run("MudiInitLatent", layout=layout, vae=encoder, gamma=2.0, batch_size=1, seed=3, model=model)

    for step, wrong in ((asked, bool(words)), (started, vae != family)):
        if wrong:
            with pytest.raises(bad, match=words):
                step()
        else:
            step()


def test_a_model_that_draws_otherwise_than_by_noise_levels_known_here_is_told(comfy: Comfy) -> None:
    """Stable Cascade's stages, and an edit model that reads a second picture."""
    convert, names = comfy.module("convert"), comfy.module("denoiser.names")
    flux = tiny(comfy, "flux1")
    law = comfy.core("comfy.model_sampling")

    class Cascade(law.StableCascadeSampling, law.EPS):  # type: ignore[misc, name-defined]
        pass

    cascade = flux.clone()
    cascade.add_object_patch("model_sampling", Cascade())
    with pytest.raises(convert.BadModel, match="not taught noise in a way that is known here"):
        comfy.module("denoiser").ComfyDenoiser(cascade)
    assert names.usual_of(flux).remark == ""


@pytest.mark.parametrize("family", ["flux1-schnell", "z_image", "krea2"])
def test_a_distilled_model_is_warned_of_with_what_to_train_on(comfy: Comfy, family: str) -> None:
    if not known(comfy, family):
        pytest.skip(f"this ComfyUI has no {TINY[family].kind}")
    remark = comfy.module("denoiser").usual_of(tiny(comfy, family)).remark
    assert "is distilled to few steps, which training undoes: train on" in remark and "the LoRA on either" in remark
