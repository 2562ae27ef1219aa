from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from coloured import COLOURS, coloured, ellipse, paint

from mudi_core.masks import mask_box
from mudi_core.stage.cut import drawn, turned_aspect
from mudi_core.stage.cutouts import BadPoses, CutOuts, Poses, cut_outs, old_numbers, parse_photos
from mudi_core.stage.segmix import compose
from mudi_core.types import BadLayout, Layout, Photo, Placement, Subject, SubjectSet


def stick() -> CutOuts:
    """A bar, 120 by 40 px, whose left third is red and whose rest is blue."""
    mask = torch.zeros(80, 160)
    mask[20:60, 20:140] = 1
    image = paint(mask, COLOURS["blue"])
    image[:, :60] = paint(mask, COLOURS["red"])[:, :60]
    return cut_outs(SubjectSet((Subject("it", "bar", (Photo("it.png", image),), (mask,)),)))


def middle(shown: torch.Tensor) -> torch.Tensor:
    """The mean place (x, y) of a mask's ones."""
    y, x = shown.nonzero(as_tuple=True)
    return torch.stack([x.float().mean(), y.float().mean()])


@pytest.mark.parametrize("rotation", [0.0, 30.0, 90.0, -45.0, 180.0, 360.0])
def test_a_turned_figure_fills_its_box_unstretched_and_turns_clockwise(rotation: float) -> None:
    cutouts = stick()
    aspect = cutouts.figure("it", rotation=rotation).aspect
    width = 0.9 * min(1.0, aspect)
    height = width / aspect
    box = (0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2)
    mix = compose(Layout((200, 200), (Placement("it", box, rotation=rotation),)), cutouts)
    x0, y0, x1, y1 = mask_box(mix.mask) or (0, 0, 0, 0)
    # The cut-out has a margin of two pixels of 124; a turned bar is as wide as its box but for that.
    assert abs((x1 - x0) - 200 * width) < 0.06 * 200 and abs((y1 - y0) - 200 * height) < 0.06 * 200
    red = (mix.image[..., 0] > 0.6) & (mix.image[..., 2] < 0.4) & (mix.mask > 0.9)
    blue = (mix.image[..., 2] > 0.6) & (mix.image[..., 0] < 0.4) & (mix.mask > 0.9)
    assert int(blue.sum()) / int(red.sum()) == pytest.approx(2, rel=0.15)
    x, y = (middle(blue) - middle(red)).tolist()
    assert math.degrees(math.atan2(y, x)) % 360 == pytest.approx(rotation % 360, abs=2)


def test_mirroring_comes_before_turning() -> None:
    mix = compose(Layout((200, 200), (Placement("it", (0.3, 0, 0.7, 1), mirror=True, rotation=90.0),)), stick())
    red = (mix.image[..., 0] > 0.6) & (mix.image[..., 2] < 0.4) & (mix.mask > 0.9)
    assert middle(red)[1] > 100  # mirrored: red is at the right, and a quarter turn later at the bottom


@pytest.mark.parametrize(
    ("aspect", "rotation", "turned"), [(2, 0, 2), (2, 90, 0.5), (2, 180, 2), (1, 45, 1), (3, 45, 1)]
)
def test_the_box_around_a_turned_box(aspect: float, rotation: float, turned: float) -> None:
    assert turned_aspect(aspect, rotation) == pytest.approx(turned)


def test_a_rotation_is_in_degrees() -> None:
    with pytest.raises(BadLayout, match="rotation must be -360 to 360 degrees"):
        Placement("it", (0, 0, 1, 1), rotation=400)
    with pytest.raises(BadLayout, match="rotation must be -360 to 360 degrees"):
        Placement("it", (0, 0, 1, 1), rotation=math.nan)


def test_the_best_photo_shows_the_subject_whole_and_large() -> None:
    whole, larger, cut_off = ellipse(100, 100, (20, 20)), ellipse(100, 100, (30, 30)), ellipse(100, 100, (60, 40))
    masks = (whole, cut_off, larger)
    photos = tuple(Photo(f"{i}.png", paint(mask, COLOURS["red"])) for i, mask in enumerate(masks))
    assert cut_outs(SubjectSet((Subject("it", "ball", photos, masks),))).best("it") == 2
    assert cut_outs(SubjectSet((Subject("it", "ball", photos[1:2], masks[1:2]),))).best("it") == 0


def test_photos_are_chosen_and_the_others_stay_as_they_were_drawn() -> None:
    cutouts = cut_outs(coloured("red", "blue", "orange", photos=4))
    for seed in range(8):
        drawn = cutouts.figures(random.Random(seed))
        chosen = cutouts.figures(random.Random(seed), Poses({"blue": 3}))
        assert [figure.photo for figure in chosen] == [drawn[0].photo, 3, drawn[2].photo]
        # The taller photos of `coloured` show the same ball in more grass: the first of equals is the best.
        assert {figure.photo for figure in cutouts.figures(random.Random(seed), Poses("best"))} == {0}
    with pytest.raises(BadLayout, match="choice of photos names 'green'"):
        cutouts.figures(random.Random(0), Poses({"green": 0}))


def test_mirrors_and_turns_are_drawn_in_their_range() -> None:
    cutouts = cut_outs(coloured("red"))
    figures = [cutouts.figures(random.Random(0), Poses("random", True, 20.0), random.Random(i))[0] for i in range(60)]
    assert {figure.mirror for figure in figures} == {False, True}
    turns = [figure.rotation for figure in figures]
    assert -20 <= min(turns) < -10 and 10 < max(turns) <= 20
    assert figures[0] == cutouts.figures(random.Random(0), Poses("random", True, 20.0), random.Random(0))[0]


