"""The LoRA and its file: what was trained is what every program loads, and the U-Net stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sdxl import TRUE, denoiser, predict, tiny_unet

from mudi_core.bases import sdxl
from mudi_core.bases.families import usual
from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.lora.file import BadLora, LoraState, kohya_name, load_lora, save_lora
from mudi_core.lora.metadata import lora_metadata
from mudi_core.lora.names import Style
from mudi_core.tensor_file import BadTensorFile
from mudi_core.train.config import TrainConfig
from mudi_core.train.parts import BadTrainConfig, Learning
from mudi_core.types import Photo, Subject, SubjectSet

TARGETS = TrainConfig().learning.target_modules
LAYERS = 4 * 2 * 4  # four transformers of one block x two attentions x four linear layers


def trained(unet: Any, rank: int = 4, alpha: float = 8.0) -> tuple[LoraState, torch.Tensor]:
    """A LoRA with random values everywhere, as after a training, and what the U-Net answers while it wears it."""
    generator = torch.Generator().manual_seed(1)
    with Adapter.new(denoiser(unet), rank, alpha, TARGETS) as adapter:
        adapter.start(0)
        for parameter in adapter.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        return adapter.state(), predict(unet)


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet()


@pytest.fixture(scope="module")
def subjects() -> SubjectSet:
    image, mask = torch.zeros(8, 8, 3), torch.ones(8, 8)
    return SubjectSet(
        tuple(
            Subject(token, noun, (Photo("a.png", image),), (mask,)) for token, noun in (("olis", "dog"), ("hta", "cat"))
        )
    )


def test_a_fresh_lora_changes_nothing_and_off_is_the_base(unet: Any) -> None:
    base = predict(unet)
    with Adapter.new(denoiser(unet), 4, 8.0, TARGETS) as adapter:
        adapter.start(0)
        assert torch.equal(predict(unet), base)
        for parameter in adapter.parameters():
            parameter.data.fill_(0.1)
        assert (predict(unet) - base).abs().max() > 1e-3
        with adapter.off():
            assert torch.equal(predict(unet), base)
        assert (predict(unet) - base).abs().max() > 1e-3


def test_the_start_is_gaussian_and_hangs_on_the_seed_alone(unet: Any) -> None:
    def start(seed: int) -> LoraState:
        with Adapter.new(denoiser(unet), 16, 16.0, TARGETS) as adapter:
            adapter.start(seed)
            return adapter.state()

    first, again, other = start(3), start(3), start(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    down = torch.cat([value.flatten() for key, value in first.items() if "lora_down" in key])
    assert down.std().item() == pytest.approx(1 / 16, rel=0.02) and abs(down.mean().item()) < 1e-3
    assert all((value == 0).all() for key, value in first.items() if "lora_up" in key)
    assert not torch.equal(down, torch.cat([value.flatten() for key, value in other.items() if "lora_down" in key]))


def test_putting_a_lora_on_leaves_the_callers_random_numbers_alone(unet: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Adapter.new(denoiser(unet), 4, 4.0, TARGETS) as adapter:
        adapter.start(0)
    assert torch.equal(torch.rand(3), expected)


def test_removing_gives_back_the_very_same_unet() -> None:
    unet = tiny_unet()
    next(unet.parameters()).requires_grad_(False)
    before = {name: (id(value), value.requires_grad, value.clone()) for name, value in unet.named_parameters()}
    modules = [(name, id(module)) for name, module in unet.named_modules()]
    adapter = apply_lora(unet, trained(unet)[0])
    adapter.remove()
    adapter.remove()
    assert [(name, id(module)) for name, module in unet.named_modules()] == modules
    after = dict(unet.named_parameters())
    assert after.keys() == before.keys()
    for name, (identity, grad, value) in before.items():
        assert id(after[name]) == identity and after[name].requires_grad == grad and torch.equal(after[name], value)


def test_a_second_lora_is_refused(unet: Any) -> None:
    state, _ = trained(unet)
    with apply_lora(unet, state), pytest.raises(BadLora, match="already has a LoRA"):
        apply_lora(unet, state)


@pytest.mark.parametrize("rank, alpha", [(4, 4.0), (4, 8.0), (2, 0.5)])
def test_the_file_gives_back_what_was_trained(unet: Any, tmp_path: Path, rank: int, alpha: float) -> None:
    state, expected = trained(unet, rank, alpha)
    file = tmp_path / "new folder" / "lora.safetensors"
    save_lora(file, state, {"mudi_base": "mini"}, dtype=torch.float32)
    loaded, metadata = load_lora(file)
    assert metadata == {"mudi_base": "mini"}
    assert loaded.keys() == state.keys() and len(loaded) == 3 * LAYERS
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    with apply_lora(unet, file):
        torch.testing.assert_close(predict(unet), expected, rtol=0, atol=1e-6)
    assert [path.name for path in file.parent.iterdir()] == ["lora.safetensors"]


def test_the_file_is_half_precision_by_default_and_close_to_what_was_trained(unet: Any, tmp_path: Path) -> None:
    state, expected = trained(unet)
    save_lora(tmp_path / "lora.safetensors", state, {})
    stored = load_file(tmp_path / "lora.safetensors")
    assert {value.dtype for key, value in stored.items() if not key.endswith(".alpha")} == {torch.float16}
    base = predict(unet)
    with apply_lora(unet, tmp_path / "lora.safetensors"):
        assert (predict(unet) - expected).abs().max() < 0.01 * (base - expected).abs().max()


def test_the_same_lora_is_the_same_bytes(unet: Any, tmp_path: Path) -> None:
    state, _ = trained(unet)
    described = {f"key_{i}": str(i) for i in range(20)}
    for name in ("a", "b", "c"):
        save_lora(tmp_path / name, state, described)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert load_lora(tmp_path / "a")[1] == described


def test_every_attention_layer_is_in_the_file_with_its_alpha(unet: Any) -> None:
    state, _ = trained(unet)
    attention = [name for name, _ in unet.named_modules() if name.endswith(TARGETS)]
    assert len(attention) == LAYERS
    for name in attention:
        assert state[f"lora_unet_{name.replace('.', '_')}.alpha"].item() == 8.0
    assert kohya_name("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0") == (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )


def test_scale_0_is_the_base_and_scale_weights_the_effect(unet: Any) -> None:
    state, _ = trained(unet)
    base = predict(unet)
    with apply_lora(unet, state, scale=0.0):
        assert torch.equal(predict(unet), base)
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in state.items()}
    with apply_lora(unet, halved):
        expected = predict(unet)
    with apply_lora(unet, state, scale=0.5):
        assert torch.equal(predict(unet), expected)


@pytest.mark.parametrize("style", ["diffusers", "sgm"])
def test_diffusers_loads_the_file_to_the_same_effect(style: Style, tmp_path: Path) -> None:
    """With its own names, and with those of kohya's scripts for SDXL, which our files of SDXL have."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline

    unet, own = tiny_unet(blocks=TRUE), tiny_unet(blocks=TRUE)
    state, expected = trained(unet)
    metadata = {"ss_network_dim": "4", "mudi_tokens": "[]"}
    save_lora(tmp_path / "lora.safetensors", state, metadata, torch.float32, style)
    stored = load_file(tmp_path / "lora.safetensors")
    assert len(stored) == len(state) == 3 * 560 and (stored.keys() == state.keys()) == (style == "diffusers")
    assert any(key.startswith("lora_unet_input_blocks_4_1_") for key in stored) == (style == "sgm")
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=8),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=own,
        scheduler=DDIMScheduler(),
    )
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    effect = (predict(own) - predict(unet)).abs().max()
    assert effect > 0.01 and (predict(own) - expected).abs().max() < 1e-4 * max(1.0, float(effect))


