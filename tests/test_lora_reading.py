"""LoRAs of every program are read: the change of each layer is what its own program, and ComfyUI, make of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from lora_files import FOLDER
from safetensors.torch import load_file, save_file
from tiny_sdxl import predict, tiny_unet
from torch import Tensor

from mudi_core.bases import sdxl
from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.families import usual
from mudi_core.lora.change import BadLora, Change
from mudi_core.lora.file import load_lora, save_lora, state_of
from mudi_core.lora.names import our_name, split, styled
from mudi_core.lora.reading import Lora, lora_of, read_lora
from mudi_core.lora.wear import layers_of, sizes_of, worn

FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
OTHERWISE = {"dora_rows", "lokr_tucker"}
"""ComfyUI divides by the norms of the weight before it is changed where DoRA's magnitudes are of rows, and leaves out
LoKr's Tucker form with an error in its log."""


def one(path: Path) -> tuple[Change, dict[str, Tensor], Tensor, Tensor]:
    """The only change in a file of `lora_files`, its tensors, the weight and what the program makes of it."""
    tensors = load_file(path)
    weight, merged = tensors.pop("weight"), tensors.pop("merged")
    lora = lora_of(tensors, {}, path.name)
    assert len(lora.changes) == 1 and not lora.unread
    return next(iter(lora.changes.values())), tensors, weight, merged


def by_comfyui(
    comfy: Comfy, tensors: Mapping[str, Tensor], layer: str, weight: Tensor, strength: float = 1.0
) -> Tensor:
    """What ComfyUI's own loader and adapters make of a weight."""
    lora = comfy.core("comfy.lora")
    with torch.inference_mode():
        patches = lora.load_lora(dict(tensors), {layer: "layer.weight"})
        patch = [(strength, patches["layer.weight"], 1.0, None, None)]
        changed: Tensor = lora.calculate_weight(patch, weight.clone(), "layer.weight")
    return changed


