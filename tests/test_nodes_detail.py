"""Detail Subjects: figures are sampled again on the stock sampler, and the rest of a picture stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from torch import Tensor

from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.layout import Figure, ordered_layout
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.stage.segmix import compose
from mudi_core.types import SubjectSet

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
        "prompt": "a photo of {name}", "negative": "", "seed": 3, "steps": 4, "cfg": 3.0, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 0.5, "side": 96, "margin": 0.25, "feather": 0.04, "only_better": False,
        "detector": MINI, "segmenter": MINI, "embedder": MINI, "threshold": 0.05, "query": "", "cut_out": True,
        "download": False,
    } | more  # fmt: skip
    values = {name: [value] for name, value in widgets.items()}
    return comfy.run("MudiDetail", images=images, subjects=[subjects], model=[model], clip=[clip], vae=[vae], **values)


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
    output = detailed(comfy, drawn_subjects, [picture[None], empty])
    images, _, masks, segs = output.result
    assert [image.shape for image in images] == [(1, 192, 192, 3), (1, 96, 128, 3)]
    assert torch.equal(images[1], empty) and not masks[1].any() and segs[1] == ((96, 128), [])
    assert "picture 2: no figure of a subject was found; it stays as it is." in output.ui["text"][0]


def test_figures_are_never_less_themselves(
    comfy: Comfy, mini_weights: None, drawn_subjects: SubjectSet, picture: Tensor
) -> None:
    """Noise alone (denoise 1 with an unknown prompt) makes them worse, so they stay."""
    settings = {"denoise": 1.0, "prompt": "nothing", "only_better": True}
    (image,), _, (mask,), _ = detailed(comfy, drawn_subjects, [picture[None]], **settings).result
    assert torch.equal(image, picture[None]) and not mask.any()


@pytest.mark.parametrize("prompt", ["a photo of {who}", "{}", "{name!r}"])
def test_an_unknown_field_is_refused_before_anything_runs(comfy: Comfy, prompt: str) -> None:
    said = comfy.node("MudiDetail").validate_inputs(prompt=[prompt])
    assert isinstance(said, str) and "There are {name}, {token}, {class}." in said
    assert comfy.node("MudiDetail").validate_inputs(prompt=["{token}, a {class}, {name}"]) is True
