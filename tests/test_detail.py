"""The detail pass: who is drawn again, where, and that nothing else of the picture changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mudi_core.jobs.detail import BadDetail, DetailConfig, Region, detail, figures_of, regions_of
from mudi_core.score.compare import References, compare_boxes
from mudi_core.types import Comparison, Detections, Photo, Subject, SubjectSet

RED, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)
BOXES = torch.tensor([[10.0, 20.0, 40.0, 70.0], [60.0, 20.0, 90.0, 70.0]])


def plain(colour: tuple[float, float, float], side: int = 32) -> Tensor:
    return torch.tensor(colour).expand(side, side, 3).clone()


def subjects() -> SubjectSet:
    made = [
        Subject(token, "toy", (Photo("1.png", plain(colour)),), (torch.ones(32, 32),))
        for token, colour in (("olis", RED), ("hta", BLUE))
    ]
    return SubjectSet(tuple(made))


def colours(images: list[Tensor]) -> Tensor:
    """An embedder that sees the mean colour of a picture's middle."""
    return torch.stack([image[image.shape[0] // 4 : -(image.shape[0] // 4) or None].mean((0, 1)) for image in images])


def ellipses(image: Tensor, boxes: Tensor) -> Tensor:
    """A segmenter: the ellipse in each box."""
    y, x = torch.meshgrid(torch.arange(image.shape[0]), torch.arange(image.shape[1]), indexing="ij")
    masks = []
    for x0, y0, x1, y1 in boxes.tolist():
        across, down = (x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)
        masks.append((across**2 + down**2 < 0.25).float())
    return torch.stack(masks)


def picture(*fills: tuple[float, float, float], boxes: Tensor = BOXES) -> Tensor:
    image = torch.full((96, 100, 3), 0.9)
    for colour, mask in zip(fills, ellipses(image, boxes), strict=False):
        image = torch.where(mask[..., None] > 0, torch.tensor(colour), image)
    return image


def look(image: Tensor) -> Comparison:
    return compared(image)[0]


def compared(image: Tensor, boxes: Tensor = BOXES) -> tuple[Comparison, References]:
    references = References(subjects(), colours)
    found = Detections(boxes, torch.ones(len(boxes)), ("toy",) * len(boxes))
    return compare_boxes([image], [found], references, colours)[0], references


def repaint(region: Region, part: Tensor, mask: Tensor) -> Tensor:
    """Paint all of the part in the colour of its subject."""
    return torch.tensor((RED, BLUE)[region.subject]).expand_as(part).clone()


def test_every_figure_becomes_its_own_subject_and_nothing_else_changes() -> None:
    image = picture((0.8, 0.0, 0.3), (0.3, 0.0, 0.8))
    comparison, references = compared(image)
    done = detail(image, comparison, references, ellipses, colours, repaint, look, DetailConfig(side=96))
    assert done.kept == (True, True) and done.comparison.score > comparison.score
    touched = torch.stack([region.mask > 0 for region in done.regions]).any(0)
    assert torch.equal(done.image[~touched], image[~touched])
    middle = [done.image[45, 25], done.image[45, 75]]
    assert torch.allclose(middle[0], torch.tensor(RED), atol=0.02)
    assert torch.allclose(middle[1], torch.tensor(BLUE), atol=0.02)


def test_a_worse_figure_is_not_kept_unless_one_wants_it() -> None:
    image = picture((0.8, 0.0, 0.3), (0.3, 0.0, 0.8))
    comparison, references = compared(image)

    def spoil(region: Region, part: Tensor, mask: Tensor) -> Tensor:
        return torch.tensor(GREY).expand_as(part).clone()

    kept = detail(image, comparison, references, ellipses, colours, spoil, look, DetailConfig(side=96))
    assert kept.kept == (False, False) and torch.equal(kept.image, image)
    assert kept.comparison.score == pytest.approx(comparison.score, abs=1e-6)
    forced = detail(
        image, comparison, references, ellipses, colours, spoil, look, DetailConfig(side=96, only_better=False)
    )
    assert forced.kept == (True, True) and forced.comparison.score < comparison.score


def test_a_figure_by_which_another_is_lost_or_found_is_not_kept() -> None:
    """It is more itself in its box, but the detector no longer finds two."""
    image = picture((0.8, 0.0, 0.3), (0.3, 0.0, 0.8))
    comparison, references = compared(image)

    def overlooked(new: Tensor) -> Comparison:
        return compared(new, BOXES[1:] if new[45, 25, 0] > 0.9 else BOXES)[0]

    done = detail(image, comparison, references, ellipses, colours, repaint, overlooked, DetailConfig(side=96))
    kept = dict(zip((region.subject for region in done.regions), done.kept, strict=True))
    assert kept == {0: False, 1: True}
    assert done.comparison.count_is_right and done.comparison.score > comparison.score


def test_crossed_figures_are_matched_by_likeness_not_by_place() -> None:
    image = picture((0.1, 0.0, 0.9), (0.9, 0.0, 0.1))
    comparison, references = compared(image)
    assert {subject for subject, _ in figures_of(comparison)} == {0, 1}
    done = detail(image, comparison, references, ellipses, colours, repaint, look, DetailConfig(side=96))
    assert done.image[45, 25, 2] > 0.95 and done.image[45, 75, 0] > 0.95


def test_with_a_wrong_number_of_figures_each_subject_takes_its_nearest() -> None:
    boxes = torch.tensor([[2.0, 20.0, 26.0, 70.0], [36.0, 20.0, 60.0, 70.0], [70.0, 20.0, 94.0, 70.0]])
    image = picture((0.9, 0.0, 0.2), RED, (0.2, 0.0, 0.9), boxes=boxes)
    comparison, references = compared(image, boxes)
    assert not comparison.count_is_right
    found = figures_of(comparison)
    assert len(found) == 2 and {subject for subject, _ in found} == {0, 1}
    at = {subject: comparison.detections.xyxy[row, 0].item() for subject, row in found}
    assert at == {0: 36.0, 1: 70.0}


def test_nobodys_figure_and_an_empty_picture_stay() -> None:
    image = picture((0.0, 1.0, 0.0), (0.0, 1.0, 0.0))
    comparison, references = compared(image)
    assert not figures_of(comparison)
    nobody = detail(image, comparison, references, ellipses, colours, repaint, look)
    assert torch.equal(nobody.image, image) and not nobody.regions
    empty, references = compared(image, torch.zeros(0, 4))
    assert torch.equal(detail(image, empty, references, ellipses, colours, repaint, look).image, image)


def test_masks_that_overlap_share_no_pixel() -> None:
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [40.0, 20.0, 90.0, 70.0]])
    image = picture((0.9, 0.0, 0.1), (0.1, 0.0, 0.9), boxes=boxes)
    comparison, _ = compared(image, boxes)
    first, second = regions_of(image, comparison, ellipses, DetailConfig(feather=0.1))
    solid = [ellipses(image, comparison.detections.xyxy[[one.row]])[0] > 0 for one in (first, second)]
    own = solid[1] & ~solid[0]
    assert (first.mask[own] == 0).all() and (second.mask[solid[0]] == 0).all()


def test_figures_that_overlap_are_drawn_beside_each_other() -> None:
    """The one that is more itself keeps what both have; the other does not paint over it."""
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [40.0, 20.0, 90.0, 70.0]])
    image = picture((0.8, 0.0, 0.2), (0.2, 0.0, 0.8), boxes=boxes)
    comparison, references = compared(image, boxes)
    settings = DetailConfig(side=96, only_better=False)
    done = detail(
        image, comparison, references, ellipses, colours, repaint, lambda new: compared(new, boxes)[0], settings
    )
    assert done.kept == (True, True)
    solid = {region.subject: ellipses(image, boxes[[region.subject]])[0] > 0 for region in done.regions}
    first = done.regions[0].subject
    for subject, colour in enumerate((RED, BLUE)):
        own = solid[subject] if subject == first else solid[subject] & ~solid[first]
        middle = own & (torch.stack([region.mask for region in done.regions if region.subject == subject])[0] > 0.99)
        assert middle.sum() > 200 and (done.image[middle] - torch.tensor(colour)).abs().max() < 0.02


