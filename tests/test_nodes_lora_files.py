"""LoRA files in Separate LoRAs, Subjects from LoRAs and Detail Subjects: read, counted, refused and told alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from safetensors.torch import save_file
from test_lora_reading import STYLES, mini_state, other_names
from test_nodes_attention import halves, layout, mini, sampled, text
from test_nodes_decouple import changed
from tiny_models import tiny
from torch import Tensor

from mudi_core.lora.change import BadLora
from mudi_core.types import MudiError, SubjectSet

__all__ = ["layout", "mini", "mini_state", "text"]
EVERY = 56
"""Layers in a LoRA of `mini_state`."""
TO_K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def folder(comfy: Comfy) -> Path:
    made: Path = comfy.base / "models" / "loras"
    made.mkdir(parents=True, exist_ok=True)
    return made


@pytest.fixture
def plain(mini_state: Any) -> dict[str, Tensor]:
    """The tensors of a LoRA of all attention, by our names."""
    return dict(mini_state[0])


def pair(name: str, out: int, wide: int, *kernel: int) -> dict[str, Tensor]:
    """A LoRA of one layer."""
    ones = [1] * len(kernel)
    return {
        f"{name}.lora_up.weight": torch.ones(out, 1, *ones),
        f"{name}.lora_down.weight": torch.ones(1, wide, *kernel),
    }


def subject(comfy: Comfy, path: Path, state: Mapping[str, Tensor], about: Any = None, **more: Any) -> Any:
    save_file(dict(state), path, about)
    settings = {"subject": "", "strength": 1.0, "text_strength": 1.0, **more}
    return comfy.module("sockets").SubjectLora(path, **settings)


def worn(comfy: Comfy, mini: Any, *loras: Any) -> Any:
    return comfy.module("own_loras").wearing(*mini[:2], *loras)


def separate(comfy: Comfy, mini: Any, *loras: Any, **more: Any) -> Any:
    places = {} if "layout" in more else {"masks": halves()}
    return comfy.run(
        "MudiSeparateLoras",
        model=mini[0],
        clip=mini[1],
        loras=loras,
        **{"strength": 1.0, "rest": 0.0, **places, **more},
    )


def told(output: Any) -> list[str]:
    lines: list[str] = output.ui["text"][0].splitlines()
    return lines


# Names that ComfyUI does not know.


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_of_any_names_is_worn_as_by_comfyuis_own(
    comfy: Comfy, mini: Any, mini_state: Any, folder: Path, style: str
) -> None:
    state, modules = mini_state
    assert len(modules) == EVERY
    one = subject(comfy, folder / "names.safetensors", other_names(state, modules, style))
    model, _, (line,) = worn(comfy, mini, one)
    assert line == f"names.safetensors: {EVERY} layers of the network are changed."
    stock, _ = comfy.core("comfy.sd").load_lora_for_models(mini[0], None, dict(state), 1.0, 0.0)
    got, wanted = changed(comfy, model), changed(comfy, stock)
    assert got.keys() == wanted.keys() and len(got) == EVERY
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("beside", [False, True])
def test_the_alpha_that_peft_writes_elsewhere_counts(
    comfy: Comfy, mini: Any, mini_state: Any, folder: Path, tmp_path: Path, beside: bool
) -> None:
    """Into the metadata, or into a file beside: as in Fuse LoRAs, which reads the same file."""
    settings = {"lora_alpha": 6}
    about = {"lora_adapter_metadata": json.dumps(settings)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    state, modules = mini_state
    path = (tmp_path if beside else folder) / "alpha.safetensors"
    one = subject(comfy, path, other_names(state, modules, "peft"), None if beside else about)
    twice = {key: value * 2 if key.endswith("alpha") else value for key, value in state.items()}
    stock, _ = comfy.core("comfy.sd").load_lora_for_models(mini[0], None, twice, 1.0, 0.0)
    got, wanted = changed(comfy, worn(comfy, mini, one)[0]), changed(comfy, stock)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_what_only_one_of_two_readers_knows_is_worn_too(comfy: Comfy, mini: Any, mini_state: Any, folder: Path) -> None:
    """ComfyUI reads changes of biases and norms, and we the names of diffusers; a file may have both."""
    state, modules = mini_state
    weights = mini[0].model.state_dict()
    bias = next(key for key in weights if key.endswith("proj_in.bias")).removesuffix(".bias")
    rows = len(weights[f"{bias}.bias"])
    both = other_names(state, modules, "unet.lora_A") | {f"{bias}.diff_b": torch.ones(rows)}
    model, _, (line,) = worn(comfy, mini, subject(comfy, folder / "both.safetensors", both))
    assert line == f"both.safetensors: {EVERY + 1} layers of the network are changed."
    assert f"{bias}.bias" in model.patches and len(model.patches) == EVERY + 1


# What matched is counted and told.


ODD = {
    **pair("lora_unet_down_blocks_9_attentions_0_proj_in", 8, 8),
    **pair("lora_te2_text_model_encoder_layers_31_mlp_fc1", 8, 8),
    "<b>some\nother": torch.ones(1),
}
LEFT = (
    "2 are not in the model, such as lora_te2_text_model_encoder_layers_31_mlp_fc1; 1 tensor is not understood, such "
    "as _b_some_other"
)


def test_what_does_nothing_is_told(comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path) -> None:
    one = subject(comfy, folder / "odd.safetensors", plain | ODD)
    assert worn(comfy, mini, one)[2] == [f"odd.safetensors: {EVERY} layers of the network are changed; {LEFT}."]
    assert told(separate(comfy, mini, one)) == [f"odd.safetensors: {EVERY} layers where mask 1 stands; {LEFT}"]


def test_a_whole_lora_is_told_without_a_but(comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path) -> None:
    one = subject(comfy, folder / "whole.safetensors", plain)
    assert told(separate(comfy, mini, one)) == [f"whole.safetensors: {EVERY} layers where mask 1 stands"]


# LoRAs of another base.


def test_a_lora_of_another_size_is_refused_and_not_worn_in_part(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path
) -> None:
    """SD 1.5 has layers of SDXL's names, and some of its sizes."""
    rows, (_, width) = plain[f"{TO_K}.lora_up.weight"].shape[0], plain[f"{TO_K}.lora_down.weight"].shape
    other = plain | {f"{TO_K}.lora_down.weight": torch.ones(3, 768)}
    one = subject(comfy, folder / "sd15.safetensors", other)
    sentence = (
        rf"sd15.safetensors was trained on a model of another size \(SD 1.x\): {TO_K} is {rows} x {width} here, "
        rf"{rows} x 768 in the file. Use it with its own base model."
    )
    with pytest.raises(BadLora, match=sentence):
        worn(comfy, mini, one)
    with pytest.raises(BadLora, match=sentence):
        separate(comfy, mini, one)