@pytest.mark.parametrize("name", FILES)
def test_a_change_is_what_its_own_program_makes(name: str) -> None:
    change, _, weight, merged = one(FOLDER / f"{name}.safetensors")
    assert change.size == (weight.shape[0], weight[0].numel())
    torch.testing.assert_close(weight + change.delta(weight), merged, rtol=0, atol=1e-5)
    assert (merged - weight).abs().max() > 0.01


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", FILES)
def test_a_change_is_what_comfyui_makes(comfy: Comfy, name: str, strength: float) -> None:
    change, tensors, weight, _ = one(FOLDER / f"{name}.safetensors")
    layer = next(iter(tensors)).split(".")[0]
    theirs, ours = by_comfyui(comfy, tensors, layer, weight, strength), weight + strength * change.delta(weight)
    if name in OTHERWISE:
        assert (theirs - ours).abs().max() > 1e-3
        return
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def check_in_comfyui(comfy: Comfy, changes: Mapping[str, Any], model: torch.nn.Module) -> None:
    """Compare what ComfyUI makes of every changed layer, as the nodes hand it on, with what the library makes of it."""
    weights = {name: layer.weight.detach() for name, layer in layers_of(model).items()}
    for name, change in changes.items():
        weight = weights[name]
        theirs = by_comfyui(comfy, change.tensors(name), name, weight)
        torch.testing.assert_close(theirs, weight + change.delta(weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_factors_are_the_change(name: str) -> None:
    change, _, weight, _ = one(FOLDER / f"{name}.safetensors")
    factors = change.factors(weight)
    if factors is None:
        assert name.startswith(("dora", "loha", "lokr", "glora_conv", "full"))
        return
    up, down = factors
    torch.testing.assert_close((up @ down).reshape(weight.shape), change.delta(weight), rtol=0, atol=1e-5)


def test_a_small_loha_on_a_wide_layer_has_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = {
        "hada_w1_a": (40, 2), "hada_w1_b": (2, 32), "hada_w2_a": (40, 3), "hada_w2_b": (3, 32),
    }  # fmt: skip
    change = Change("LoHa", {name: torch.randn(*shape, generator=generator) for name, shape in parts.items()}, 1.0)
    up, down = change.factors() or pytest.fail("no factors")
    assert up.shape == (40, 6)
    torch.testing.assert_close(up @ down, change.delta(torch.zeros(40, 32)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_changes_that_are_written_anew_are_the_same(comfy: Comfy, name: str) -> None:
    """`Lora.tensors` gives every kind the names that ComfyUI and we read."""
    change, _, weight, _ = one(FOLDER / f"{name}.safetensors")
    tensors = change.tensors("lora_unet_x")
    (again,) = lora_of(tensors, {}, "x").changes.values()
    assert torch.equal(again.delta(weight), change.delta(weight))
    theirs = by_comfyui(comfy, tensors, "lora_unet_x", weight)
    assert torch.equal(theirs, weight) == (name == "lokr_tucker")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_any_type_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    change, tensors, weight, _ = one(FOLDER / "lora.safetensors")
    stored = {key: value.to(dtype) for key, value in tensors.items()}
    save_file(stored, tmp_path / "lora.safetensors")
    (found,) = read_lora(tmp_path / "lora.safetensors").changes.values()
    plain = {key: value.float() for key, value in stored.items()}
    (wanted,) = lora_of(plain, {}, "x").changes.values()
    assert torch.equal(found.delta(weight), wanted.delta(weight))


def test_a_missing_alpha_is_a_scale_of_1(comfy: Comfy) -> None:
    change, tensors, weight, _ = one(FOLDER / "lora.safetensors")
    bare = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    (without,) = lora_of(bare, {}, "x").changes.values()
    assert change.scale == 0.5 and without.scale == 1.0
    layer = next(iter(bare)).split(".")[0]
    torch.testing.assert_close(
        weight + without.delta(weight), by_comfyui(comfy, bare, layer, weight), rtol=0, atol=1e-5
    )


# ------------------------------------------------------------------------------------------------ whole files

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1"]


def filled(network: Any) -> Any:
    """Give what an adapter's library left at its start, without effect, random values."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")) and "magnitude" not in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def peft_raw(unet: Any, **settings: Any) -> tuple[dict[str, Tensor], dict[str, str], Any]:
    """What peft itself saves of an adapter on a U-Net, its settings, and the U-Net that wears it."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    kind = settings.pop("kind", LoraConfig)
    wearing = filled(get_peft_model(unet, kind(target_modules=TARGETS, **settings)))
    config = {key: value for key, value in wearing.peft_config["default"].to_dict().items() if key != "target_modules"}
    return get_peft_model_state_dict(wearing), {"lora_adapter_metadata": json.dumps(config, default=str)}, wearing


def kinds_of_peft() -> dict[str, dict[str, Any]]:
    from peft import LoHaConfig

    return {
        "LoRA": {"r": 4, "lora_alpha": 4},
        "LoRA with an alpha": {"r": 4, "lora_alpha": 10},
        "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True},
        "DoRA": {"r": 4, "lora_alpha": 4, "use_dora": True},
        "LoHa": {"kind": LoHaConfig, "r": 3, "alpha": 3},
    }


@pytest.mark.parametrize("kind", ["LoRA", "LoRA with an alpha", "rsLoRA", "DoRA", "LoHa"])
def test_what_peft_saves_answers_as_in_peft(comfy: Comfy, kind: str, tmp_path: Path) -> None:
    tensors, settings, wearing = peft_raw(tiny_unet(), **kinds_of_peft()[kind])
    expected, plain = predict(wearing), tiny_unet()
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "adapter_model.safetensors")
    if kind != "LoHa":
        (tmp_path / "adapter_config.json").write_text(settings["lora_adapter_metadata"])
    lora = read_lora(tmp_path / "adapter_model.safetensors")
    matched = lora.on(sizes_of(plain))
    assert not matched.missing and not matched.unread and len(matched.changes) == len(lora.changes) > 40
    base = predict(plain)
    with worn(plain, (matched.changes, 1.0)):
        torch.testing.assert_close(predict(plain), expected, rtol=0, atol=1e-5)
    assert torch.equal(predict(plain), base) and (base - expected).abs().max() > 1e-3
    if kind != "DoRA":  # ComfyUI's of rows is another: `OTHERWISE`
        check_in_comfyui(comfy, matched.changes, plain)


def test_what_diffusers_saves_answers_as_in_diffusers(comfy: Comfy, tmp_path: Path) -> None:
    """`save_lora_weights` of a pipeline, with the alphas that diffusers writes into the file's metadata."""
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = tiny_unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS))
    expected = predict(filled(unet))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    about = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **about)
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert next(iter(lora.written.values())).startswith("unet.")
    plain = tiny_unet()
    changes = lora.on(sizes_of(plain)).changes
    with worn(plain, (changes, 1.0)):
        torch.testing.assert_close(predict(plain), expected, rtol=0, atol=1e-5)
    check_in_comfyui(comfy, changes, plain)


