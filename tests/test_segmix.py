from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from coloured import COLOURS, coloured, ellipse, paint

from mudi_core.boxes import to_pixels
from mudi_core.masks import mask_box
from mudi_core.stage.layout import random_layout
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.stage.segmix import (
    BadSegMixConfig,
    EmptyMask,
    SegMixConfig,
    TooFewSubjects,
    compose,
    cut_outs,
    cutmix,
    segmix,
)
from mudi_core.types import BadLayout, Layout, Mix, Photo, Placement, Subject, SubjectSet

SIZE = (256, 256)
CONFIG = SegMixConfig(size=SIZE)


def alone(token: str, box: tuple[float, float, float, float], size: tuple[int, int] = SIZE, **more: Any) -> Layout:
    return Layout(size, (Placement(token, box, **more),))


def one_of(image: torch.Tensor, mask: torch.Tensor) -> SubjectSet:
    return SubjectSet((Subject("it", "thing", (Photo("it.png", image),), (mask,)),))


def same(a: Mix, b: Mix) -> bool:
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.masks, b.masks)
        and (a.layout, a.caption)
        == (
            b.layout,
            b.caption,
        )
    )


@pytest.mark.parametrize("mix", [segmix, cutmix])
@pytest.mark.parametrize("size", [(256, 256), (320, 192), (101, 203)])
def test_a_mix_is_replayed_by_its_seed(mix: Any, size: tuple[int, int]) -> None:
    cutouts, config = cut_outs(coloured("red", "blue")), SegMixConfig(size=size)
    first = mix(cutouts, random.Random(1), config)
    assert first.image.shape == (size[1], size[0], 3) and first.masks.shape == (2, size[1], size[0])
    assert first.image.dtype == first.masks.dtype == torch.float32
    assert 0 <= first.image.min() and first.image.max() <= 1
    assert same(first, mix(cutouts, random.Random(1), config))
    assert not same(first, mix(cutouts, random.Random(2), config))


@pytest.mark.parametrize("tokens", [("red",), ("red", "blue", "orange"), ("red", "blue", "orange", "black")])
def test_no_pixel_belongs_to_two_and_all_others_are_background(tokens: tuple[str, ...]) -> None:
    cutouts, background = cut_outs(coloured(*tokens)), (0.2, 0.4, 0.6)
    for seed in range(8):
        rng = random.Random(seed)
        layout = random_layout(cutouts.figures(rng), rng, SIZE, LayoutConfig(min_visible=0.3))
        mix = compose(layout, cutouts, background)
        assert mix.masks.min() >= 0 and mix.masks.sum(0).max() <= 1 + 1e-6
        assert (mix.image[mix.mask == 0] == torch.tensor(background)).all()
        for placement, mask in zip(layout.placements, mix.masks, strict=True):
            colour = torch.tensor(COLOURS[placement.token])
            assert (mix.image[mask == 1] == colour).all() and mask.max() == 1


def test_the_one_on_top_is_whole_and_takes_from_those_below() -> None:
    cutouts = cut_outs(coloured("red", "blue"))
    box = (0.3, 0.1, 0.7, 0.9)
    below, above = Placement("red", box), Placement("blue", (0.4, 0.2, 0.8, 1.0))
    both = compose(Layout(SIZE, (below, above)), cutouts)
    only_red = compose(Layout(SIZE, (below,)), cutouts).masks[0]
    only_blue = compose(Layout(SIZE, (above,)), cutouts).masks[0]
    assert torch.equal(both.masks[1], only_blue)
    assert torch.allclose(both.masks[0], only_red * (1 - only_blue), atol=1 / 255)
    assert both.masks[0].sum() < only_red.sum()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("side", [0.08, 0.15, 0.33, 0.7, 1.0])
