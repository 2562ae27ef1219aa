"""Detail Subjects: figures are sampled again on the stock sampler, and the rest of a picture stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from models import random_lora
from safetensors.torch import save_file
from torch import Tensor

from mudi_core.lora.change import BadLora
from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.layout import Figure, ordered_layout
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.stage.segmix import compose
from mudi_core.types import MudiError, SubjectSet

MINI = "embedded (drawn toys only)"


@pytest.fixture(scope="module")
def picture(drawn_subjects: SubjectSet) -> Tensor:
    """Both subjects side by side on a beige ground."""
    cutouts = cut_outs(drawn_subjects)
    figures = [Figure(token, cutouts.get(token, 0).aspect, 0) for token in drawn_subjects.tokens]
    layout = ordered_layout(figures, (192, 192), LayoutConfig(), rows=1)
    return compose(layout, cutouts, (0.9, 0.85, 0.7)).image


def detailed(comfy: Comfy, subjects: SubjectSet, images: list[Tensor], **more: Any) -> Any:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    widgets = {
        "model": model, "clip": clip,
        "prompt": "a photo of {name}", "negative": "", "seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 0.5, "side": 96, "margin": 0.25, "feather": 0.04, "only_better": False,
        "detector": MINI, "segmenter": MINI, "embedder": MINI, "threshold": 0.05, "query": "", "cut_out": True,
        "download": False,
    } | more  # fmt: skip
    values = {name: [value] for name, value in widgets.items()}
    return comfy.run("MudiDetail", images=images, subjects=[subjects], vae=[vae], **values)


def test_only_what_the_masks_show_changes(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor
) -> None:
    output = detailed(comfy, drawn_subjects, [picture[None]])
    (image,), (card,), (mask,), ((size, segs),) = output.result
    assert image.shape == (1, *picture.shape) and mask.shape == image.shape[:3] and card.ndim == 4
    assert 0.02 < (mask > 0).float().mean() < 0.9
    assert torch.equal(image[mask == 0], picture[None][mask == 0])
    assert (image - picture)[mask[..., None].expand_as(image) > 0.9].abs().mean() > 0.005
    assert size == tuple(picture.shape[:2]) and len(segs) == 2
    for seg in segs:
        x0, y0, x1, y1 = seg.crop_region
        assert torch.equal(seg.cropped_image[0], picture[y0:y1, x0:x1])
        assert seg.cropped_mask.shape == (y1 - y0, x1 - x0) and seg.label in ("olis cat", "hta cat")
    assert "before" in output.ui["text"][0] and "is new" in output.ui["text"][0]


def test_the_seed_decides_and_nothing_else(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor
) -> None:
    first, again, other = (
        detailed(comfy, drawn_subjects, [picture[None]], seed=seed).result[0][0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pictures_of_several_sizes_and_without_figures(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor
) -> None:
    empty = torch.full((1, 96, 128, 3), 0.5)
    output = detailed(comfy, drawn_subjects, [picture[None], torch.cat([empty, empty])])  # batches in a list
    images, cards, masks, segs = output.result
    assert [image.shape for image in images] == [(1, 192, 192, 3), (1, 96, 128, 3), (1, 96, 128, 3)]
    assert len(cards) == len(masks) == len(segs) == 3 and torch.equal(images[2], empty)
    assert torch.equal(images[1], empty) and not masks[1].any() and segs[1] == ((96, 128), [])
    assert "picture 2: no figure of a subject was found; it stays as it is." in output.ui["text"][0]


def test_figures_are_never_less_themselves(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor
) -> None:
    """Noise alone (denoise 1 with an unknown prompt) makes them worse, so they stay."""
    settings = {"denoise": 1.0, "prompt": "nothing", "only_better": True}
    (image,), _, (mask,), _ = detailed(comfy, drawn_subjects, [picture[None]], **settings).result
    assert torch.equal(image, picture[None]) and not mask.any()


@pytest.fixture(scope="module")
def loras(comfy: Comfy, drawn_subjects: SubjectSet) -> list[Any]:
    """A LoRA of noise for each subject, the second's first."""
    kind, folder = comfy.module("sockets").SubjectLora, comfy.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    named = list(enumerate(reversed(drawn_subjects.tokens), start=1))
    return [kind(random_lora(folder / f"own{i}.safetensors", i), name, 1.0, 1.0) for i, name in named]