def test_a_layer_that_reads_the_latent_may_be_wider(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path
) -> None:
    """Models for inpainting read more channels; their LoRAs are those of their base."""
    first = mini[0].model.diffusion_model.input_blocks[0][0].weight
    wider = pair("lora_unet_conv_in", first.shape[0], first.shape[1] + 5, 3, 3)
    one = subject(comfy, folder / "wider.safetensors", plain | wider)
    model, _, (line,) = worn(comfy, mini, one)
    left = "of another size here, so left out: lora_unet_conv_in"
    assert line == f"wider.safetensors: {EVERY} layers of the network are changed; {left}."
    assert len(model.patches) == EVERY
    made = separate(comfy, mini, one, rest=1.0)
    assert told(made) == [f"wider.safetensors: {EVERY} layers where mask 1 stands; {left}"]
    with pytest.raises(BadLora, match="was trained on a model of another size"):
        worn(comfy, mini, subject(comfy, folder / "only.safetensors", wider))


# Whom a file says that it was taught.


TAGS = {"10_hta cat": {"hta cat": 12, "sitting": 3}, "1_cat": {"cat": 4}}


@pytest.mark.parametrize(
    "about",
    [
        {"modelspec.trigger_phrase": "hta cat, sticker"},
        {"modelspec.trigger_phrase": "HTA"},
        {"ss_tag_frequency": json.dumps(TAGS)},
        {"mudi_tokens": '["hta"]', "mudi_class_nouns": '["cat"]'},
    ],
)
def test_a_lora_finds_its_subject_by_what_any_program_wrote(
    comfy: Comfy, plain: dict[str, Tensor], folder: Path, layout: Any, about: dict[str, str]
) -> None:
    module = comfy.module("own_loras")
    found = comfy.module("attention").places(layout, None, None, "boxes", 0.0)
    one = subject(comfy, folder / "told.safetensors", plain, about)
    assert module.subjects_of((one,), found.names()) == [1]
    assert module.doubts(one, found.names()[1]) == ""