def test_no_halo_of_the_photos_surroundings(soft: bool, side: float) -> None:
    """A red ball from a green photo on white holds red, white and what lies between, at any size, and no green."""
    cutouts = cut_outs(coloured("red", soft=soft))
    image = compose(alone("red", (0.0, 0.0, side, side), (512, 512)), cutouts).image
    red, green, blue = image.unbind(-1)
    assert (green - blue).abs().max() <= 0.02
    assert (red >= 0.98).all()


def test_no_halo_where_the_mask_is_drawn_a_little_too_wide() -> None:
    photo = paint(ellipse(600, 600, (199, 199)), COLOURS["black"])
    cutouts = cut_outs(one_of(photo, ellipse(600, 600, (200, 200))))
    image = compose(alone("it", (0.0, 0.0, 1.0, 1.0)), cutouts).image
    assert (image[..., 1] - image[..., 0]).abs().max() <= 1 / 255


def test_no_limb_is_cut_and_thin_ones_stay() -> None:
    """The ends of a cross of bars three pixels thick, up to the photo's border, are all drawn."""
    mask = torch.zeros(201, 201)
    mask[100:103, 10:191] = 1
    mask[0:201, 99:102] = 1
    cutouts = cut_outs(one_of(paint(mask, COLOURS["red"]), mask))
    mix = compose(alone("it", (0.0, 0.0, 0.5, 0.5), (402, 402)), cutouts)
    x0, y0, x1, y1 = mask_box(mix.mask, 0.5)
    assert (x1 - x0, y1 - y0) == (pytest.approx(181, abs=1), pytest.approx(201, abs=1))
    assert mix.mask.sum() == pytest.approx(float(mask.sum()), rel=0.05)
    assert (mix.image[..., 1] - mix.image[..., 2]).abs().max() <= 1 / 255


def test_a_mask_that_is_nowhere_sure_leaves_the_picture_sharp() -> None:
    mask = ellipse(200, 200, (90, 90))
    stripes = (torch.arange(200) % 2).float()[None, :, None].expand(200, 200, 3)
    shown = compose(alone("it", (0.0, 0.0, 1.0, 1.0), (184, 184)), cut_outs(one_of(stripes, 0.9 * mask)))
    assert shown.image[92, 20:160].diff(dim=0).abs().mean() > 0.8