APART = {"margin": 0.0, "feather": 0.0}
"""Nothing of the other figure is in sight, so that what it became does not matter."""


def test_each_figure_is_sampled_with_its_own_lora(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor, loras: list[Any]
) -> None:
    """What a figure becomes is what it becomes with its LoRA loaded on the whole model, and nothing of the other's."""
    plain = detailed(comfy, drawn_subjects, [picture[None]], **APART)
    each = detailed(comfy, drawn_subjects, [picture[None]], **APART, loras=tuple(loras))
    assert each.ui["text"][0].splitlines()[1:] == [
        *("olis cat: own2.safetensors", "hta cat: own1.safetensors"),
        *(
            "own2.safetensors: 28 layers of the network are changed.",
            "own1.safetensors: 28 layers of the network are changed.",
        ),
    ]
    places = {seg.label: seg for seg in each.result[3][0][1]}
    parts: dict[str, list[Tensor]] = {}
    for one in loras:
        worn, reads, _ = comfy.module("own_loras").wearing(*comfy.run("MudiMiniCheckpoint").result[:2], one)
        whole = detailed(comfy, drawn_subjects, [picture[None]], **APART, model=worn, clip=reads)
        for name, seg in places.items():
            x0, y0, x1, y1 = seg.crop_region
            inside = torch.from_numpy(seg.cropped_mask) > 0.9
            parts.setdefault(name, []).append(
                torch.stack([got.result[0][0][0, y0:y1, x0:x1][inside] for got in (each, whole, plain)])
            )
    for name, (with_first, with_second) in parts.items():
        own, other = (with_second, with_first) if name == "olis cat" else (with_first, with_second)
        assert torch.equal(own[0], own[1])
        assert (own[0] - other[1]).abs().mean() > 0.01 and (own[0] - own[2]).abs().mean() > 0.01


def test_a_subject_without_a_lora_is_sampled_with_the_model_alone(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor, loras: list[Any]
) -> None:
    plain = detailed(comfy, drawn_subjects, [picture[None]], **APART)
    one = detailed(comfy, drawn_subjects, [picture[None]], **APART, loras=(loras[0],))
    assert one.ui["text"][0].splitlines()[1:2] == ["hta cat: own1.safetensors"]
    for seg in one.result[3][0][1]:
        x0, y0, x1, y1 = seg.crop_region
        inside = torch.from_numpy(seg.cropped_mask) > 0.9
        new, old = (got.result[0][0][0, y0:y1, x0:x1][inside] for got in (one, plain))
        assert torch.equal(new, old) == (seg.label == "olis cat")


def test_a_lora_of_nobody_or_of_another_model_is_refused_before_anything_is_sampled(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor, loras: list[Any]
) -> None:
    kind, path = type(loras[0]), loras[0].path.with_name("flux.safetensors")
    with pytest.raises(MudiError, match="'rex', and no subjects have this name. There are: olis cat, hta cat"):
        detailed(comfy, drawn_subjects, [picture[None]], loras=(kind(path, "rex", 1.0, 1.0),))
    layer = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{layer}.lora_up.weight": torch.ones(4, 1), f"{layer}.lora_down.weight": torch.ones(1, 4)}, path)
    with pytest.raises(BadLora, match="Nothing that flux.safetensors changes is in the model.*FLUX"):
        detailed(comfy, drawn_subjects, [picture[None]], loras=(kind(path, "olis", 1.0, 1.0),))
    path.unlink()


@pytest.mark.parametrize("prompt", ["a photo of {who}", "{}", "{name!r}"])
def test_an_unknown_field_is_refused_before_anything_runs(comfy: Comfy, prompt: str) -> None:
    said = comfy.node("MudiDetail").validate_inputs(prompt=[prompt])
    assert isinstance(said, str) and "There are {name}, {token}, {class}." in said
    assert comfy.node("MudiDetail").validate_inputs(prompt=["{token}, a {class}, {name}"]) is True