@pytest.mark.parametrize("phrase", ["(hta:1.5) cat", "{hta}", "<lora:hta:1>", "hta" * 99])
def test_what_a_stranger_wrote_is_only_data(
    comfy: Comfy, plain: dict[str, Tensor], folder: Path, layout: Any, phrase: str
) -> None:
    module = comfy.module("own_loras")
    found = comfy.module("attention").places(layout, None, None, "boxes", 0.0)
    one = subject(comfy, folder / "odd words.safetensors", plain, {"modelspec.trigger_phrase": phrase})
    assert module.subjects_of((one,), found.names()) == [0] and module.doubts(one, found.names()[0]) == ""


def test_a_file_that_names_somebody_else_is_told(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path, layout: Any, drawn_subjects: SubjectSet
) -> None:
    rex = {"ss_tag_frequency": json.dumps({"10_rex dog": {"rex dog": 9}})}
    one = subject(comfy, folder / "rex.safetensors", plain, rex)
    says = "rex.safetensors says that it was taught 'rex dog'; it is used for olis cat, as"
    assert told(separate(comfy, mini, one, layout=layout))[1:] == [f"{says} the order has it."]
    named = subject(comfy, one.path, plain, rex, subject="olis")
    assert told(separate(comfy, mini, named, layout=layout))[1:] == [f"{says} LoRA Subject says."]
    assert len(told(separate(comfy, mini, one))) == 1, "masks alone have no names to differ from"
    lines = comfy.module("own_loras").owners(drawn_subjects, [[one], []])
    assert lines == ["olis cat: rex.safetensors", f"{says} the order has it."]


def test_a_file_that_names_somebody_else_takes_nobodys_place(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path, layout: Any
) -> None:
    hta = subject(comfy, folder / "hta.safetensors", plain, {"modelspec.trigger_phrase": "hta cat"})
    rex = subject(comfy, folder / "rex.safetensors", plain, {"modelspec.trigger_phrase": "rex"})
    with pytest.raises(MudiError, match=r"'rex'; it is used for hta cat, as the order has it. But hta cat has hta.saf"):
        separate(comfy, mini, hta, rex, layout=layout)
    given = subject(comfy, rex.path, plain, {"modelspec.trigger_phrase": "rex"}, subject="olis")
    assert len(told(separate(comfy, mini, hta, given, layout=layout))) == 3


@pytest.mark.parametrize("folders", [{"10_img": {"rex": 9}}, {"1_dataset": {"rex": 9}}, {"10_hta": {"hta": 9}}])
def test_a_folder_of_one_word_may_be_called_anything(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path, layout: Any, folders: Any
) -> None:
    """It is a subject's where it has its token, and names nobody else."""
    one = subject(comfy, folder / "folder.safetensors", plain, {"ss_tag_frequency": json.dumps(folders)})
    who = "hta cat" if "10_hta" in folders else "olis cat"
    assert told(separate(comfy, mini, one, layout=layout)) == [f"folder.safetensors: {EVERY} layers where {who} stands"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda name, state: state.pop(f"{name}.lora_down.weight"), "incomplete|lora_down|lacks|without"),
        (lambda name, state: state.update({f"{name}.lora_down.weight": torch.ones(7, 64)}), "fit"),
    ],
)
def test_a_damaged_file_is_refused_by_all(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path, damage: Any, sentence: str
) -> None:
    state = dict(plain)
    damage(TO_K, state)
    one = subject(comfy, folder / "damaged.safetensors", state)
    for use in (worn, separate):
        with pytest.raises(BadLora, match=sentence):
            use(comfy, mini, one)


def test_a_file_without_any_lora_is_told_as_that(comfy: Comfy, mini: Any, folder: Path) -> None:
    one = subject(comfy, folder / "vae.safetensors", {"decoder.conv_in.weight": torch.ones(4, 4)})
    for use in (worn, separate):
        with pytest.raises(BadLora, match="vae.safetensors is no LoRA that can be read here"):
            use(comfy, mini, one)


# Strength 0.