def other_names(state: Mapping[str, Tensor], modules: Mapping[str, str], style: str) -> dict[str, Tensor]:
    """A LoRA under the names of another program. ``modules``: diffusers' names of the layers by ours."""
    made: dict[str, Tensor] = {}
    for key, value in state.items():
        name, part = key.split(".", 1)
        which, module = part.split(".")[0].removeprefix("lora_"), modules[name]
        processor = module.replace(".to_", ".processor.to_").removesuffix(".0")
        if part == "alpha":
            continue
        letter = {"down": "A", "up": "B"}[which]
        made[
            {
                "unet.lora.down": f"unet.{module}.lora.{which}.weight",
                "unet.lora_A": f"unet.{module}.lora_{letter}.weight",
                "peft": f"base_model.model.{module}.lora_{letter}.weight",
                "peft, named": f"base_model.model.unet.{module}.lora_{letter}.default.weight",
                "processors": f"{processor}_lora.{which}.weight",
                "unet.processors": f"unet.{processor}_lora.{which}.weight",
                "diffusion_model": f"diffusion_model.{module}.lora_{which}.weight",
                "lycoris": f"lycoris_{module.replace('.', '_')}.lora_{which}.weight",
            }[style]
        ] = value
    return made


@pytest.fixture(scope="module")
def mini_state() -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA of rank 3 on all attention of the embedded model, its scale 1, and diffusers' names by ours."""
    denoiser = open_checkpoint("mini").denoiser()
    generator = torch.Generator().manual_seed(0)
    state, modules = {}, {}
    for name, layer in denoiser.layers().items():
        if ".attn" in name:
            ours = denoiser.file_name(name)
            modules[ours] = name
            state[f"{ours}.lora_down.weight"] = torch.randn(3, layer.weight.shape[1], generator=generator)
            state[f"{ours}.lora_up.weight"] = torch.randn(layer.weight.shape[0], 3, generator=generator)
            state[f"{ours}.alpha"] = torch.tensor(3.0)
    return state, modules


STYLES = (
    "unet.lora.down", "unet.lora_A", "peft", "peft, named", "processors", "unet.processors",
    "diffusion_model", "lycoris",
)  # fmt: skip
SILENT = {"unet.lora.down", "unet.lora_A", "peft", "peft, named", "diffusion_model"}
"""ComfyUI finds no layer of SDXL's in these files, and says so only in its log. (It does read ``diffusion_model`` with
its own names.)"""


