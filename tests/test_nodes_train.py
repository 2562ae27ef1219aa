"""Seg-Mix Dataset and Train LoRA, and the MODEL that training borrows its weights from."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import FLUX, other_model, random_lora, taught, weights
from sd_file import tiny_sd
from torchvision.transforms.functional import pil_to_tensor

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.families import Family, usual
from mudi_core.lock import claimed
from mudi_core.lora.adapter import Adapter, apply_lora
from mudi_core.lora.file import load_lora
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.tensor_file import read_tensors, write_tensors
from mudi_core.train.config import TrainConfig
from mudi_core.train.plan import OneSubject
from mudi_core.types import BadLayout, SubjectSet

MODULES = 84
T, ZEROS = torch.tensor([500]), torch.zeros(1, 6)
"""A timestep, and sizes of no image."""


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


@pytest.fixture
def dataset(comfy: Comfy, drawn_subjects: SubjectSet) -> Any:
    return segmix(comfy, drawn_subjects)[0]


@pytest.fixture
def interrupt(comfy: Comfy) -> Iterator[Any]:
    """Presses Cancel."""
    management = comfy.core("comfy.model_management")
    yield management.interrupt_current_processing
    management.interrupt_current_processing(False)


def segmix(comfy: Comfy, subjects: SubjectSet, **changed: Any) -> tuple[Any, torch.Tensor]:
    settings = {"probability": 0.5, "relative_sizes": "", "overlap": 0.2, "background_weight": 1.0} | changed
    dataset, preview = comfy.run("MudiSegMixDataset", subjects=subjects, **settings).result
    return dataset, preview


def train(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, name: str, **changed: Any) -> Any:
    model, clip, vae = mini
    settings = {
        "method": "segmix", "preset": "mini, 192 px", "steps": 2, "rank": 2, "learning_rate": 1e-3,
        "batch_size": 1, "seed": 7,
    } | changed  # fmt: skip
    return comfy.run("MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset, name=name, **settings)


def train_settings(comfy: Comfy, **changed: Any) -> Any:
    """As Train Settings gives them, with its own defaults."""
    inputs = comfy.node("MudiTrainSettings").GET_SCHEMA().inputs
    defaults = {one.id: one.options[0] if hasattr(one, "options") else one.default for one in inputs}
    return comfy.run("MudiTrainSettings", **{**defaults, **changed}).result[0]


def config_of(comfy: Comfy, lora_name: str) -> dict[str, Any]:
    """The settings that a LoRA's file names."""
    config: dict[str, Any] = json.loads(load_lora(comfy.base / "models" / "loras" / lora_name)[1]["mudi_config"])
    return config


def loras(comfy: Comfy, name: str) -> list[Path]:
    return sorted((comfy.base / "models" / "loras").glob(f"{name}*"))


