"""From LoRAs of single subjects to a decoupled fusion, in nodes: paint, fuse, train on top, and load one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import random_lora
from safetensors.torch import load_file, save_file
from test_lora_reading import other_names
from torch import Tensor

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.lora.reading import read_lora
from mudi_core.types import Detections, Photo, SubjectSet

SIDE = 64
PAINT = {
    **{"count": 2, "spare": 1, "width": SIDE, "height": SIDE, "seed": 5, "steps": 1, "cfg": 1.0},
    **{"sampler_name": "euler", "scheduler": "normal", "scenes": "at sea\n\n in the snow ", "negative": ""},
    **{"detector": "mini (embedded)", "segmenter": "mini (embedded)", "embedder": "mini (embedded)"},
    **{"threshold": 0.03, "download": False},
}
TRAIN = {
    **{"name": "apart", "method": "segmix", "preset": "decouple", "steps": 1, "rank": 2, "learning_rate": 0.0},
    **{"batch_size": 1, "seed": 0},
}


@pytest.fixture
def parts(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


@pytest.fixture
def loras(comfy: Comfy) -> Any:
    kind, folder = comfy.module("sockets").SubjectLora, comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    named = enumerate(("olis corgi", "hta cat"), start=1)
    return tuple(kind(random_lora(folder / f"single{i}.safetensors", i), name, 1.0, 1.0) for i, name in named)


@pytest.fixture
def seen(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The pictures that were looked at, in each of which one figure is found."""
    pictures: list[Tensor] = []

    def detect(image: Tensor, queries: list[str], threshold: float) -> Detections:
        pictures.append(image)
        return Detections(torch.tensor([[8.0, 8.0, 40.0, 56.0]]), torch.full((1,), 0.9), (queries[0],), 0.9)

    def segment(image: Tensor, xyxy: Tensor) -> Tensor:
        mask = torch.zeros(len(xyxy), SIDE, SIDE)
        mask[:, 8:56, 8:40] = 1
        return mask

    def embed(images: list[Tensor]) -> Tensor:
        return torch.stack([image.mean((0, 1)) for image in images])

    host = comfy.module("host")
    for name, eye in (("detector", detect), ("segmenter", segment), ("embedder", embed)):
        monkeypatch.setattr(host, name, lambda choice, download=False, eye=eye: eye)
    return pictures


def paint(comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, **more: Any) -> Any:
    model, clip, vae = parts
    return comfy.run("MudiSubjectsFromLoras", model=model, clip=clip, vae=vae, loras=loras, **{**PAINT, **more})


def test_each_picture_is_what_stock_nodes_sample_with_the_subjects_own_lora(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, seen: list[Tensor]
) -> None:
    from random import Random

    made = paint(comfy, parts, loras)
    (subjects,) = made.result
    assert [subject.name for subject in subjects] == ["olis corgi", "hta cat"] and len(seen) == 6
    assert "olis corgi: 2 pictures" in made.ui["text"][0]
    model, clip, vae = parts
    assert not model.patches and not clip.patcher.patches
    wearing, reads = comfy.run_stock(
        "LoraLoader", model=model, clip=clip, lora_name="single2.safetensors", strength_model=1.0, strength_clip=1.0
    )
    (said,) = comfy.run_stock("CLIPTextEncode", clip=reads, text="a photo of hta cat in the snow")
    (nothing,) = comfy.run_stock("CLIPTextEncode", clip=reads, text="")
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    (samples,) = comfy.run_stock(
        "KSampler", model=wearing, seed=Random("5/hta cat/1").getrandbits(63), steps=1, cfg=1.0, sampler_name="euler",
        scheduler="normal", positive=said, negative=nothing, latent_image=empty, denoise=1.0,
    )  # fmt: skip
    (picture,) = comfy.run_stock("VAEDecode", samples=samples, vae=vae)
    assert torch.equal(picture[0], seen[4])


def test_a_file_of_diffusers_paints_the_same_and_what_fits_is_told(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, seen: list[Tensor]
) -> None:
    """ComfyUI's own loader finds none of its layers; Fuse LoRAs reads it."""
    denoiser = open_checkpoint("mini").denoiser()
    modules = {denoiser.file_name(name): name for name in denoiser.layers()}
    state = load_file(loras[0].path)
    path = loras[0].path.with_name("diffusers.safetensors")
    strange = {"lora_unet_x.lora_down.weight": torch.ones(1, 4), "lora_unet_x.lora_up.weight": torch.ones(4, 1)}
    save_file(other_names(state, modules, "unet.lora_A") | strange, path)
    paint(comfy, parts, loras[:1])
    made = paint(comfy, parts, (type(loras[0])(path, "olis corgi", 1.0, 1.0),))
    assert len(seen) == 6 and all(map(torch.equal, seen[:3], seen[3:]))
    assert made.ui["text"][0].splitlines()[1:] == [
        f"diffusers.safetensors: {len(state) // 3} layers of the network are changed; 1 is not in the model, such as "
        "lora_unet_x."
    ]


