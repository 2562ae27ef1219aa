"""A model folder or file from anywhere is read, and nothing else: it names no class, fetches nothing, runs nothing."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sd_file import tiny_sd
from sdxl_file import tiny_sdxl

from mudi_core.bases import sdxl
from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.sdxl.parts import BadModelFolder, check_settings
from mudi_core.eyes import sam
from mudi_core.eyes.pretrained import read_model
from mudi_core.lora.file import load_lora
from mudi_core.lora.metadata import UnknownLora, read_lora_subjects
from mudi_core.tensor_file import LONGEST_HEADER, BadWeights
from mudi_core.types import MudiError

EVIL = "import sys\nsys.evil_ran = True\nclass Evil:\n    from_pretrained = classmethod(lambda *given, **more: None)\n"
"""It says so in the process itself: diffusers runs a copy of the file, elsewhere."""


@pytest.fixture(scope="module", params=["sdxl", "v1"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / request.param
    if request.param == "sdxl":
        tiny_sdxl(made)
    else:
        tiny_sd(made, request.param)
    return made


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("part", ["scheduler", "unet", "vae", "text_encoder", "tokenizer"])
def test_a_folder_runs_no_code_of_its_own(folder: Path, part: str, tmp_path: Path) -> None:
    """With diffusers before 0.38 a class that the index names was imported from the folder."""
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    changed(there / "model_index.json", **{part: ["evil", "Evil"]})
    for place in (there / part, there):
        (place / "evil.py").write_text(EVIL)
    open_checkpoint(str(there))
    assert not hasattr(sys, "evil_ran")


def test_a_sampler_that_is_not_diffusers_own_is_refused(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    changed(there / "scheduler" / "scheduler_config.json", _class_name="Evil")
    with pytest.raises(BadModelFolder, match="'Evil'; known are"):
        open_checkpoint(str(there))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("num_train_timesteps", value) for value in (10**9, 0, 1, -5, "many", None, 1000.5)),
        *(("beta_end", value) for value in (2.0, float("nan"), 0.0)),
        ("trained_betas", [0.01] * 10),
    ],
)
def test_a_noise_that_no_model_is_taught_is_refused(folder: Path, tmp_path: Path, setting: str, value: Any) -> None:
    """A thousand million timesteps would take all memory, values that are no numbers would train on nothing."""
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    more = {"beta_start": 0.0} if value == 0.0 and setting == "beta_end" else {}
    changed(there / "scheduler" / "scheduler_config.json", **{setting: value}, **more)
    with pytest.raises(MudiError, match=r"timesteps; a model is taught|a noise that no model is taught"):
        open_checkpoint(str(there))


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("unet", "layers_per_block", 10**7),
        ("unet", "transformer_layers_per_block", [[10**7]]),
        ("unet", "down_block_types", ["DownBlock2D"] * 50_000),
        ("vae", "layers_per_block", 10**7),
        ("text_encoder", "num_hidden_layers", 10**8),
    ],
)
def test_layers_without_number_are_refused_before_they_are_built(
    folder: Path, tmp_path: Path, part: str, setting: str, value: Any
) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    changed(there / part / "config.json", **{setting: value})
    with pytest.raises(MudiError, match="asks for more than 200 layers"):
        open_checkpoint(str(there))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    "setting",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel:function"},
        {"auto_map": {"AutoModel": "evil.Evil"}},
        {"quantization_config": {"quant_method": "evil"}},
        {"nested": {"deeper": [{"_attn_implementation_internal": "a/b"}]}},
    ],
)
def test_settings_that_lead_anywhere_are_refused(
    folder: Path, part: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    changed(there / part / "config.json", **setting)
    with pytest.raises(BadModelFolder, match="asks to load or run something else"):
        open_checkpoint(str(there))


def test_an_eye_whose_settings_lead_anywhere_is_refused(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    small = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(small).save_pretrained(tmp_path)
    read_model(Dinov2Model, tmp_path, "a DINOv2")
    changed(tmp_path / "config.json", _attn_implementation="sdpa")
    check_settings(tmp_path / "config.json")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(BadModelFolder, match="adapter"):
        read_model(Dinov2Model, tmp_path, "a DINOv2")
    (tmp_path / "adapter_config.json").unlink()
    changed(tmp_path / "config.json", _attn_implementation="kernels-community/flash")
    with pytest.raises(BadModelFolder, match="_attn_implementation"):
        read_model(Dinov2Model, tmp_path, "a DINOv2")


def test_a_folder_with_the_fp16_variant_alone_opens(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    for path in there.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    kept, now = open_checkpoint(str(folder)), open_checkpoint(str(there))
    assert all(map(torch.equal, kept.unet.state_dict().values(), now.unet.state_dict().values()))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_settings_with_a_byte_order_mark_are_read_or_told(folder: Path, encoding: str, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)

    def saved_again(path: Path) -> None:
        path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)

    saved_again(there / "model_index.json")
    open_checkpoint(str(there))
    for part in ("unet", "vae", "text_encoder"):
        saved_again(there / part / "config.json")
        with pytest.raises(BadModelFolder, match="config.json has a byte order mark.*Save it as UTF-8 without one"):
            open_checkpoint(str(there))
        shutil.copy(folder / part / "config.json", there / part / "config.json")
    (there / "unet" / "config.json").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(BadModelFolder, match="line 1 is not UTF-8 text"):
        open_checkpoint(str(there))


def test_a_folder_without_a_part_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "model"
    shutil.copytree(folder, there)
    shutil.rmtree(there / "text_encoder")
    with pytest.raises(BadModelFolder, match="no folder 'text_encoder'"):
        open_checkpoint(str(there))


@pytest.mark.parametrize("length", [LONGEST_HEADER + 1, 97 * 2**20, 2**62])
def test_a_list_of_tensors_of_any_length_is_refused_at_once(length: int, tmp_path: Path) -> None:
    file = tmp_path / "long.safetensors"
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", length) + b"{")
        out.truncate(min(length, 2**30) + 8)
    readers = (
        (read_lora_subjects, UnknownLora), (load_lora, MudiError), (sdxl.header, MudiError), (sam._read, BadWeights),
    )  # fmt: skip
    for reader, error in readers:
        with pytest.raises(error, match="header of|damaged"):
            reader(file)


@pytest.mark.parametrize(
    ("version", "refused"), [("2.4.1", True), ("2.5.1+cu124", True), ("2.6.0", False), ("2.13.0+cpu", False)]
)
def test_pickled_weights_want_a_torch_that_reads_tensors_alone(
    version: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sam.pth"
    torch.save({"a": torch.zeros(1)}, file)
    monkeypatch.setattr(sam.torch, "__version__", version)
    if refused:
        with pytest.raises(BadWeights, match="2.6 or newer"):
            sam._read(file)
    else:
        assert sam._read(file).keys() == {"a"}
