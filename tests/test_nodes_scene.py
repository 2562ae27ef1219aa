"""Subjects in a given picture: what is kept of it, to the bit, and what of the start is where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import Comfy
from PIL import Image

from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.regions import drawn_anew
from mudi_core.stage.segmix import compose
from mudi_core.start.init_latent import BadLatent
from mudi_core.types import BadLayout, Layout, Placement, SubjectSet

SIDE = 128
PLACES = '{"olis": [0, 300, 400, 800], "hta": [600, 300, 1000, 800]}'


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


def scene(width: int = SIDE, height: int = SIDE) -> torch.Tensor:
    """A picture in which no two pixels are alike: red grows to the right, green downwards."""
    across, down = torch.linspace(0, 1, width), torch.linspace(0, 1, height)
    red, green = across.expand(height, width), down[:, None].expand(height, width)
    return torch.stack([red, green, torch.zeros(height, width)], -1)


def place(comfy: Comfy, subjects: SubjectSet, picture: torch.Tensor | None, **more: Any) -> Any:
    batch = None if picture is None else picture if picture.ndim == 4 else picture[None]
    settings = {"width": SIDE, "height": SIDE, "mode": "from text", "text": PLACES, "seed": 3, **more}
    return comfy.run("MudiLayout", subjects=subjects, relative_sizes="", overlap=0.0, scene=batch, **settings)


def begin(comfy: Comfy, layout: Any, vae: Any, **more: Any) -> Any:
    settings = {"gamma": 2.0, "batch_size": 1, "seed": 3, **more}
    return comfy.run("MudiInitLatent", layout=layout, vae=vae, **settings).result


def test_the_layout_stands_in_the_scene(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    output = place(comfy, drawn_subjects, scene())
    (placed,) = output.result
    layout = comfy.module("generate").drawn_layout(placed, 3, 0)
    canvas, white = placed.canvas(layout), compose(layout, placed.cutouts)
    assert torch.equal(canvas.masks, white.masks)
    free, taken = canvas.mask == 0, canvas.mask == 1
    assert (canvas.image[free] - scene()[free]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(canvas.image[taken], white.image[taken]) and taken.sum() > 500
    (told,) = output.ui["mudi_layout"]
    with Image.open(comfy.base / "temp" / told["scene"]) as shown:
        assert shown.size == (SIDE, SIDE)
    assert "scene" not in place(comfy, drawn_subjects, None).ui["mudi_layout"][0]


def test_a_scene_of_another_shape_fills_the_canvas_and_is_said(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    wide = place(comfy, drawn_subjects, scene(400, 200))
    placed = wide.result[0].scene
    assert placed.shape == (SIDE, SIDE, 3)
    assert placed[0, 0, 0] == pytest.approx(0.25, abs=0.02) and placed[0, -1, 0] == pytest.approx(0.75, abs=0.02)
    assert placed[-1, 0, 1] == pytest.approx(1, abs=0.02)
    assert "a picture of 400x200 px was resized and cut to 128x128 px" in wide.ui["text"][0]
    small = place(comfy, drawn_subjects, torch.stack([scene(64, 64), scene(64, 64)]))
    assert "the first of 2 pictures is used" in small.ui["text"][0] and "and cut" not in small.ui["text"][0]
    assert "a picture of 64x64 px was resized to 128x128 px" in small.ui["text"][0]
    enlarged = small.result[0].scene
    assert enlarged.shape == (SIDE, SIDE, 3) and (enlarged - scene()).abs().max() < 0.02


@pytest.mark.parametrize(("side", "size"), [((8, 8), (1024, 64)), ((8, 200), (1024, 64)), ((300, 8), (64, 512))])
def test_a_tiny_scene_fills_a_long_canvas(comfy: Comfy, side: tuple[int, int], size: tuple[int, int]) -> None:
    """Of which it shows less than a pixel's height."""
    picture, said = comfy.module("scene").fitted(scene(*side)[None], size)
    assert picture.shape == (size[1], size[0], 3) and 0 <= picture.min() <= picture.max() <= 1
    assert f"a picture of {side[0]}x{side[1]} px was resized and cut to {size[0]}x{size[1]} px" in said