def test_clip_and_vae_encode_as_the_library_does(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    convert, checkpoint = comfy.module("convert"), open_checkpoint("mini")
    captions = ["a photo of olis cat", "2 toys: a (red) cat and hta dog"]
    for ours, theirs in zip(convert.encode_text(mini[1])(captions), checkpoint.condition(captions), strict=True):
        assert torch.allclose(ours["cross_attn"], theirs["context"], atol=1e-4)
        assert torch.allclose(ours["pooled_output"], theirs["pooled"], atol=1e-4)
        assert not any(value.is_inference() for value in ours.values())
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latents = convert.encode_image(mini[2])(images)
    assert torch.allclose(latents, checkpoint.encode_image(images), atol=1e-4)
    assert not latents.is_inference()


def test_models_of_other_kinds_are_refused(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    convert, known = comfy.module("convert"), comfy.module("denoiser").kohya_family
    model, clip, vae = mini
    for kind, changed in {"SD21UnclipH": {"adm_in_channels": 2048}, "SSD1B": {"in_channels": 9}}.items():
        with pytest.raises(convert.BadModel, match=f"{kind}.*reads more than a noisy picture and a caption"):
            known(other_model(comfy, kind, {**model.model.model_config.unet_config, **changed}))
    assert known(model) == "sdxl_base_v1-0"
    vae.latent_channels = 16
    with pytest.raises(convert.BadModel, match="16 channels"):
        convert.encode_image(vae)


def test_parts_of_another_checkpoint_are_told_before_anything_is_made(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    model, clip, vae = mini
    wrong = comfy.module("convert").BadModel
    known = comfy.core("comfy.ldm.flux.model").FluxParams.__annotations__
    flux = {"image_model": "flux", **{name: value for name, value in FLUX.items() if name in known}}
    with pytest.raises(
        wrong, match=r"This VAE makes latents of 4 channels, this MODEL reads 16. Connect the VAE of the"
    ):
        train(comfy, (other_model(comfy, "Flux", flux), clip, vae), dataset, "strange")
    clip_alone, video = SimpleNamespace(cond_stage_model=torch.nn.Linear(1, 1)), copy.copy(vae)
    with pytest.raises(wrong, match="This CLIP reads no captions. Connect the CLIP of"):
        train(comfy, (model, clip_alone, vae), dataset, "strange")
    video.latent_channels = 16
    with pytest.raises(wrong, match="16 channels, this MODEL reads 4. Connect the VAE of the same checkpoint"):
        train(comfy, (model, clip, video), dataset, "strange")
    assert not loras(comfy, "strange") and not (comfy.base / "output" / "mudi" / "strange").exists()


SD = {
    "v1": {"kind": "SD15", "clip": ("comfy.sd1_clip", "SD1Tokenizer", "SD1ClipModel", "clip_l"), "num_heads": 2},
    "v2": {
        "kind": "SD20",
        "clip": ("comfy.text_encoders.sd2_clip", "SD2Tokenizer", "SD2ClipModel", "clip_h"),
        "num_head_channels": 16,
    },
}  # fmt: skip
"""What ComfyUI calls the parts of SD 1.5 and 2."""


def sd_parts(comfy: Comfy, folder: Path, version: str) -> tuple[Any, Any, Any]:
    """MODEL and CLIP of a tiny SD as ComfyUI loads them, and the library's checkpoint of the same weights."""
    tiny_sd(folder, version)
    checkpoint, about = open_checkpoint(folder), dict(SD[version])
    unet, cpu = checkpoint.unet, torch.device("cpu")
    kind, (module, tokenizer, network, name) = about.pop("kind"), about.pop("clip")
    described = dict(unet.config) | {
        "transformer_layers_per_block": (1,) * 4,
        "projection_class_embeddings_input_dim": None,
    }
    config = getattr(comfy.core("comfy.supported_models"), kind)(comfy.module("mini_models").unet_config(described))
    config.unet_config |= {"transformer_depth_middle": 1, "num_classes": None, **about}
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=cpu)
    names = comfy.core("comfy.utils").unet_to_diffusers(config.unet_config)
    model.load_model_weights({names[key]: value for key, value in unet.state_dict().items()}, "")

    encoder = checkpoint._encoders().text_encoders[0]
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    sizes = {key: getattr(encoder.config, key) for key in kept}
    sizes["num_hidden_layers"] += version == "v2"  # of which ComfyUI leaves out the last; diffusers' has it not at all
    options = {"dtype": torch.float32, f"{name}_model_config": sizes}
    text = comfy.core(module)
    target = comfy.core("comfy.supported_models_base").ClipTarget(getattr(text, tokenizer), getattr(text, network))
    clip = comfy.core("comfy.sd").CLIP(target, model_options=options)
    getattr(clip.cond_stage_model, name).load_sd(comfy.module("mini_models")._text_state(encoder))
    return comfy.core("comfy.model_patcher").ModelPatcher(model, cpu, cpu), clip, checkpoint


@pytest.mark.parametrize("version", SD)
def test_sd_is_trained_too(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, version: str, tmp_path: Path
) -> None:
    model, clip, checkpoint = sd_parts(comfy, tmp_path, version)
    ours, theirs, convert = (
        comfy.module("denoiser").ComfyDenoiser(model),
        checkpoint.denoiser(),
        comfy.module("convert"),
    )
    captions = ["a photo of olis cat", "2 toys: a (red) cat and hta dog"]
    read, expected = convert.encode_text(clip)(captions), checkpoint.condition(captions)
    for one, other in zip(read, expected, strict=True):
        assert torch.allclose(one["cross_attn"], other["context"], atol=1e-4) and other["pooled"].shape == (0,)
    x, level, sizes = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), theirs.level(T), ZEROS
    with torch.no_grad():
        answer = theirs.predict(x, level, [{"context": read[0]["cross_attn"], "pooled": torch.empty(0)}], sizes)
        with ours.ready(bf16=False):
            found = ours.predict(x / level.signal, ours.level(level.noise / level.signal), read[:1], sizes)
    assert torch.allclose(found, answer, atol=1e-4)
    first, second = (Adapter.new(one, 2, 2.0, TrainConfig().learning.target_modules).state() for one in (ours, theirs))
    assert list(first) == list(second)
    parts = (model, clip, mini[2])
    wearing, name, _ = train(comfy, parts, dataset, f"sd_{version}", preset="SD 1.5 and 2, 512 px", steps=1).result
    state, about = load_lora(comfy.base / "models" / "loras" / name)
    assert about["ss_base_model_version"] == f"sd_{version}" and about["mudi_base"] == SD[version]["kind"]
    assert len(state) == 3 * len(wearing.patches) == 3 * 128
    assert comfy.module("denoiser").kohya_family(taught(comfy, model, "V_PREDICTION")) == f"sd_{version}_v"
    with pytest.raises(convert.BadModel, match="cannot read what this CLIP and this VAE make.*Connect CLIP and VAE"):
        train(comfy, (model, mini[1], mini[2]), dataset, "mixed")


def test_the_dataset_shows_its_compositions(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    dataset, preview = segmix(comfy, drawn_subjects, relative_sizes="olis:hta=1:2", background_weight=0.25)
    assert dataset.subjects is drawn_subjects and dataset.background_weight == 0.25
    assert dataset.layout.relative_scale == {"olis": 1, "hta": 2}
    assert preview.shape == (1, 3 * 260 - 4, 4 * 260 - 4, 3)
    again = segmix(comfy, drawn_subjects, relative_sizes="olis:hta=1:2")[1]
    assert torch.equal(preview, again)
    alone = SubjectSet(drawn_subjects.subjects[:1])
    assert segmix(comfy, alone)[1].shape == preview.shape


def test_relative_sizes_are_checked(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    node = comfy.node("MudiSegMixDataset")
    assert node.validate_inputs(relative_sizes="olis:hta=1:2") is True
    assert node.validate_inputs() is True
    assert "olis:hta" in node.validate_inputs(relative_sizes="olis=big")
    with pytest.raises(BadLayout, match="nobody"):
        segmix(comfy, drawn_subjects, relative_sizes="olis:nobody=1:2")


def test_training_gives_a_model_with_the_lora_and_leaves_what_came_in_alone(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    before = weights(*mini)
    output = train(comfy, mini, dataset, "two_cats")
    model, lora_name, loss = output.result
    assert lora_name == "two_cats_00001.safetensors"
    assert len(model.patches) == MODULES and not mini[0].patches
    after = weights(*mini)
    assert len(after) == len(before) and all(map(torch.equal, after, before))
    assert loss.shape == (1, 320, 640, 3)
    assert "'olis cat'" in output.ui["text"][0]

    state, about = load_lora(comfy.base / "models" / "loras" / lora_name)
    assert len(state) == 3 * MODULES
    assert about["mudi_tokens"] == '["olis", "hta"]' and about["mudi_base"] == "MiniSDXL"
    assert any(value.abs().max() > 0 for key, value in state.items() if "lora_up" in key)

    checkpoint = open_checkpoint("mini")
    ours, theirs = comfy.module("denoiser").ComfyDenoiser(model), checkpoint.denoiser()
    x, level = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), theirs.level(T)
    conditions = comfy.module("convert").encode_text(mini[1])(["a photo of olis cat"])
    read = {"context": conditions[0]["cross_attn"], "pooled": conditions[0]["pooled_output"]}
    with apply_lora(checkpoint.unet, state), torch.no_grad():
        expected = theirs.predict(x, level, [read], ZEROS)
    with ours.ready(bf16=False), torch.no_grad():
        found = ours.predict(x / level.signal, ours.level(level.noise / level.signal), conditions, ZEROS)
    assert torch.allclose(found, expected, atol=1e-4)


def test_pictures_without_the_lora_stay_the_same(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    def sample(model: Any) -> torch.Tensor:
        (words,) = comfy.run_stock("CLIPTextEncode", clip=mini[1], text="a photo of olis cat")
        (latent,) = comfy.run_stock("EmptyLatentImage", width=64, height=64, batch_size=1)
        (sampled,) = comfy.run_stock(
            "KSampler", model=model, seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal",
            positive=words, negative=words, latent_image=latent,
        )  # fmt: skip
        samples: torch.Tensor = sampled["samples"]
        return samples

    before = sample(mini[0])
    wearing = train(comfy, mini, dataset, "between").result[0]
    with_lora = sample(wearing)
    assert torch.equal(sample(mini[0]), before)
    assert not torch.equal(with_lora, before) and torch.equal(sample(wearing), with_lora)


def test_the_same_graph_gives_the_same_file_twice(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    first = train(comfy, mini, dataset, "twice").result[1]
    second = train(comfy, mini, dataset, "twice").result[1]
    other = train(comfy, mini, dataset, "twice", seed=8).result[1]
    assert [first, second, other] == [f"twice_0000{number}.safetensors" for number in (1, 2, 3)]
    one, two, three = (path.read_bytes() for path in loras(comfy, "twice"))
    assert one == two != three


def test_cancel_leaves_no_lora_and_the_next_run_goes_on(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, interrupt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = noticed_after(comfy, 1) + 1
    _, whole, curve = train(comfy, mini, dataset, "whole", steps=last).result
    begun: list[int] = []
    drawn: list[torch.Tensor] = []

    def hook(done: int, total: int, preview: Any, node_id: Any = None) -> None:
        if preview is not None:  # only training draws, and at once
            begun.append(done)
            drawn.append(pil_to_tensor(preview[1]))
            interrupt(len(begun) == 1)

    monkeypatch.setattr(comfy.core("comfy.utils"), "PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.core("comfy.model_management").InterruptProcessingException):
        train(comfy, mini, dataset, "stopped", steps=last)
    assert not loras(comfy, "stopped")
    _, resumed, same_curve = train(comfy, mini, dataset, "stopped", steps=last).result
    assert begun == [1, last]
    folder = comfy.base / "models" / "loras"
    assert (folder / resumed).read_bytes() == (folder / whole).read_bytes()
    assert torch.equal(same_curve, curve)
    assert torch.equal(drawn[-1].movedim(0, -1) / 255, curve[0])
    assert not list((comfy.base / "output").rglob("stopped_*.safetensors"))


def noticed_after(comfy: Comfy, step: int) -> int:
    """How many steps are done when Cancel, pressed after ``step``, is noticed: newer ComfyUI asks in every layer."""
    return step if hasattr(comfy.core("comfy.ops"), "run_every_op") else step + 1


@contextmanager
def heard(comfy: Comfy, hear: Callable[[str], None] = lambda words: None) -> Iterator[list[str]]:
    """What nodes say while they run, line by line."""
    places, said = [comfy.module("host"), comfy.module("host.page")], []
    before = places[0].say

    def say(words: str) -> None:
        said.append(words)
        hear(words)

    for place in places:
        place.say = say
    try:
        yield said
    finally:
        for place in places:
            place.say = before


def cancelled(comfy: Comfy, mini: Any, dataset: Any, name: str, after: int, **changed: Any) -> list[str]:
    """What the node says of a training that is cancelled after so many steps."""
    management = comfy.core("comfy.model_management")

    def cancel(words: str) -> None:
        if words.startswith(f"training: {after} / "):
            management.interrupt_current_processing()

    with heard(comfy, cancel) as said:
        try:
            with pytest.raises(management.InterruptProcessingException):
                train(comfy, mini, dataset, name, **changed)
        finally:
            management.interrupt_current_processing(False)
    return said


def test_a_stopped_training_says_so_keeps_its_number_and_is_removed_by_nobody_else(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    saving = train_settings(comfy, save_every=1)
    said = cancelled(comfy, mini, dataset, "mine", 2, steps=4, settings=saving)
    stopped = noticed_after(comfy, 2)
    assert said[-1] == f"stopped at {stopped} / 4, kept: queue the same again to go on"
    assert [path.name for path in loras(comfy, "mine")] == [f"mine_00001-00000{step}.safetensors" for step in (1, 2)]
    kept = list((comfy.base / "output" / "mudi" / "mine").glob("stopped_00001_*"))
    # Another training of this name has another number, and says what differs.
    with heard(comfy) as said:
        other = train(comfy, mini, dataset, "mine", steps=4, seed=8, learning_rate=2e-3)
    differs = "begun anew, since a stopped training of this name differs: learning_rate was 0.001, is 0.002; seed was 7"
    begins, first, *_ = (words for words in said if words.startswith("training: "))
    assert begins.startswith(f"training: 0 / 4, {differs}") and begins.endswith(f"It is kept in {kept[0]}")
    assert first.startswith("training: 1 / 4")
    assert other.result[1] == "mine_00002.safetensors"
    assert "learning_rate was 0.001, is 0.002; seed was 7, is 8. It is kept in" in other.ui["text"][0]
    assert [path for path in kept if path.is_file()] == kept != []
    with heard(comfy) as said:
        resumed = train(comfy, mini, dataset, "mine", steps=4, settings=saving)
    begins, first, *_ = (words for words in said if words.startswith("training: "))
    assert begins == f"training: {stopped} / 4, going on from step {stopped}"
    assert first.startswith(f"training: {stopped + 1} / 4")
    assert resumed.result[1] == "mine_00001.safetensors" and f"It went on from step {stopped}." in resumed.ui["text"][0]
    assert not any(path.exists() for path in kept)


def test_a_training_that_an_earlier_version_stopped_begins_anew_and_says_why(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    """It knew the model by its weights alone; neither the model nor the photos need be others."""
    cancelled(comfy, mini, dataset, "of_before", 1, steps=3)
    (kept,) = (comfy.base / "output" / "mudi" / "of_before").glob("stopped_*")
    tensors, about = read_tensors(kept)
    older = kept.with_name(f"stopped_00001_{'0' * 12}.safetensors")
    write_tensors(older, tensors, {**about, "unet": "ab" * 32, "plan": "cd" * 32})
    kept.unlink()
    told = train(comfy, mini, dataset, "of_before", steps=3).ui["text"][0]
    assert "It was begun anew, since a stopped training of this name differs: it was stopped in an earlier" in told
    assert "another;" not in told and "photos" not in told and f"It is kept in {older}" in told
    assert older.is_file()


def test_a_number_that_somebody_took_is_not_overwritten(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    cancelled(comfy, mini, dataset, "taken", 1, steps=3)
    taken = comfy.base / "models" / "loras" / "taken_00001.safetensors"
    taken.write_bytes(b"somebody's")
    assert train(comfy, mini, dataset, "taken", steps=3).result[1] == "taken_00002.safetensors"
    assert taken.read_bytes() == b"somebody's"


def test_two_that_train_at_once_into_one_folder_take_two_numbers(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    folder = comfy.base / "models" / "loras"
    with claimed(folder / ".both_00001.lock"):
        assert train(comfy, mini, dataset, "both", steps=1).result[1] == "both_00002.safetensors"
    key = cancelled_key(comfy, mini, dataset)
    with claimed(folder / f".mudi-{key}.lock"), pytest.raises(comfy.module("training").AlreadyTrained):
        train(comfy, mini, dataset, "both", steps=3)
    assert not list(folder.glob(".*"))
    for left in (".others_00003.lock", f".mudi-{'0' * 12}.lock"):
        (folder / left).touch()
    (folder / ".not ours.lock").touch()
    train(comfy, mini, dataset, "both", steps=1)
    assert [path.name for path in folder.glob(".*")] == [".not ours.lock"]
    (folder / ".not ours.lock").unlink()


def cancelled_key(comfy: Comfy, mini: Any, dataset: Any) -> str:
    """What tells a training of three steps from others: its stopped file is called so."""
    cancelled(comfy, mini, dataset, "both", 1, steps=3)
    (kept,) = (comfy.base / "output" / "mudi" / "both").iterdir()
    return kept.stem.rpartition("_")[2]


def test_what_an_earlier_version_stopped_goes_on(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    cancelled(comfy, mini, dataset, "older", 1, steps=3)
    (kept,) = (comfy.base / "output" / "mudi" / "older").iterdir()
    kept.rename(kept.with_name(kept.name.replace("_00001_", "_")))
    assert "It went on from step" in train(comfy, mini, dataset, "older", steps=3).ui["text"][0]
    assert not (comfy.base / "output" / "mudi" / "older").exists()


def test_a_finished_lora_whose_stopped_run_still_lies_there_is_not_made_twice(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    """As after a kill between the two; the LoRA of another training keeps its name."""
    cancelled(comfy, mini, dataset, "finished", 1, steps=3)
    (kept,) = (comfy.base / "output" / "mudi" / "finished").iterdir()
    stopped = kept.read_bytes()
    train(comfy, mini, dataset, "finished", steps=3)
    (lora,) = loras(comfy, "finished")
    whole = lora.read_bytes()
    for taken, wanted in ((whole, 1), (random_lora(lora).read_bytes(), 2)):
        lora.write_bytes(taken)
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(stopped)
        train(comfy, mini, dataset, "finished", steps=3)
        assert len(loras(comfy, "finished")) == wanted and not kept.exists()
        assert loras(comfy, "finished")[-1].read_bytes() == whole and lora.read_bytes() == taken


def test_priors_are_learnt_beside_the_subjects(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    others = SubjectSet(tuple(replace(one, token=f"prior{i}") for i, one in enumerate(dataset.subjects)))
    with_priors = segmix(comfy, dataset.subjects, priors=others)[0]
    assert with_priors.priors is others
    _, plain, curve = train(comfy, mini, dataset, "plain").result
    _, besides, other_curve = train(comfy, mini, with_priors, "besides").result
    folder = comfy.base / "models" / "loras"
    one, two = (load_lora(folder / name)[0] for name in (plain, besides))
    assert any(not torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(curve, other_curve)


def test_settings_change_nothing_as_they_come(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    train(comfy, mini, dataset, "as_is")
    train(comfy, mini, dataset, "as_is", settings=train_settings(comfy))
    without, with_settings = (path.read_bytes() for path in loras(comfy, "as_is"))
    assert without == with_settings


def test_each_setting_reaches_the_training(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    changed = {
        "warm_up": 1, "accumulation": 2, "alpha": 1.0, "min_snr_gamma": 5.0, "noise_offset": 0.05, "kl_weight": 0.5,
        "buckets": True, "schedule": "cosine",
    }  # fmt: skip
    name = train(comfy, mini, dataset, "told", settings=train_settings(comfy, **changed)).result[1]
    config = config_of(comfy, name)
    changed["lr_warmup"], changed["lr_schedule"] = changed.pop("warm_up"), changed.pop("schedule")
    assert {name: config[name] for name in changed} == changed


def test_a_way_of_learning_takes_the_place_of_the_widgets(comfy: Comfy) -> None:
    def learning(**changed: Any) -> dict[str, Any]:
        values = train_settings(comfy, schedule="linear", warm_up=7, **changed).values
        return {name: values.get(name) for name in ("steps", "rank", "learning_rate", "lr_schedule", "lr_warmup")}

    assert list(learning().values()) == [None, None, None, "linear", 7]
    assert list(learning(learning="quick look").values()) == [300, 8, 3e-4, "cosine", 20]
    assert list(learning(learning="standard").values()) == [1200, 32, 1e-4, "cosine", 50]
    assert list(learning(learning="paper").values()) == [1200, 32, 1e-4, "constant", 0]
    assert learning(learning="paper", optimizer="prodigy")["learning_rate"] == 1.0


def chosen(comfy: Comfy, family: Family, settings: Any = None, **widgets: Any) -> TrainConfig:
    """What the node makes of its widgets for a kind of model; numbers are left at 0."""
    node, sockets = comfy.module("train"), comfy.module("sockets")
    numbers = dict.fromkeys(("steps", "rank", "learning_rate", "batch_size"), 0)
    given = {"method": "segmix", "seed": 0, "preset": "auto", "loss": "as the preset", **numbers, **widgets}
    config: TrainConfig = node.config_of(
        family, given, sockets.TrainingSet(subjects=None), settings or sockets.TrainSettings(), 0
    )
    return config


@pytest.mark.parametrize(
    ("name", "kohya", "resolution"),
    [
        ("", "sdxl_base_v1-0", 1024),
        ("", "sd_v1", 512),
        ("", "sd_v1_v", 512),
        ("", "sd_v2", 512),
        ("", "sd_v2_v", 768),
        ("mini", "sdxl_base_v1-0", 192),
    ],
)
def test_auto_is_what_is_usual_for_each_kind_of_model(comfy: Comfy, name: str, kohya: str, resolution: int) -> None:
    family = usual(name, kohya)
    wanted = TrainConfig.usual(family, layout=LayoutConfig())
    assert chosen(comfy, family) == wanted and wanted.samples.resolution == resolution
    said = chosen(comfy, family, steps=7, rank=3, learning_rate=2e-4, batch_size=5, loss="DCO")
    assert said == wanted.but(steps=7, rank=3, learning_rate=2e-4, batch_size=5, dco_beta=1000.0)


@pytest.mark.parametrize("learning", ["as in Train LoRA", "standard"])
def test_a_rate_of_0_is_prodigys_own_with_prodigy(comfy: Comfy, learning: str) -> None:
    settings = train_settings(comfy, optimizer="prodigy", learning=learning)
    for family in (usual("mini"), usual("", "sdxl_base_v1-0")):
        assert chosen(comfy, family, settings).learning.learning_rate == 1.0
    said = chosen(comfy, usual("mini"), train_settings(comfy, optimizer="prodigy"), learning_rate=0.5)
    assert said.learning.learning_rate == 0.5


def test_the_embedded_model_is_known_by_its_model(comfy: Comfy, mini: tuple[Any, Any, Any]) -> None:
    base = comfy.module("base")
    assert base.usual_of(mini[0]) == usual("mini") and base.usual_of(mini[0].clone()) == usual("mini")
    other = other_model(comfy, "SDXL", {**mini[0].model.model_config.unet_config})
    assert base.usual_of(other) == usual("", "sdxl_base_v1-0")


@pytest.mark.parametrize(
    ("preset", "loss", "learning", "beta"),
    [
        ("SDXL, 1024 px", "as the preset", "as in Train LoRA", 500.0),
        ("mini, 192 px", "as the preset", "as in Train LoRA", 0.0),
        ("SDXL, 1024 px", "paper", "as in Train LoRA", 0.0),
        ("mini, 192 px", "DCO", "as in Train LoRA", 500.0),
        ("SDXL, 1024 px", "as the preset", "paper", 0.0),
        ("SDXL, 1024 px", "DCO", "paper", 500.0),
        ("SDXL, 1024 px", "paper", "official code", 0.0),
        ("SDXL, 1024 px", "as the preset", "official code", 500.0),
    ],
)
def test_the_loss_is_the_presets_unless_one_is_chosen(
    comfy: Comfy, preset: str, loss: str, learning: str, beta: float
) -> None:
    settings = train_settings(comfy, learning=learning, dco_beta=500.0, prior_weight=0.5)
    config = chosen(comfy, usual("", "sdxl_base_v1-0"), settings, preset=preset, loss=loss)
    assert config.learning.dco_beta == beta and config.samples.prior_loss_weight == 0.5


def test_a_small_card_keeps_the_steps_and_leaves_the_model_alone(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    before = weights(*mini)
    settings = train_settings(comfy, memory="6 GB")
    model, name, _ = train(comfy, mini, dataset, "small", steps=1, batch_size=3, settings=settings).result
    config = config_of(comfy, name)
    assert (config["batch_size"], config["accumulation"], config["base_weights"]) == (1, 3, "nf4")
    assert config["precision"] == "bf16" and config["gradient_checkpointing"] == "full"
    assert all(map(torch.equal, weights(*mini), before)) and len(model.patches) == MODULES
    prodigy = replace(settings, values={"optimizer": "prodigy", "learning_rate": 1.0})
    made = chosen(comfy, usual("", "sdxl_base_v1-0"), prodigy)
    assert (made.learning.optimizer, made.learning.base_weights, made.samples.samples_per_step) == ("prodigy", "nf4", 2)


def test_loras_are_saved_on_the_way_and_one_can_be_begun_with(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any
) -> None:
    _, whole, _ = train(comfy, mini, dataset, "often", settings=train_settings(comfy, save_every=1)).result
    assert [path.name for path in loras(comfy, "often")] == ["often_00001-000001.safetensors", whole]
    halfway = loras(comfy, "often")[0]
    assert load_lora(halfway)[1]["ss_steps"] == "1"
    comfy.core("folder_paths").filename_list_cache.clear()
    begun = train_settings(comfy, start_from=halfway.name)
    _, on, _ = train(comfy, mini, dataset, "often", steps=1, learning_rate=1e-7, settings=begun).result
    assert on == "often_00002.safetensors"
    start, (end, about) = load_lora(halfway)[0], load_lora(halfway.with_name(on))
    assert all(torch.allclose(start[key], end[key], atol=1e-4) for key in start) and about["mudi_start"]
    cut = train(comfy, mini, dataset, "often", steps=1, rank=1, settings=begun)
    assert re.search(rf"The start holds \d\d\.\d % of what {halfway.name} changes", cut.ui["text"][0])


def test_one_subject_is_trained_as_dreambooth_only(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any) -> None:
    alone = segmix(comfy, SubjectSet(dataset.subjects.subjects[:1]))[0]
    with pytest.raises(OneSubject, match="only one subject, 'olis cat'.*or train with the method 'dreambooth'"):
        train(comfy, mini, alone, "alone")
    assert not loras(comfy, "alone")
    train(comfy, mini, alone, "alone", method="dreambooth", steps=1)
    assert len(loras(comfy, "alone")) == 1


def test_what_was_encoded_outlives_a_restart(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(comfy, mini, dataset, "kept").result[1]
    assert list((comfy.base / "user" / "__mudi").glob("*.safetensors"))
    encoded: list[int] = []
    encode = mini[2].encode
    monkeypatch.setattr(mini[2], "encode", lambda images: encoded.append(len(images)) or encode(images))
    second = train(comfy, mini, dataset, "kept").result[1]
    assert encoded == [1, 1]  # a look at whether the parts fit, and the probe that tells one VAE from another
    folder = comfy.base / "models" / "loras"
    assert (folder / first).read_bytes() == (folder / second).read_bytes()


def test_cancel_while_encoding_leaves_nothing(
    comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, interrupt: Any
) -> None:
    interrupt()
    with pytest.raises(comfy.core("comfy.model_management").InterruptProcessingException):
        train(comfy, mini, dataset, "early")
    assert not loras(comfy, "early")


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", "C:x", ".hidden", "con", "x" * 300, " x"])
def test_a_lora_name_leads_nowhere_else(comfy: Comfy, mini: tuple[Any, Any, Any], dataset: Any, name: str) -> None:
    told = comfy.node("MudiTrainLora").validate_inputs(name=name)
    assert isinstance(told, str) and "LoRA" in told
    with pytest.raises(comfy.module("host.folders").BadName):
        train(comfy, mini, dataset, name)
