"""The plan: the same seed draws the same run, everything is encoded once, and what a sample says of itself is true."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mudi_core.layout import LayoutConfig
from mudi_core.train.config import TrainConfig
from mudi_core.train.draw import cover, crops, draw_steps
from mudi_core.train.encode import BadEncoding
from mudi_core.train.plan import Plan, make_plan
from mudi_core.train.tensor_file import BadTensorFile
from mudi_core.types import Photo, Subject, SubjectSet

CONFIG = TrainConfig(steps=30, batch_size=2, resolution=64, crops_per_photo=3, max_composites=4)


def photo(name: str, width: int, height: int, seed: int) -> tuple[Photo, Tensor]:
    """A smooth picture that differs at every place, and a mask in its middle."""
    down, right = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None, :]
    image = torch.stack([down + 0 * right, 0 * down + right, torch.full((height, width), seed / 20)], dim=2)
    mask = ((down - 0.5).abs() < 0.3) & ((right - 0.5).abs() < 0.3)
    return Photo(name, image), mask.float()


def subject(token: str, noun: str, *shapes: tuple[int, int]) -> Subject:
    pairs = [photo(f"{token}{i}.png", w, h, 3 * i + len(token)) for i, (w, h) in enumerate(shapes)]
    return Subject(token, noun, tuple(p for p, _ in pairs), tuple(m for _, m in pairs))


@pytest.fixture(scope="module")
def subjects() -> SubjectSet:
    return SubjectSet((subject("olis", "dog", (100, 80), (64, 64)), subject("ht", "cat", (40, 90))))


@pytest.fixture(scope="module")
def priors() -> SubjectSet:
    return SubjectSet((subject("p", "dog", (64, 96)), subject("prior2", "cat", (80, 64), (70, 70))))


class Encoders:
    """Stand-ins that remember what they were asked: latents are the image's blocks, texts are their letters."""

    def __init__(self, factor: float = 1.0) -> None:
        self.images: list[bytes] = []
        self.captions: list[str] = []
        self.largest = 0
        self.factor = factor

    def image(self, batch: Tensor) -> Tensor:
        assert batch.ndim == 4 and batch.shape[3] == 3 and 0 <= batch.min() and batch.max() <= 1
        self.images += [one.numpy().tobytes() for one in batch]
        self.largest = max(self.largest, len(batch))
        means = torch.nn.functional.avg_pool2d(batch.movedim(3, 1), 8)
        return self.factor * torch.cat([means, means[:, :1]], dim=1)

    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        self.captions += captions
        letters = torch.stack([torch.tensor([ord(c) for c in caption.ljust(77)[:77]]) for caption in captions]).float()
        return letters[..., None].expand(-1, -1, 6), letters[:, :5]


def plan_of(subjects: SubjectSet, config: TrainConfig = CONFIG, **more: Any) -> tuple[Plan, Encoders]:
    encoders = more.pop("encoders", None) or Encoders()
    return make_plan(subjects, config, encoders.image, encoders.text, **more), encoders


def same(a: Plan, b: Plan) -> bool:
    tensors = [name for name, value in vars(a).items() if isinstance(value, Tensor)]
    others = [name for name in vars(a) if name not in tensors]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors) and all(
        getattr(a, name) == getattr(b, name) for name in others
    )


def test_the_seed_is_the_whole_run(subjects: SubjectSet, priors: SubjectSet) -> None:
    first, again = (plan_of(subjects, priors=priors)[0] for _ in range(2))
    assert same(first, again)
    assert plan_of(subjects, replace(CONFIG, seed=1), priors=priors)[0].plan_hash != first.plan_hash