@pytest.mark.parametrize("style", STYLES)
def test_all_names_of_a_layer_are_one(comfy: Comfy, mini_state: Any, style: str) -> None:
    state, modules = mini_state
    tensors = other_names(state, modules, style)
    lora = lora_of(tensors, {}, "x.safetensors")
    assert lora.changes.keys() == modules.keys() and not lora.unread
    unet = open_checkpoint("mini").unet
    matched = lora.on(sizes_of(unet))
    assert not matched.missing and str(len(modules)) in matched.told()
    for name in modules:
        assert torch.equal(lora.changes[name].parts["lora_down.weight"], state[f"{name}.lora_down.weight"])
    model, *_ = comfy.run("MudiMiniCheckpoint").args
    found = comfy.core("comfy.lora").load_lora(
        dict(tensors), comfy.core("comfy.lora").model_lora_keys_unet(model.model, {}), log_missing=False
    )
    assert len(found) == (0 if style in SILENT else len(modules))
    read = comfy.core("comfy.lora").load_lora(
        lora.tensors(), comfy.core("comfy.lora").model_lora_keys_unet(model.model, {})
    )
    assert len(read) == len(modules)


def full_sdxl() -> Any:
    from diffusers import UNet2DConditionModel

    config = json.loads((Path(sdxl.__file__).parent / "unet" / "config.json").read_text())
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)


def test_stabilitys_names_are_those_of_comfyuis_modules(comfy: Comfy) -> None:
    """All layers of SDXL and SD, convolutions too, there and back."""
    names = comfy.core("comfy.utils").unet_to_diffusers
    for config in (
        {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
         "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
        {"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
         "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1},
    ):  # fmt: skip
        for theirs, stability in names(config).items():
            if theirs.endswith(".weight") and "class_embedding" not in theirs:  # SDXL's add_embedding once more
                ours = "lora_unet_" + theirs.removesuffix(".weight").replace(".", "_")
                sgm = "lora_unet_" + stability.removesuffix(".weight").replace(".", "_")
                assert our_name(sgm) == ours, sgm
                is_sdxls = len(config["num_res_blocks"]) == 3 and "up_blocks_2_" not in ours  # type: ignore[arg-type]
                if is_sdxls or "upsamplers" not in ours:
                    assert styled(ours, "sgm") == sgm
                assert styled(ours, "diffusers") == ours
    assert sum("attentions" in name for name in layers_of(full_sdxl())) == 722


def _as_path(name: str) -> str:
    """kohya's `sdxl_merge_lora` and LyCORIS' `merge`: this prefix, and the path of Stability's module."""
    return f"lora_unet_{name.replace('.', '_')}"


def test_our_files_for_sdxl_are_found_whole_by_the_rule_of_other_programs(comfy: Comfy, tmp_path: Path) -> None:
    """Every layer of the 70 transformer blocks and beside them, each under its own module, told by a number.

    The rule is kohya's and LyCORIS'; A1111's and Forge's differs in the prefix alone (extensions-builtin/Lora). ComfyUI
    and diffusers have tests that run them. kohya's own module names (sd-scripts 48d368fa) gave the same 722.
    """
    layers = {name: layer for name, layer in layers_of(full_sdxl()).items() if "attentions" in name}
    state = {}
    for number, (name, layer) in enumerate(layers.items(), start=1):
        out, width = layer.weight.shape[:2]  # type: ignore[union-attr,index]
        state[f"{name}.lora_down.weight"] = torch.full((1, width), float(number))
        state[f"{name}.lora_up.weight"] = torch.zeros(out, 1)
        state[f"{name}.alpha"] = torch.tensor(1.0)
    save_lora(tmp_path / "ours.safetensors", state, {}, torch.float32, usual("x", "sdxl_base_v1-0").file_names)
    file = {
        key.removesuffix(".lora_down.weight"): value
        for key, value in load_file(tmp_path / "ours.safetensors").items()
        if key.endswith(".lora_down.weight")
    }
    modules = comfy.core("comfy.utils").unet_to_diffusers(
        {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
         "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
    )  # fmt: skip
    found = {}
    for theirs, path in modules.items():
        down = file.get(_as_path(path.removesuffix(".weight"))) if path.endswith(".weight") else None
        if down is not None:
            found[_as_path(theirs.removesuffix(".weight"))] = float(down[0, 0])
    assert found == {name: number for number, name in enumerate(layers, start=1)} and len(found) == 722


def test_text_encoders_have_one_name() -> None:
    ours = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    for theirs in (
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj",
        ours,
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
        "text_encoder.encoder.layers.3.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.3.self_attn.to_q",
        "base_model.model.text_model.encoder.layers.3.self_attn.q_proj",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
    ):
        assert our_name(theirs) == ours, theirs
    for theirs in (
        "lora_te2_text_model_encoder_layers_3_mlp_fc1",
        "text_encoder_2.text_model.encoder.layers.3.mlp.fc1",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1",
    ):
        assert our_name(theirs) == "lora_te2_text_model_encoder_layers_3_mlp_fc1"
    assert split("text_encoder.a.q_proj.lora_linear_layer.down.weight") == ("text_encoder.a.q_proj", "lora_down.weight")


def test_a_text_encoders_lora_by_peft_answers_as_in_peft() -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    def encoder() -> Any:
        return open_checkpoint("mini")._encoders().text_encoders[1]

    wearing = filled(get_peft_model(encoder(), LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "fc1"])))
    state = {f"text_encoder_2.{key}": value for key, value in get_peft_model_state_dict(wearing).items()}
    ids = torch.arange(1, 78)[None]
    expected, plain = wearing(ids)[0], encoder()
    lora = lora_of(state, {}, "x")
    assert all(name.startswith("lora_te2_text_model_encoder_layers_") for name in lora.changes)
    with torch.no_grad(), worn(plain, (lora.on(sizes_of(plain, "lora_te2_")).changes, 1.0), prefix="lora_te2_"):
        torch.testing.assert_close(plain(ids)[0], expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what is wrong


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] = {}) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, dict(about))
    return path