def test_the_latent_is_the_scene_outside_and_may_change_around_the_figures(
    comfy: Comfy, drawn_subjects: SubjectSet, mini: Any
) -> None:
    (placed,) = place(comfy, drawn_subjects, scene()).result
    latent, _, mask = begin(comfy, placed, mini[2], around=0.1)
    with torch.inference_mode():
        kept = mini[2].encode(scene()[None])
    changes, m = latent["noise_mask"], compose(comfy.module("generate").drawn_layout(placed, 3, 0), placed.cutouts).mask
    assert changes.shape == (1, 1, SIDE // 8, SIDE // 8) and set(changes.unique().tolist()) == {0, 1}
    outside = changes[0, 0] == 0
    assert outside.any() and torch.allclose(latent["samples"][0, :, outside], kept[0, :, outside], atol=1e-5)
    inside = torch.nn.functional.avg_pool2d(m[None], 8)[0] == 1
    assert (changes[0, 0][inside] == 1).all() and not torch.allclose(
        latent["samples"][0, :, inside], kept[0, :, inside], atol=1e-2
    )
    still = torch.nn.functional.interpolate(changes, scale_factor=8)[0, 0] == 0
    assert mask.shape == (1, SIDE, SIDE) and (mask[0][still] == 0).all()
    assert mask[0][m == 1].mean() > 0.95
    wider, _, _ = begin(comfy, placed, mini[2], around=0.5)
    assert wider["noise_mask"].sum() > changes.sum()


def test_a_sampled_and_pasted_picture_is_the_photo_outside_to_the_bit(
    comfy: Comfy, drawn_subjects: SubjectSet, mini: Any
) -> None:
    """KSampler leaves the latent alone there, and ImageCompositeMasked puts the photo back."""
    model, clip, vae = mini
    (placed,) = place(comfy, drawn_subjects, scene()).result
    latent, _, mask = begin(comfy, placed, vae, batch_size=2, same_places=True)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="a photo of olis cat and hta cat")
    (done,) = comfy.run_stock(
        "KSampler", model=model, seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", positive=words,
        negative=words, latent_image=latent, denoise=1.0,
    )  # fmt: skip
    still = (latent["noise_mask"] == 0).expand_as(done["samples"])
    assert torch.allclose(done["samples"][still], latent["samples"][still], atol=1e-5)
    assert not torch.allclose(done["samples"][~still], latent["samples"][~still], atol=0.1)
    with torch.inference_mode():
        pictures = vae.decode(done["samples"])
    composite = comfy.core("comfy_extras.nodes_mask").composite
    photo, kept = scene()[None].movedim(-1, 1), 1 - mask
    pasted = composite(pictures.clone().movedim(-1, 1), photo, 0, 0, kept, 1, False).movedim(1, -1)
    assert len(pasted) == 2  # the batch is the destination's
    for one, new, picture in zip(pasted, mask, pictures, strict=True):
        assert torch.equal(one[new == 0], scene()[new == 0]) and torch.allclose(one[new == 1], picture[new == 1])
        assert (new == 0).sum() > 500 and (new == 1).sum() > 500


def test_without_a_scene_nothing_is_masked(comfy: Comfy, drawn_subjects: SubjectSet, mini: Any) -> None:
    (placed,) = place(comfy, drawn_subjects, None).result
    latent, _, mask = begin(comfy, placed, mini[2], batch_size=2)
    assert "noise_mask" not in latent and torch.equal(mask, torch.ones(2, SIDE, SIDE))


def test_two_grounds_are_one_too_many(comfy: Comfy, drawn_subjects: SubjectSet, mini: Any) -> None:
    (placed,) = place(comfy, drawn_subjects, scene()).result
    below = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    with pytest.raises(BadLatent, match="Layout has a scene.*Disconnect one"):
        begin(comfy, placed, mini[2], below=below)


def test_the_canvas_and_the_layers_for_other_nodes_have_the_scene(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    (placed,) = place(comfy, drawn_subjects, scene()).result
    *_, canvas, _, layers = comfy.run("MudiLayoutParts", layout=placed, shape="figure", grow=0).result
    assert torch.equal(layers["layers"][0]["image"][0], placed.scene)
    assert (canvas[0, 0] - scene()[0]).abs().max() <= 0.5 / 255 + 1e-6


def test_find_best_seed_draws_in_the_scene_too(comfy: Comfy, drawn_subjects: SubjectSet, mini: Any) -> None:
    model, clip, vae = mini
    (placed,) = place(comfy, drawn_subjects, scene()).result
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="olis cat and hta cat")
    sampler = comfy.module("host").Sampler(model, words, words, 1, 1.0, "euler", "normal")
    painter = comfy.module("painting").Painter(sampler, vae, placed, lambda done, total: None, 1)
    with torch.inference_mode():
        _, picture = painter.paint(4, 2.0)
    _, new = comfy.module("scene").changed(placed, comfy.module("generate").drawn_layout(placed, 4, 0), 0.2)
    assert torch.equal(picture[new == 0], placed.scene[new == 0]) and not torch.equal(picture, placed.scene)


def test_what_changes_reaches_as_far_around_as_asked(drawn_subjects: SubjectSet) -> None:
    cutouts = cut_outs(drawn_subjects)
    layout = Layout((512, 512), (Placement("olis", (0.35, 0.35, 0.65, 0.65)),))
    figure = torch.nn.functional.max_pool2d((compose(layout, cutouts).mask > 0.5).float()[None], 8)[0]
    areas = [float(drawn_anew(layout, cutouts, around).sum()) for around in (0.0, 0.1, 0.2, 0.4)]
    assert areas == sorted(set(areas)) and areas[0] >= float(figure.sum())
    rows = drawn_anew(layout, cutouts, 0.2).amax(1).nonzero()[:, 0]
    own = figure.amax(1).nonzero()[:, 0]
    assert 2 <= int(own[0] - rows[0]) <= 6  # 0.2 of a figure of 154 px are 4 cells


def test_a_picture_of_another_size_is_no_ground(drawn_subjects: SubjectSet) -> None:
    cutouts = cut_outs(drawn_subjects)
    with pytest.raises(BadLayout, match="64x32 px, the canvas 128x128 px"):
        compose(Layout((128, 128), (Placement("olis", (0, 0, 1, 1)),)), cutouts, torch.zeros(32, 64, 3))