def test_a_file_of_another_size_or_kind_of_model_names_the_difference(unet: Any) -> None:
    state, _ = trained(unet)
    wider = {key: value.repeat(1, 2) if "lora_down" in key else value for key, value in state.items()}
    with pytest.raises(BadLora, match="another size"):
        apply_lora(unet, wider)
    foreign = {key.replace("mid_block", "middle"): value for key, value in state.items()}
    with pytest.raises(BadLora, match="another kind of model.*middle"):
        apply_lora(unet, foreign)


def test_layers_may_have_ranks_and_alphas_of_their_own(unet: Any) -> None:
    state, expected = trained(unet)
    mixed = dict(state)
    for name in [key.removesuffix(".alpha") for key in state if key.endswith(".alpha") and "mid_" in key]:
        up = mixed[f"{name}.lora_up.weight"]
        mixed[f"{name}.lora_down.weight"] = mixed[f"{name}.lora_down.weight"].repeat(
            2, 1
        )  # the same, of twice the rank
        mixed[f"{name}.lora_up.weight"] = torch.cat([up / 4, up / 4], dim=1)
        mixed[f"{name}.alpha"] = 4 * mixed[f"{name}.alpha"]
    with apply_lora(unet, mixed):
        torch.testing.assert_close(predict(unet), expected, rtol=0, atol=1e-5)