def linear(name: str, out: int = 8, wide: int = 12, rank: int = 2) -> dict[str, Tensor]:
    return {f"{name}.lora_down.weight": torch.ones(rank, wide), f"{name}.lora_up.weight": torch.ones(out, rank)}


@pytest.mark.parametrize(
    "name, kind",
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "FLUX"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "SD 3"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", "SD 1.x"),
    ],
)
def test_a_lora_of_another_kind_of_model_is_told_with_its_kind(name: str, kind: str) -> None:
    lora = lora_of(linear(name, wide=768), {}, "mine.safetensors")
    with pytest.raises(BadLora, match=f"None of the 1 layers that mine.safetensors changes is in the model: {kind}"):
        lora.on({"lora_unet_other": (8, 12)})


def test_a_layer_of_another_size_is_told_with_both_sizes() -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = lora_of(linear(name, 320, 768), {}, "mine.safetensors")
    with pytest.raises(BadLora, match=r"another size \(SD 1.x\).*640 x 2048 here, 320 x 768 in the file"):
        lora.on({name: (640, 2048)})


def test_what_is_not_in_the_model_and_not_understood_is_counted() -> None:
    here, there = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_somewhere_else"
    odd = {f"{here}.oft_blocks": torch.ones(2, 2, 2), f"{here}.diff_b": torch.ones(8)}
    matched = lora_of({**linear(here), **linear(there), **odd}, {}, "x").on({here: (8, 12)})
    assert matched.missing == (there,) and len(matched.unread) == 2
    assert "1 layer of the network is changed; 1 is not in the model, such as" in matched.told()
    assert "2 tensors are not understood, such as" in matched.told()


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({}, "it is empty"),
        ({"model.conv.weight": torch.ones(2)}, "no LoRA that can be read here: it has 'model.conv.weight'"),
        ({"a.lora_down.weight": torch.ones(2, 3)}, "'lora_up.weight' is missing of x: a"),
        ({"a.lora_down.weight": torch.ones(2, 3), "a.lora_up.weight": torch.ones(4, 3)}, "do not fit together"),
        ({"a.hada_w1_a": torch.ones(2, 3)}, "'hada_w1_b' is missing"),
        ({"a.lokr_w1": torch.ones(2, 3)}, "do not fit together"),
        ({**linear("a"), "a.alpha": torch.tensor([1.0, 2.0])}, "alpha of x: a is no number"),
        ({**linear("a"), "a.alpha": torch.tensor(float("nan"))}, "alpha of x: a is no number"),
        ({**linear("lora_unet_a"), **linear("unet.a")}, "twice under two names"),
        ({"a.a1.weight": torch.ones(8, 2), "a.a2.weight": torch.ones(2, 8), "a.b1.weight": torch.ones(8, 3),
          "a.b2.weight": torch.ones(2, 8)}, "do not fit together"),
    ],
)  # fmt: skip
def test_files_that_are_no_lora_or_damaged_are_told(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadLora, match=message):
        lora_of(tensors, {}, "x")


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"lora_alpha": "x"}', '{"lora_alpha": NaN}', '{"lora_alpha": -1}', "[" * 100_000]
)
def test_settings_that_say_nothing_leave_a_scale_of_1(text: str) -> None:
    (change,) = lora_of(linear("unet.a"), {"lora_adapter_metadata": text}, "x").changes.values()
    assert change.scale == 1.0