def test_the_border_of_a_new_figure_blends_into_the_picture() -> None:
    """Over a band as wide as asked, in which nothing jumps; without feathering it is a pixel wide."""
    image = picture((0.8, 0.0, 0.2), BLUE)
    comparison, references = compared(image)
    bands = []
    for feather in (0.0, 0.04, 0.16):
        settings = DetailConfig(side=96, feather=feather, only_better=False)
        done = detail(image, comparison, references, ellipses, colours, repaint, look, settings)
        (mask,) = [region.mask for region in done.regions if region.subject == 0]
        row = mask[:45, 25]  # from above to its middle
        bands.append(int(((row > 0) & (row < 1)).sum()))
        share, new = mask[..., None], torch.tensor(RED)
        assert torch.allclose(done.image[:45, 25], (image * (1 - share) + new * share)[:45, 25], atol=0.03)
        steps = (row[1:] - row[:-1]).abs().max()
        assert steps <= 1 / (2 * max(1, round(feather * 50)) + 1) + 1e-5
    assert bands[0] <= 3 and bands[0] < bands[1] < bands[2] and bands[2] >= 12


@pytest.mark.parametrize(("side", "seen"), [(96, 96), (64, 80)])
def test_a_figure_is_drawn_larger_and_never_smaller(side: int, seen: int) -> None:
    image = picture(RED, BLUE)
    comparison, references = compared(image)
    sizes = []

    def measure(region: Region, part: Tensor, mask: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[:2]))
        assert mask.shape == part.shape[:2] and 0 < mask.mean() < 1
        return part

    detail(image, comparison, references, ellipses, colours, measure, look, DetailConfig(side=side))
    assert all(max(size) == seen and not any(length % 16 for length in size) for size in sizes)


@pytest.mark.parametrize("wrong", [{"side": 8}, {"side": 9000}, {"margin": -1.0}, {"feather": 2.0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadDetail):
        DetailConfig(**wrong)  # type: ignore[arg-type]