def test_the_hash_sees_photos_masks_captions_and_priors(subjects: SubjectSet, priors: SubjectSet) -> None:
    def changed(**values: Any) -> SubjectSet:
        return SubjectSet((replace(subjects.subjects[0], **values), subjects.subjects[1]))

    one = subjects.subjects[0]
    other_photo = tuple(Photo(p.name, p.image * 0.99) for p in one.photos)
    other_mask = tuple((mask + 0.01).clamp(max=1) for mask in one.masks)
    other_words = tuple(Photo(p.name, p.image, caption="olis dog on grass") for p in one.photos)
    hashes = [
        plan_of(subjects)[0].plan_hash,
        plan_of(subjects, priors=priors)[0].plan_hash,
        *(plan_of(changed(**values))[0].plan_hash for values in ({"photos": other_photo}, {"masks": other_mask})),
        plan_of(changed(photos=other_words))[0].plan_hash,
        plan_of(subjects, replace(CONFIG, layout=LayoutConfig(scale=(0.5, 0.6))))[0].plan_hash,
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_does_not_see_how_the_steps_are_taken(subjects: SubjectSet) -> None:
    other = replace(CONFIG, learning_rate=1e-3, dco_beta=0.0, rank=4, precision="bf16", gradient_checkpointing=True)
    assert plan_of(subjects, other)[0].plan_hash == plan_of(subjects)[0].plan_hash


def test_each_image_and_each_caption_is_encoded_once(subjects: SubjectSet, priors: SubjectSet) -> None:
    plan, encoders = plan_of(subjects, priors=priors)
    assert max(Counter(encoders.images).values()) == 1 and len(encoders.images) == len(plan.latents)
    assert tuple(encoders.captions) == plan.captions and len(set(plan.captions)) == len(plan.captions)
    assert encoders.largest > 1


def test_memory_is_bounded_by_the_pools_and_not_by_the_steps(subjects: SubjectSet) -> None:
    plan, _ = plan_of(subjects, replace(CONFIG, steps=500))
    # Two photos have more crops than the pool takes; the square one has a single crop.
    assert len(plan.latents) == 2 * CONFIG.crops_per_photo + 1 + CONFIG.max_composites
    assert plan.steps.shape == (500, 2) and plan.steps.max() == len(plan.latents) - 1


def test_progress_counts_up_to_the_total(subjects: SubjectSet) -> None:
    seen: list[tuple[str, int, int]] = []
    plan, _ = plan_of(subjects, on_step=lambda *step: seen.append(step))
    assert seen[-1] == ("captions", len(plan.captions), len(plan.captions))
    images = [done for stage, done, total in seen if stage == "images" and total == len(plan.latents)]
    assert images == sorted(images) and images[-1] == len(plan.latents)


def test_time_ids_say_where_a_crop_was_cut(subjects: SubjectSet) -> None:
    """The colours of a photo are its coordinates, so the latents tell where the crop lay."""
    plan, _ = plan_of(subjects, replace(CONFIG, method="dreambooth"))
    sizes = {(80, 100), (64, 64), (90, 40)}
    assert {tuple(ids[:2]) for ids in plan.time_ids.int().tolist()} == sizes
    moved = 0
    for latent, (height, width, top, left, *goal) in zip(plan.latents, plan.time_ids.tolist(), strict=True):
        assert goal == [64, 64]
        scale = max(64 / width, 64 / height)
        middle = (top + 4) / (height * scale), (left + 4) / (width * scale)
        assert latent[0, 0, 0].item() == pytest.approx(middle[0], abs=0.03)
        assert latent[1, 0, 0].item() == pytest.approx(middle[1], abs=0.03)
        moved += top + left > 0
    assert moved > 0


def test_the_mask_is_cut_with_its_photo(subjects: SubjectSet) -> None:
    plan, _ = plan_of(subjects, replace(CONFIG, method="dreambooth"))
    for latent, mask in zip(plan.latents, plan.masks, strict=True):
        inside = ((latent[0] - 0.5).abs() < 0.25) & ((latent[1] - 0.5).abs() < 0.25)
        outside = ((latent[0] - 0.5).abs() > 0.4) | ((latent[1] - 0.5).abs() > 0.4)
        assert inside.any() and (mask[0][inside] > 0.9).all() and (mask[0][outside] < 0.1).all()


def test_composites_have_white_outside_their_masks_and_full_time_ids(subjects: SubjectSet) -> None:
    config = replace(CONFIG, segmix_prob=1.0)
    plan, _ = plan_of(subjects, config)
    assert len(plan.latents) == config.max_composites
    assert plan.time_ids.int().tolist() == [[64, 64, 0, 0, 64, 64]] * len(plan.latents)
    assert all("olis dog" in caption and "ht cat" in caption for caption in plan.captions)
    empty = (plan.masks == 0).expand_as(plan.latents)
    assert empty.any() and plan.latents[empty].min() > 0.99 and plan.masks.max() > 0.9


def test_captions_name_the_subject_unless_the_photo_says_more(subjects: SubjectSet, priors: SubjectSet) -> None:
    one = subjects.subjects[0]
    said = tuple(Photo(p.name, p.image, caption="my olis") for p in one.photos)
    mixed = SubjectSet((replace(one, photos=said), subjects.subjects[1]))
    plan, _ = plan_of(mixed, priors=priors)
    assert {"my olis", "a photo of ht cat"} <= set(plan.captions)
    prior = {plan.captions[plan.caption_of[i]] for i in plan.priors.flatten().tolist()}
    assert {"A photo of dog, simple background, full body shot."} <= prior
    assert not any("prior2" in caption or " p " in caption for caption in prior)
    assert any("a dog and a cat" in caption or "a cat and a dog" in caption for caption in prior)


@pytest.mark.parametrize("method", ["segmix", "cutmix", "dreambooth"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_as_many_composites_as_asked(method: Any, probability: float) -> None:
    config = replace(CONFIG, method=method, segmix_prob=probability, steps=1000)
    draws = [draw for row in draw_steps(config, [16, 1, 16], True) for draw in row]
    share = sum(draw.photo < 0 for draw in draws) / len(draws)
    assert share == pytest.approx(0 if method == "dreambooth" else probability, abs=0.03)


def test_no_composite_before_its_start_step_and_some_after() -> None:
    table = draw_steps(replace(CONFIG, segmix_start_step=20, segmix_prob=0.5), [3, 3, 3], True)
    mixed = [step for step, row in enumerate(table) if any(draw.photo < 0 for draw in row)]
    assert mixed and min(mixed) >= 20


def test_every_photo_comes_once_before_any_comes_twice() -> None:
    draws = [draw.photo for row in draw_steps(replace(CONFIG, method="dreambooth"), [2] * 5, True) for draw in row]
    for first in range(0, len(draws), 5):
        assert sorted(draws[first : first + 5]) == list(range(5))


def test_a_prior_composite_stands_beside_an_own_one(subjects: SubjectSet, priors: SubjectSet) -> None:
    own, prior = draw_steps(CONFIG, [3] * 3, True), draw_steps(CONFIG, [3] * 7, True, prior=True)
    assert [[d.photo < 0 for d in row] for row in own] == [[d.photo < 0 for d in row] for row in prior]
    plan, _ = plan_of(subjects, priors=priors)
    assert plan.priors.shape == (30, 2) and not set(plan.priors.flatten().tolist()) & set(plan.steps.flatten().tolist())
    assert plan_of(subjects)[0].priors.shape == (30, 0)
    assert plan_of(subjects, replace(CONFIG, prior_loss_weight=0.0), priors=priors)[0].priors.shape == (30, 0)


def test_one_subject_alone_trains_without_composites(subjects: SubjectSet, caplog: Any) -> None:
    plan, _ = plan_of(SubjectSet(subjects.subjects[:1]))
    assert plan.captions == ("a photo of olis dog",)
    assert "only one subject" in caplog.text


def test_relative_scale_of_the_subjects_does_not_trouble_the_priors(subjects: SubjectSet, priors: SubjectSet) -> None:
    config = replace(CONFIG, segmix_prob=1.0, layout=LayoutConfig(relative_scale={"olis": 1, "ht": 2}))
    assert plan_of(subjects, config, priors=priors)[0].priors.shape == (30, 2)


@pytest.mark.parametrize("size", [(96, 64), (64, 128)])
def test_any_size_of_picture(subjects: SubjectSet, size: tuple[int, int]) -> None:
    plan, _ = plan_of(subjects, replace(CONFIG, resolution=size, steps=4))
    assert plan.latents.shape[1:] == (4, size[1] // 8, size[0] // 8)
    assert plan.masks.shape[1:] == (1, size[1] // 8, size[0] // 8)
    assert {tuple(ids[4:]) for ids in plan.time_ids.int().tolist()} == {(size[1], size[0])}


@pytest.mark.parametrize("width, height, count", [(64, 64, 1), (512, 512, 1), (66, 64, 3), (400, 300, 3), (40, 90, 3)])
def test_the_crops_of_a_photo_differ_and_a_square_photo_has_one(width: int, height: int, count: int) -> None:
    one, mask = photo("a.png", width, height, 1)
    image, _ = cover(one.image, mask, (64, 64))
    corners = crops((width, height), CONFIG, random.Random(0))
    assert len(set(corners)) == len(corners) == count
    assert all(0 <= top <= image.shape[0] - 64 and 0 <= left <= image.shape[1] - 64 for top, left in corners)


@pytest.mark.parametrize("width, height", [(20, 20), (300, 50), (64, 64), (33, 500)])
def test_cover_keeps_the_aspect_and_leaves_no_gap(width: int, height: int) -> None:
    one, mask = photo("a.png", width, height, 1)
    image, covered = cover(one.image, mask, (64, 48))
    assert image.shape[:2] == covered.shape and image.shape[0] >= 48 and image.shape[1] >= 64
    assert image.shape[0] == 48 or image.shape[1] == 64
    assert image.shape[1] / image.shape[0] == pytest.approx(width / height, rel=0.05)
    assert 0 <= image.min() and image.max() <= 1


def test_the_cache_answers_the_second_run(subjects: SubjectSet, tmp_path: Path) -> None:
    first, _ = plan_of(subjects, cache_dir=tmp_path / "cache")
    again, encoders = plan_of(subjects, cache_dir=tmp_path / "cache")
    assert same(first, again) and same(first, plan_of(subjects)[0])
    # Only the probes that tell one encoder from another.
    assert len(encoders.images) == 1 and encoders.captions == ["a photo"]


def test_the_cache_of_another_vae_is_not_used(subjects: SubjectSet, tmp_path: Path) -> None:
    plan_of(subjects, cache_dir=tmp_path)
    other, _ = plan_of(subjects, cache_dir=tmp_path, encoders=Encoders(factor=2.0))
    assert same(other, plan_of(subjects, encoders=Encoders(factor=2.0))[0])


def test_a_damaged_cache_file_is_made_again(subjects: SubjectSet, tmp_path: Path, caplog: Any) -> None:
    first, _ = plan_of(subjects, cache_dir=tmp_path)
    damaged = sorted(tmp_path.iterdir())[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:20])
    assert same(first, plan_of(subjects, cache_dir=tmp_path)[0])
    assert damaged.read_bytes() == whole and "made again" in caplog.text


def test_a_cache_folder_that_cannot_be_made_is_named(subjects: SubjectSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadTensorFile, match="file"):
        plan_of(subjects, cache_dir=tmp_path / "file" / "cache")


def test_encoders_that_cannot_be_trained_on_are_told(subjects: SubjectSet) -> None:
    with pytest.raises(BadEncoding, match="float16"):
        plan_of(subjects, encoders=Encoders(factor=float("nan")))
    encoders = Encoders()
    with pytest.raises(BadEncoding, match="shrinks 8 times"):
        make_plan(subjects, CONFIG, lambda batch: encoders.image(batch)[..., ::2], encoders.text)