@pytest.mark.parametrize("where", ["LoRA", "node"])
def test_strength_0_gives_model_and_clip_as_they_came(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path, where: str
) -> None:
    none = {"strength": 0.0, "text_strength": 0.0} if where == "LoRA" else {}
    loras = [subject(comfy, folder / f"none{number}.safetensors", plain, **none) for number in (1, 2)]
    made = separate(comfy, mini, *loras, **({} if where == "LoRA" else {"strength": 0.0}), rest=1.0)
    assert made.result[0] is mini[0] and made.result[1] is mini[1]
    assert told(made) == [f"none{number}.safetensors: its strength is 0, so nothing is changed" for number in (1, 2)]
    assert worn(comfy, mini, *loras)[0] is mini[0] or where == "node"


def test_a_lora_of_strength_0_is_as_if_it_were_not_there(
    comfy: Comfy, mini: Any, plain: dict[str, Tensor], folder: Path
) -> None:
    text_part = pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", *_square(mini))
    none = subject(comfy, folder / "none.safetensors", plain | text_part, strength=0.0, text_strength=0.5)
    one = subject(comfy, folder / "one.safetensors", {key: value * 0.3 for key, value in plain.items()})
    both = separate(comfy, mini, none, one)
    assert told(both)[0] == "none.safetensors: its strength is 0, so no layers of the network are changed, 1 of text"
    assert len(both.result[1].patcher.patches) == 1
    alone = separate(comfy, mini, one, masks=halves()[1:])
    assert torch.equal(sampled(comfy, mini, both.result[0]), sampled(comfy, mini, alone.result[0]))
    model, clip, (line,) = worn(comfy, mini, none)
    assert not model.patches and len(clip.patcher.patches) == 1
    assert line == "none.safetensors: 0 layers of the network and 1 of the text encoders are changed."


def test_a_lora_of_the_text_alone_acts_in_all_nodes(comfy: Comfy, mini: Any, folder: Path) -> None:
    state = pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", *_square(mini))
    one = subject(comfy, folder / "text.safetensors", state)
    made = separate(comfy, mini, one)
    assert made.result[0] is mini[0] and len(made.result[1].patcher.patches) == 1
    assert told(made) == ["text.safetensors: 0 layers where mask 1 stands, 1 of text"]
    assert len(worn(comfy, mini, one)[1].patcher.patches) == 1


def _square(mini: Any) -> tuple[int, int]:
    weight = mini[1].cond_stage_model.state_dict()[
        "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    ]
    return weight.shape[0], weight.shape[1]


def test_parts_of_a_weight_have_their_own_sizes(comfy: Comfy, mini: Any, folder: Path) -> None:
    """FLUX has queries, keys and values in one weight, and a LoRA of diffusers changes each by itself."""
    flux, name = tiny(comfy, "flux1"), "transformer.transformer_blocks.0.attn"
    whole = flux.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    (rows, width), state = whole.shape, {}
    for part in ("to_q", "to_k", "to_v"):
        state[f"{name}.{part}.lora_A.weight"] = torch.ones(1, width)
        state[f"{name}.{part}.lora_B.weight"] = torch.ones(rows // 3, 1)
    model, _, (line,) = worn(comfy, (flux, mini[1]), subject(comfy, folder / "flux parts.safetensors", state))
    assert line == "flux parts.safetensors: 1 layer of the network is changed." and len(model.patches) == 1
    state[f"{name}.to_k.lora_B.weight"] = torch.ones(rows, 1)
    with pytest.raises(BadLora, match=rf"to_k is {rows // 3} x {width} here, {rows} x {width} in the file"):
        worn(comfy, (flux, mini[1]), subject(comfy, folder / "flux parts.safetensors", state))


def test_a_control_lora_of_flux_makes_its_first_layer_wider(comfy: Comfy, mini: Any, folder: Path) -> None:
    flux = tiny(comfy, "flux1")
    rows, width = flux.model.diffusion_model.img_in.weight.shape
    state = {
        "img_in.lora_A.weight": torch.ones(1, 2 * width),
        "img_in.lora_B.weight": torch.ones(rows, 1),
        "img_in.lora_B.bias": torch.ones(rows),
        "single_blocks.0.norm.key_norm.scale": torch.ones(len(_key_norm(flux))),
    }
    model, _, (line,) = worn(comfy, (flux, mini[1]), subject(comfy, folder / "control.safetensors", state))
    assert line == "control.safetensors: 2 layers of the network are changed." and len(model.patches) == 3


def _key_norm(flux: Any) -> Any:
    norm = flux.model.diffusion_model.single_blocks[0].norm.key_norm
    return norm.weight if hasattr(norm, "weight") else norm.scale