def test_names_from_a_file_are_shown_without_letters_that_a_page_or_terminal_reads() -> None:
    with pytest.raises(BadLora) as error:
        lora_of({"\x1b[31m<script>" + "y" * 5000: torch.ones(2)}, {}, "x")
    assert "\x1b" not in str(error.value) and "<" not in str(error.value) and len(str(error.value)) < 400


# ------------------------------------------------------------------------------------------------ starting from any


@pytest.mark.parametrize("style", STYLES)
def test_a_training_starts_from_a_lora_of_any_program(mini_state: Any, style: str, tmp_path: Path) -> None:
    state, modules = mini_state
    path = save(tmp_path / "x.safetensors", other_names(state, modules, style))
    loaded, _ = load_lora(path)
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_loha_of_linear_layers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"hada_w1_a": (40, 2), "hada_w1_b": (2, 32), "hada_w2_a": (40, 2), "hada_w2_b": (2, 32)}
    tensors = {f"lora_unet_a.{part}": torch.randn(*shape, generator=generator) for part, shape in shapes.items()}
    lora = lora_of(tensors, {}, "x")
    state = state_of(lora)
    (again,) = lora_of(state, {}, "x").changes.values()
    torch.testing.assert_close(
        again.delta(torch.zeros(40, 32)), lora.changes["lora_unet_a"].delta(torch.zeros(40, 32)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "lora",
    [
        lora_of({**linear("lora_unet_a"), **linear("lora_te1_text_model_encoder_layers_0_mlp_fc1")}, {}, "x"),
        lora_of({"lora_unet_a.lora_down.weight": torch.ones(2, 4, 3, 3),
                 "lora_unet_a.lora_up.weight": torch.ones(4, 2, 1, 1)}, {}, "x"),
        lora_of({**linear("lora_unet_a"), "lora_unet_a.dora_scale": torch.ones(8, 1)}, {}, "x"),
        lora_of({**linear("lora_unet_a"), "lora_unet_b.diff_b": torch.ones(8)}, {}, "x"),
    ],
    ids=["text encoders", "convolutions", "DoRA", "biases"],
)  # fmt: skip
def test_what_a_training_cannot_start_from_is_told(lora: Lora) -> None:
    with pytest.raises(BadLora, match="more than linear layers of the network.*Load it in ComfyUI onto the model"):
        state_of(lora)


def test_a_worn_network_is_afterwards_the_very_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_unet()
    before = {name: (id(value), value.data_ptr(), value.clone()) for name, value in unet.named_parameters()}
    name = next(name for name in sizes_of(unet) if name.endswith("attn1_to_q"))
    out, wide = sizes_of(unet)[name]
    lora = lora_of(linear(name, out, wide), {}, "x")
    base = predict(unet)
    fails: Callable[..., Tensor] = lambda *_: (_ for _ in ()).throw(RuntimeError("no memory"))  # noqa: E731
    with worn(unet, (lora.changes, 1.0)):
        assert not torch.equal(predict(unet), base)
    with worn(unet, (lora.changes, 0.0)):
        assert torch.equal(predict(unet), base)
    monkeypatch.setattr(Change, "delta", fails)
    with pytest.raises(RuntimeError), worn(unet, (lora.changes, 1.0)):
        pass
    for key, value in unet.named_parameters():
        identity, place, was = before[key]
        assert id(value) == identity and value.data_ptr() == place and torch.equal(value, was)


def test_our_own_files_are_read_as_before(mini_state: Any, tmp_path: Path) -> None:
    state, _ = mini_state
    save_lora(tmp_path / "x.safetensors", state, {"mudi_base": "mini"}, dtype=torch.float32)
    loaded, about = load_lora(tmp_path / "x.safetensors")
    assert about == {"mudi_base": "mini"} and all(torch.equal(loaded[key], state[key]) for key in state)


def crafted(**shapes: tuple[int, ...]) -> Lora:
    parts = {name.replace("_weight", ".weight"): torch.zeros(shape) for name, shape in shapes.items()}
    return lora_of({f"lora_unet_x.{part}": tensor for part, tensor in parts.items()}, {}, "crafted.safetensors")


@pytest.mark.parametrize(
    "shapes",
    [
        {"lora_down_weight": (1, 100_000), "lora_mid_weight": (1, 1, 100_000), "lora_up_weight": (1, 1)},
        {"lora_down_weight": (1, 300_000), "lora_mid_weight": (300_000, 1), "lora_up_weight": (1, 300_000)},
        {"hada_w1_a": (9000, 60), "hada_w1_b": (60, 9000), "hada_w2_a": (9000, 70), "hada_w2_b": (70, 9000)},
    ],
    ids=["kernel", "middle", "LoHa"],
)
def test_a_small_file_does_not_unfold_to_gigabytes(shapes: dict[str, tuple[int, ...]]) -> None:
    lora = crafted(**shapes)
    assert [change.factors() for change in lora.changes.values()] == [None]
    with pytest.raises(BadLora, match="not by two matrices each"):
        state_of(lora)


@pytest.mark.parametrize(
    "shapes",
    [
        {"hada_w1_a": (4, 0), "hada_w1_b": (0, 4), "hada_w2_a": (4, 0), "hada_w2_b": (0, 4), "alpha": ()},
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 0), "lokr_w2_b": (0, 2), "alpha": ()},
        {"a1_weight": (0, 2), "a2_weight": (2, 0), "b1_weight": (4, 2), "b2_weight": (2, 4), "alpha": ()},
        {"lora_down_weight": (), "lora_up_weight": (), "alpha": ()},
        {"lokr_w1": (2**31, 0), "lokr_w2": (0, 2**31)},
        {"diff": (0,)},
    ],
    ids=["LoHa", "LoKr", "GLoRA", "points", "huge", "nothing"],
)
def test_matrices_of_no_ranks_are_refused(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(BadLora, match="do not fit together"):
        crafted(**shapes)


def test_a_long_list_of_alphas_takes_no_time() -> None:
    tensors = {f"unet.b{n}.lora_{part}.weight": torch.zeros(1, 1) for n in range(5000) for part in "AB"}
    pattern = {f"layer.{n}": 2 for n in range(40_000)} | {"b7": 3.0}
    settings = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": pattern})
    begun = time.process_time()
    lora = lora_of(tensors, {"lora_adapter_metadata": settings}, "a.safetensors")
    assert time.process_time() - begun < 20
    alphas = {change.alpha for change in lora.changes.values()}
    assert len(lora.changes) == 5000 and alphas == {3.0, 4.0}