def test_files_that_are_no_lora_are_told_apart(unet: Any, tmp_path: Path) -> None:
    with pytest.raises(BadTensorFile, match="no file"):
        load_lora(tmp_path / "none.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("not a tensor")
    with pytest.raises(BadTensorFile, match="not a complete safetensors file"):
        load_lora(text)
    state, _ = trained(unet)
    for name, tensors, message in (
        ("weights", {"conv.weight": torch.zeros(2)}, "conv.weight"),
        ("halved", {key: value for key, value in state.items() if "lora_up" not in key}, "lora_up.weight' is missing"),
        ("empty", {}, "empty"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(BadLora, match=message):
            load_lora(tmp_path / f"{name}.safetensors")


KOHYA_SDXL = {
    "input_blocks_4_1": "down_blocks_1_attentions_0",
    "input_blocks_5_1": "down_blocks_1_attentions_1",
    "input_blocks_7_1": "down_blocks_2_attentions_0",
    "input_blocks_8_1": "down_blocks_2_attentions_1",
    "middle_block_1": "mid_block_attentions_0",
    "output_blocks_0_1": "up_blocks_0_attentions_0",
    "output_blocks_1_1": "up_blocks_0_attentions_1",
    "output_blocks_2_1": "up_blocks_0_attentions_2",
    "output_blocks_3_1": "up_blocks_1_attentions_0",
    "output_blocks_4_1": "up_blocks_1_attentions_1",
    "output_blocks_5_1": "up_blocks_1_attentions_2",
}
"""Where kohya's SDXL tools put what diffusers calls so: every place of SDXL that has attention."""


def test_kohyas_names_of_sdxls_blocks_find_all_its_attention(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = json.loads((Path(sdxl.__file__).parent / "unet" / "config.json").read_text())
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(config)
    theirs: LoraState = {}
    places = {ours: kohya for kohya, ours in KOHYA_SDXL.items()}
    for module, layer in full.named_modules():
        if any(module.endswith("." + name) for name in TARGETS):
            ours, rest = kohya_name(module).removeprefix("lora_unet_").split("_transformer_blocks_")
            name = f"lora_unet_{places[ours]}_transformer_blocks_{rest}"
            theirs[name + ".lora_down.weight"] = torch.full((1, layer.in_features), float(len(theirs)))
            theirs[name + ".lora_up.weight"] = torch.zeros(layer.out_features, 1)
            theirs[name + ".alpha"] = torch.tensor(1.0)
    save_file(theirs, tmp_path / "kohya.safetensors")
    state, _ = load_lora(tmp_path / "kohya.safetensors")
    asked = denoiser(full)
    named = {asked.file_name(name) for name in asked.layers() if name.endswith(TARGETS)}
    assert named == {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")} and len(named) == 560
    for kohya, ours in KOHYA_SDXL.items():
        name = "_transformer_blocks_0_attn2_to_out_0.lora_down.weight"
        assert torch.equal(state[f"lora_unet_{ours}{name}"], theirs[f"lora_unet_{kohya}{name}"])


def test_sdxls_files_have_the_names_that_kohyas_scripts_read(tmp_path: Path) -> None:
    """ComfyUI, A1111, Forge and diffusers read both; kohya's `sdxl_merge_lora` found none of diffusers' names."""
    state: LoraState = {}
    for ours in KOHYA_SDXL.values():
        name = f"lora_unet_{ours}_transformer_blocks_0_attn2_to_out_0"
        state |= {f"{name}.lora_down.weight": torch.randn(1, 3), f"{name}.lora_up.weight": torch.randn(4, 1)}
        state[f"{name}.alpha"] = torch.tensor(1.0)
    style = usual("some.safetensors", "sdxl_base_v1-0").file_names
    assert style == "sgm" and usual("mini").file_names == "diffusers" and usual("x", "sd_v1").file_names == "sd"
    save_lora(tmp_path / "x.safetensors", state, {}, torch.float32, style)
    stored = load_file(tmp_path / "x.safetensors")
    assert {key.split("_transformer")[0] for key in stored} == {f"lora_unet_{place}" for place in KOHYA_SDXL}
    loaded, _ = load_lora(tmp_path / "x.safetensors")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_values_that_half_precision_cannot_hold_are_not_written(unet: Any, tmp_path: Path) -> None:
    state, _ = trained(unet)
    state[next(iter(state))][0, 0] = 1e6
    with pytest.raises(BadLora, match="cannot hold"):
        save_lora(tmp_path / "lora.safetensors", state, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one_whole(unet: Any, tmp_path: Path, monkeypatch: Any) -> None:
    state, _ = trained(unet)
    file = tmp_path / "lora.safetensors"
    save_lora(file, state, {"version": "1"})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(BadTensorFile, match="disk full"):
        save_lora(file, state, {"version": "2"})
    assert load_lora(file)[1] == {"version": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]
    with pytest.raises(BadTensorFile, match="Cannot write"):
        save_lora(file / "below a file" / "lora.safetensors", state, {})


def test_the_metadata_tells_what_was_trained(unet: Any, subjects: SubjectSet, tmp_path: Path) -> None:
    config = TrainConfig.of(rank=4, alpha=2.0, steps=7, seed=9, learning_rate=3e-4)
    metadata = lora_metadata(config.described(), subjects, base="mini", plan_hash="abc")
    save_lora(tmp_path / "lora.safetensors", trained(unet)[0], metadata)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        read = file.metadata()
    assert read.pop("mudi_checksum").startswith("crc32:") and read == metadata
    assert json.loads(read["mudi_tokens"]) == ["olis", "hta"] and json.loads(read["mudi_class_nouns"]) == ["dog", "cat"]
    assert json.loads(read["mudi_config"])["layout"]["scale"] == [0.75, 1.0]
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_learning_rate": "0.0003",
        "ss_steps": "7",
        "ss_seed": "9",
        "mudi_base": "mini",
        "mudi_plan_hash": "abc",
    }
    assert expected.items() <= read.items()


@pytest.mark.parametrize(
    "setting",
    [
        {"method": "lora"},
        {"steps": 0},
        {"batch_size": 0},
        {"resolution": 100},
        {"resolution": (64, 64, 64)},
        {"learning_rate": 0.0},
        {"betas": (0.9, 1.0)},
        {"rank": 0},
        {"alpha": 0.0},
        {"target_modules": ()},
        {"segmix_prob": 1.5},
        {"background_weight": -0.1},
        {"dco_beta": -1.0},
        {"min_snr_gamma": 0.0},
        {"kl_weight": -1.0},
        {"accumulation": 0},
        {"save_every": -1},
        {"optimizer": "sgd"},
        {"learning_rate": 1e-4, "optimizer": "prodigy"},
        {"lr_schedule": "steps"},
        {"base_weights": "fp4"},
        {"precision": "fp8"},
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(BadTrainConfig, match=next(iter(setting))):
        TrainConfig.of(**setting)


def test_alpha_is_the_rank_unless_said() -> None:
    assert Learning(rank=16).lora_alpha == 16.0 and Learning(rank=16, alpha=4.0).lora_alpha == 4.0