def test_a_soft_edge_stays_in_the_cut_out() -> None:
    mask = ellipse(101, 101, (20, 20))
    blurred = torch.nn.functional.avg_pool2d(mask[None, None], 9, 1, 4)[0, 0]
    cutouts = cut_outs(one_of(paint(mask, COLOURS["red"]), blurred))
    height, width = cutouts.by_token["it"][0].sizes[0].shape[:2]
    x0, y0, x1, y1 = mask_box(blurred, 0.1)
    assert width >= x1 - x0 and height >= y1 - y0


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 1.0, 0.5), (0.2, 0.0, 0.5, 1.0), (0.5, 0.5, 0.6, 0.6), (0.0, 0.0, 1.0, 1.0)]
)
@pytest.mark.parametrize("size", [(512, 512), (640, 320)])
def test_no_subject_is_stretched(box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
    """Whatever box it is given: a ball stays a ball, inside it."""
    photo = coloured("red", radii=(40, 40))
    mix = compose(alone("red", box, size), cut_outs(photo))
    x0, y0, x1, y1 = mask_box(mix.mask, 0.5)
    assert x1 - x0 == pytest.approx(y1 - y0, abs=1.5)
    left, top, right, bottom = to_pixels(box, size)
    assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom


@pytest.mark.parametrize("max_side", [64, 200, 1024])
def test_cut_outs_are_no_larger_than_asked_or_than_the_photo(max_side: int) -> None:
    for cut_out in cut_outs(coloured("red"), max_side).by_token["red"]:
        height, width = cut_out.sizes[0].shape[:2]
        assert height == min(max_side, 124) and width / height == pytest.approx(0.5, abs=0.05)
        halves = [max(size.shape) for size in cut_out.sizes]
        assert halves == [-(-halves[0] // 2**i) for i in range(len(halves))]


def test_shrinking_first_changes_nothing_but_detail() -> None:
    """A cut-out limited to the canvas gives the picture that the full one gives."""
    photos = coloured("red", radii=(55, 90), soft=True)
    layout = alone("red", (0.2, 0.1, 0.4, 0.9), (128, 128))
    full, limited = compose(layout, cut_outs(photos)), compose(layout, cut_outs(photos, max_side=128))
    assert (full.image - limited.image).abs().mean() < 0.01
    assert (full.mask - limited.mask).abs().mean() < 0.01


def test_mirrored_is_mirrored() -> None:
    mask = ellipse(100, 100, (40, 40))
    photo = paint(mask, COLOURS["red"])
    photo[:, :50] = photo[:, :50].flip(-1)  # left half blue
    cutouts = cut_outs(one_of(photo, mask))
    straight, mirrored = (compose(alone("it", (0.0, 0.0, 1.0, 1.0), mirror=m), cutouts).image for m in (False, True))
    assert torch.equal(straight.flip(1), mirrored) and not torch.equal(straight, mirrored)


def test_mirroring_is_off_until_asked_for() -> None:
    cutouts = cut_outs(coloured("red", "blue"))

    def mirrors(prob: float) -> set[bool]:
        config = SegMixConfig(size=(64, 64), mirror_prob=prob)
        return {p.mirror for seed in range(20) for p in segmix(cutouts, random.Random(seed), config).layout.placements}

    assert (mirrors(0), mirrors(0.5), mirrors(1)) == ({False}, {False, True}, {True})


def test_pairs_and_photos_are_all_drawn_and_never_a_subject_with_itself() -> None:
    cutouts = cut_outs(coloured("red", "blue", "orange"))
    pairs, photos = set(), set()
    for seed in range(100):
        mix = segmix(cutouts, random.Random(seed), SegMixConfig(size=(64, 64)))
        pairs.add(frozenset(p.token for p in mix.layout.placements))
        photos |= {(p.token, p.photo) for p in mix.layout.placements}
    assert len(pairs) == 3 and all(len(pair) == 2 for pair in pairs) and len(photos) == 6


@pytest.mark.parametrize("mix", [segmix, cutmix])
def test_the_first_photo_can_be_chosen(mix: Any) -> None:
    cutouts = cut_outs(coloured("red", "blue", "orange"))
    for seed in range(5):
        made = mix(cutouts, random.Random(seed), SegMixConfig(size=(64, 64)), first=("blue", 1))
        assert ("blue", 1) in {(p.token, p.photo) for p in made.layout.placements}
        assert made.caption.startswith("a photo of a blue ball and a ")


def test_captions_name_both_and_the_order_says_nothing_of_the_place() -> None:
    cutouts = cut_outs(coloured("red", "blue"))
    said = {
        (mix.caption, mix.layout.placements[-1].token)
        for mix in (segmix(cutouts, random.Random(seed), SegMixConfig(size=(64, 64))) for seed in range(60))
    }
    captions = {
        "a photo of a red ball and a blue ball, simple background.",
        "a photo of a blue ball and a red ball, simple background.",
    }
    assert said == {(caption, token) for caption in captions for token in ("red", "blue")}


def test_prior_captions_leave_the_tokens_out() -> None:
    config = SegMixConfig(size=(64, 64), caption="a photo of {classes}.")
    mix = segmix(cut_outs(coloured("red", "blue")), random.Random(0), config)
    assert mix.caption == "a photo of a ball and a ball."


def test_a_composition_of_three_names_three() -> None:
    cutouts = cut_outs(coloured("red", "blue", "orange"))
    layout = random_layout([cutouts.figure(token) for token in ("red", "blue", "orange")], random.Random(0), SIZE)
    names = [f"a {placement.token} ball" for placement in layout.placements]
    expected = f"a photo of {names[0]}, {names[1]} and {names[2]}, simple background."
    assert compose(layout, cutouts).caption == expected


def test_relative_scale_is_seen_in_the_masks() -> None:
    layout = LayoutConfig(relative_scale={"red": 1, "blue": 2}, max_overlap=0)
    mix = segmix(cut_outs(coloured("red", "blue")), random.Random(0), SegMixConfig(size=(512, 512), layout=layout))
    heights = {
        placement.token: box[3] - box[1]
        for placement, mask in zip(mix.layout.placements, mix.masks, strict=True)
        if (box := mask_box(mask))
    }
    assert heights["blue"] / heights["red"] == pytest.approx(2, rel=0.03)


def test_cutmix_is_two_photos_side_by_side() -> None:
    mix = cutmix(cut_outs(coloured("red", "blue")), random.Random(0), CONFIG)
    left, right = mix.layout.placements
    assert (left.xyxy, right.xyxy) == ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))
    assert torch.equal(mix.masks.sum(0), torch.ones(256, 256)) and mix.masks[0, :, :128].all()
    for half, placement in ((mix.image[:, :128], left), (mix.image[:, 128:], right)):
        assert torch.equal(half[128, 64], torch.tensor(COLOURS[placement.token]))
        assert torch.equal(half[2, 2], torch.tensor([0.0, 1.0, 0.0]))


def test_cutmix_looks_for_the_subject() -> None:
    """A ball at the far right of a wide photo is still in its half."""
    mask = torch.zeros(100, 400)
    mask[:, 300:] = ellipse(100, 100, (40, 40))
    blue = coloured("blue").subjects[0]
    subjects = SubjectSet((one_of(paint(mask, COLOURS["red"]), mask).subjects[0], blue))
    mix = cutmix(cut_outs(subjects), random.Random(0), CONFIG)
    assert bool((mix.image == torch.tensor(COLOURS["red"])).all(-1).any())


@pytest.mark.parametrize("mix", [segmix, cutmix])
def test_one_subject_makes_no_pair(mix: Any) -> None:
    with pytest.raises(TooFewSubjects, match="there is only 'red'"):
        mix(cut_outs(coloured("red")), random.Random(0))


def test_an_empty_mask_names_the_photo() -> None:
    with pytest.raises(EmptyMask, match=r"it\.png: the mask of 'it' is empty"):
        cut_outs(one_of(torch.rand(32, 32, 3), torch.zeros(32, 32)))


def test_a_subject_of_one_pixel_is_drawn() -> None:
    mask = torch.zeros(32, 32)
    mask[5, 5] = 1
    mix = compose(alone("it", (0.0, 0.0, 1.0, 1.0), (64, 64)), cut_outs(one_of(paint(mask, COLOURS["red"]), mask)))
    assert mix.mask.max() > 0


def test_names_that_are_not_in_the_set_are_told() -> None:
    cutouts = cut_outs(coloured("red", "blue"))
    with pytest.raises(BadLayout, match="'zzz', but the subjects are: red, blue"):
        compose(alone("zzz", (0.0, 0.0, 1.0, 1.0)), cutouts)
    with pytest.raises(BadLayout, match="photo #8 of 'red', which has 2 photos"):
        compose(alone("red", (0.0, 0.0, 1.0, 1.0), photo=7), cutouts)
    with pytest.raises(BadLayout, match="relative_scale names 'zzz'"):
        segmix(cutouts, random.Random(0), SegMixConfig(layout=LayoutConfig(relative_scale={"zzz": 2})))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (4, 1024)}, "4x1024 px is too small"),
        ({"background": (255, 255, 255)}, "colour"),
        ({"mirror_prob": 1.5}, "mirror_prob"),
        ({"caption": "a photo of {name}"}, "subjects"),
        ({"caption": "a photo of {"}, "subjects"),
        ({"caption": "a photo of {0}"}, "subjects"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSegMixConfig, match=message):
        SegMixConfig(**wrong)