def test_subjects_may_be_called_by_token_name_or_class_noun() -> None:
    red, blue = coloured("red", "blue").subjects
    cat = Subject("hta", "black cat", red.photos, red.masks)
    cutouts = cut_outs(SubjectSet((red, blue, cat)))
    assert cutouts.resolve({"red": 1, "blue ball": 2, "black cat": 3}, "It") == {"red": 1, "blue": 2, "hta": 3}
    for names, words in (
        ({"ball": 1}, "It names 'ball', but the subjects are: red, blue, hta"),
        ({"hta": 1, "black cat": 2}, "It names 'hta' twice"),
    ):
        with pytest.raises(BadLayout, match=words):
            cutouts.resolve(names, "It")


@pytest.mark.parametrize(
    ("text", "photos"),
    [("", "random"), (" best ", "best"), ("olis:hta=#1:#3", {"olis": 0, "hta": 2}), ("a= #2", {"a": 1})],
)
def test_a_choice_of_photos_is_read_from_text(text: str, photos: Any) -> None:
    assert parse_photos(text) == photos
    assert old_numbers(text) == ""


def test_numbers_of_older_workflows_keep_their_photos_and_are_told() -> None:
    assert parse_photos("olis:hta=0:2") == {"olis": 0, "hta": 2} == parse_photos("olis:hta=#1:2")
    assert all(
        "counted from 1 this is olis:hta=#1:#3" in old_numbers(f"olis:hta={said}").lower() for said in ("0:2", "#1:2")
    )
    assert "a#b=#2" in old_numbers("a#b=1")


@pytest.mark.parametrize(
    "text",
    [
        "worst",
        "olis",
        "olis=",
        "olis:hta=1",
        "olis:olis=1:2",
        "olis=-1",
        "=1",
        "olis=1.5",
        "olis=#0",
        "olis=#",
        "olis=##1",
        "olis=#1:#2",
    ],
)
def test_a_choice_of_photos_that_is_none_says_how(text: str) -> None:
    with pytest.raises(BadPoses, match="random, best, or olis:hta=#1:#3 .* counted from 1"):
        parse_photos(text)


def test_poses_out_of_range_are_told() -> None:
    with pytest.raises(BadPoses, match="max_rotation"):
        Poses(max_rotation=-1)
    with pytest.raises(BadPoses, match="random, best"):
        Poses("all")


def disc(radius: float) -> torch.Tensor:
    return ellipse(96, 96, (radius, radius))


def one(mask: torch.Tensor, name: str = "it.png") -> SubjectSet:
    return SubjectSet((Subject("it", "thing", (Photo(name, paint(mask, COLOURS["red"])),), (mask,)),))


def test_the_edge_of_a_small_photo_is_round_where_it_is_enlarged() -> None:
    """No step of the mask's own pixels, which are 8 pixels here, is seen in the outline."""
    cut = cut_outs(one(disc(30))).get("it", 0)
    side = 8 * cut.sizes[0].shape[0]
    alpha = drawn(cut, (side, side), mirror=False)[..., 3] / 255.0
    middle = (side - 1) / 2
    angles = np.radians(np.arange(0, 360, 0.5))
    reach = np.arange(200, 255, 0.25)
    rays = [np.rint(middle + np.outer(turned(angles), reach)).astype(int) for turned in (np.cos, np.sin)]
    radii = reach[(alpha[rays[1], rays[0]] > 0.5).sum(1) - 1]
    assert radii.mean() == pytest.approx(240, abs=4)
    assert np.abs(radii - radii.mean()).max() < 3
    jumps = np.abs(np.diff(radii, append=radii[0]))
    assert jumps.max() <= 1


def test_what_is_thinner_than_the_smoothing_stays_where_it_is_enlarged() -> None:
    mask = disc(30)
    mask[47:49, 4:92] = 1  # limbs two pixels thick to both sides
    mask[4:92, 48] = 1  # and one pixel thick, up and down
    cut = cut_outs(one(mask)).get("it", 0)
    height, width = cut.sizes[0].shape[:2]
    alpha = drawn(cut, (width * 6, height * 6), mirror=False)[..., 3]
    assert alpha[:, 6 * 8].max() > 150 and alpha[:, -6 * 8].max() > 150
    assert alpha[6 * 8].max() > 100 and alpha[-6 * 8].max() > 100


def test_enlarging_a_little_changes_a_little() -> None:
    cut = cut_outs(one(disc(30))).get("it", 0)
    side = cut.sizes[0].shape[0]
    same, larger = (drawn(cut, (size, size), mirror=False)[..., 3].astype(float) for size in (side, side + 1))
    assert abs(same.mean() - larger.mean()) < 1


def test_specks_are_no_part_of_a_cut_out() -> None:
    clean, specked = disc(30), disc(30)
    specked[0, 0] = specked[95, 90:] = 1
    own, found = (cut_outs(one(mask)).get("it", 0).sizes[0] for mask in (clean, specked))
    assert np.array_equal(found[..., 3], own[..., 3]) and found.shape == own.shape
    assert specked[0, 0] == 1  # the mask itself is the user's


def test_a_speck_at_the_border_does_not_make_a_photo_cut_off() -> None:
    masks = [disc(40), disc(30)]
    masks[0][0, 0] = 1
    photos = tuple(Photo(f"{n}.png", paint(mask, COLOURS["red"])) for n, mask in enumerate(masks))
    people = SubjectSet((Subject("it", "thing", photos, tuple(masks)),))
    assert cut_outs(people).best("it") == 0
    masks[0][40:60] = 1
    assert cut_outs(people).best("it") == 1