def test_a_lora_of_another_kind_of_model_is_told(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, seen: list[Tensor]
) -> None:
    path = loras[0].path.with_name("flux.safetensors")
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{layer}.lora_up.weight": torch.ones(4, 1), f"{layer}.lora_down.weight": torch.ones(1, 4)}, path)
    flux = comfy.module("sockets").SubjectLora(path, "olis corgi", 1.0, 1.0)
    with pytest.raises(Exception, match=r"Nothing that flux.safetensors changes is in the model.*FLUX"):
        paint(comfy, parts, (flux,))
    assert not seen


def dataset(comfy: Comfy, subjects: SubjectSet) -> Any:
    """Of photos alone: the preset knows better."""
    return comfy.run(
        "MudiSegMixDataset", subjects=subjects, probability=0.0, relative_sizes="", overlap=0.2, background_weight=1.0
    ).result[0]


def test_a_fusion_is_decoupled_into_two_files_and_one(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, drawn_subjects: SubjectSet
) -> None:
    model, clip, vae = parts
    fused, reads, fusion = comfy.run(
        "MudiFuseLoras", model=model, clip=clip, loras=loras, name="ab", method="sum", rank=0, pictures=1, steps=1,
        width=SIDE, height=SIDE, seed=0,
    ).result  # fmt: skip
    learned = comfy.run(
        "MudiTrainLora",
        model=fused,
        clip=reads,
        vae=vae,
        dataset=dataset(comfy, drawn_subjects),
        on_lora=fusion,
        **TRAIN,
    )
    wearing, name, _ = learned.result
    folder = comfy.base / "models" / "loras"
    part, whole = read_lora(folder / name.replace("-whole", "")), read_lora(folder / name)
    assert (
        name.endswith("-whole.safetensors") and f"on top of {fusion}; both as one file: {name}" in learned.ui["text"][0]
    )
    config = json.loads(part.about["mudi_config"])
    assert (config["segmix_prob"], config["kl_weight"], config["dco_beta"], config["steps"]) == (1.0, 1.0, 0.0, 1)
    assert [one["file"] for one in json.loads(whole.about["mudi_parents"])] == [fusion, part.name]
    (alone, _) = comfy.run_stock(
        "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
    )
    both, one = changed(comfy, wearing), changed(comfy, alone)
    assert both.keys() == one.keys() and len(both) == 84
    for key, value in both.items():
        assert (one[key] - value).norm() <= 1e-5 * value.norm(), key


def changed(comfy: Comfy, model: Any) -> dict[str, Tensor]:
    """The weights that patches change, as ComfyUI would compute them."""
    calculate, found = comfy.core("comfy.lora").calculate_weight, {}
    for key, patches in model.patches.items():
        weight = comfy.core("comfy.utils").get_attr(model.model, key).float().clone()
        found[key] = calculate(patches, weight, key)
    return found


def test_steps_are_those_of_the_preset_and_photos_alone_with_iterate(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    config_of, sockets = comfy.module("train_config").config_of, comfy.module("sockets")
    from mudi_core.bases.families import FAMILIES

    chosen = {
        "method": "segmix",
        "seed": 0,
        "steps": 0,
        "rank": 0,
        "learning_rate": 0.0,
        "batch_size": 0,
        "loss": "as the preset",
    }
    for family in (FAMILIES["mini"], FAMILIES["sdxl_base_v1-0"]):
        usual = config_of(
            family, {**chosen, "preset": "auto"}, sockets.TrainingSet(drawn_subjects), sockets.TrainSettings(), 0
        )
        for preset, share in (("decouple", 1.0), ("iterate", 0.0)):
            config = config_of(
                family, {**chosen, "preset": preset}, sockets.TrainingSet(drawn_subjects), sockets.TrainSettings(), 0
            )
            wanted = {"steps": 250, "segmix_prob": share, "kl_weight": 1.0, "dco_beta": 0.0}
            assert config.flat() == {**usual.flat(), **wanted}


@pytest.mark.parametrize("where", ["nothing on it", "another strength", "another LoRA"])
def test_a_model_without_the_lora_is_refused_before_it_is_trained(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, drawn_subjects: SubjectSet, where: str
) -> None:
    model, clip, vae = parts
    if where != "nothing on it":
        name, strength = ("single1.safetensors", 0.5) if where == "another strength" else ("single2.safetensors", 1.0)
        model, _ = comfy.run_stock(
            "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=strength, strength_clip=1.0
        )
    with pytest.raises(Exception, match=r"does not have single1.safetensors on it at strength 1.*leave on_lora empty"):
        comfy.run(
            "MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset(comfy, drawn_subjects),
            on_lora="single1.safetensors", **{**TRAIN, "name": "never"},
        )  # fmt: skip
    assert not list(Path(comfy.base / "models" / "loras").glob("never*"))


def test_a_photo_keeps_its_prompt_as_caption(
    comfy: Comfy, parts: tuple[Any, Any, Any], loras: Any, seen: list[Tensor]
) -> None:
    (subjects,) = paint(comfy, parts, loras[:1]).result
    photos: tuple[Photo, ...] = subjects.subjects[0].photos
    assert {photo.caption for photo in photos} <= {
        f"a photo of olis corgi {scene}" for scene in ("at sea", "in the snow")
    }
