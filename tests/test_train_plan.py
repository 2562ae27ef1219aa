"""The plan: the same seed draws the same run, everything is encoded once, and what a sample says of itself is true."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mudi_core.bases.promise import Conditions
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.train.cache import Cache
from mudi_core.train.config import TrainConfig
from mudi_core.train.draw import Draw, Sample, cover, crops, draw_steps, render, training_size
from mudi_core.train.encode import BadEncoding
from mudi_core.train.parts import BadTrainConfig
from mudi_core.train.plan import OneSubject, Plan, _read, _write, make_plan
from mudi_core.types import Photo, Subject, SubjectSet

CONFIG = TrainConfig.of(steps=30, batch_size=2, resolution=64, crops_per_photo=3, max_composites=4)


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

    def text(self, captions: list[str]) -> list[Conditions]:
        self.captions += captions
        letters = torch.stack([torch.tensor([ord(c) for c in caption.ljust(77)[:77]]) for caption in captions]).float()
        return [{"context": one[:, None].expand(-1, 6), "pooled": one[:5]} for one in letters]


def plan_of(subjects: SubjectSet, config: TrainConfig = CONFIG, **more: Any) -> tuple[Plan, Encoders]:
    encoders = more.pop("encoders", None) or Encoders()
    return make_plan(subjects, config.samples, encoders.image, encoders.text, **more), encoders


def same(a: Plan, b: Plan) -> bool:
    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return torch.equal(one, other)
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
        if isinstance(one, tuple):
            return len(one) == len(other) and all(map(equal, one, other))
        return bool(one == other)

    return all(equal(value, getattr(b, name)) for name, value in vars(a).items())


def test_the_seed_is_the_whole_run(subjects: SubjectSet, priors: SubjectSet) -> None:
    first, again = (plan_of(subjects, priors=priors)[0] for _ in range(2))
    assert same(first, again)
    assert plan_of(subjects, CONFIG.but(seed=1), priors=priors)[0].plan_hash != first.plan_hash


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
        plan_of(subjects, CONFIG.but(layout=LayoutConfig(scale=(0.5, 0.6))))[0].plan_hash,
    ]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_does_not_see_how_the_steps_are_taken(subjects: SubjectSet) -> None:
    other = CONFIG.but(learning_rate=1e-3, dco_beta=0.0, rank=4, precision="bf16", gradient_checkpointing="full")
    assert plan_of(subjects, other)[0].plan_hash == plan_of(subjects)[0].plan_hash


def test_each_image_and_each_caption_is_encoded_once(subjects: SubjectSet, priors: SubjectSet) -> None:
    plan, encoders = plan_of(subjects, priors=priors)
    assert max(Counter(encoders.images).values()) == 1 and len(encoders.images) == len(plan.latents)
    assert tuple(encoders.captions) == plan.captions and len(set(plan.captions)) == len(plan.captions)
    assert encoders.largest > 1


def test_memory_is_bounded_by_the_pools_and_not_by_the_steps(subjects: SubjectSet) -> None:
    plan, _ = plan_of(subjects, CONFIG.but(steps=500))
    # Two photos have more crops than the pool takes; the square one has a single crop.
    assert len(plan.latents) == 2 * CONFIG.samples.crops_per_photo + 1 + CONFIG.samples.max_composites
    assert plan.steps.shape == (500, 2) and plan.steps.max() == len(plan.latents) - 1


def test_progress_counts_up_to_the_total(subjects: SubjectSet) -> None:
    seen: list[tuple[str, int, int]] = []
    plan, _ = plan_of(subjects, on_step=lambda *step: seen.append(step))
    assert seen[-1] == ("captions", len(plan.captions), len(plan.captions))
    images = [done for stage, done, total in seen if stage == "images" and total == len(plan.latents)]
    assert images == sorted(images) and images[-1] == len(plan.latents)


def test_time_ids_say_where_a_crop_was_cut(subjects: SubjectSet) -> None:
    """The colours of a photo are its coordinates, so the latents tell where the crop lay."""
    plan, _ = plan_of(subjects, CONFIG.but(method="dreambooth"))
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
    plan, _ = plan_of(subjects, CONFIG.but(method="dreambooth"))
    for latent, mask in zip(plan.latents, plan.masks, strict=True):
        inside = ((latent[0] - 0.5).abs() < 0.25) & ((latent[1] - 0.5).abs() < 0.25)
        outside = ((latent[0] - 0.5).abs() > 0.4) | ((latent[1] - 0.5).abs() > 0.4)
        assert inside.any() and (mask[0][inside] > 0.9).all() and (mask[0][outside] < 0.1).all()


def test_composites_have_white_outside_their_masks_and_full_time_ids(subjects: SubjectSet) -> None:
    config = CONFIG.but(segmix_prob=1.0)
    plan, _ = plan_of(subjects, config)
    assert len(plan.latents) == config.samples.max_composites
    assert plan.time_ids.int().tolist() == [[64, 64, 0, 0, 64, 64]] * len(plan.latents)
    assert all("olis dog" in caption and "ht cat" in caption for caption in plan.captions)
    latents, masks = torch.stack(plan.latents), torch.stack(plan.masks)
    empty = (masks == 0).expand_as(latents)
    assert empty.any() and latents[empty].min() > 0.99 and masks.max() > 0.9


def test_canvases_are_black_as_often_as_asked_and_all_else_stays(subjects: SubjectSet, priors: SubjectSet) -> None:
    """The seed decides which; a prior composition has the colour of the own one beside it."""

    def drawn(black: float) -> list[tuple[Sample, Sample]]:
        settings = CONFIG.but(segmix_prob=1.0, black_canvas=black, captions="FLUX (official)").samples
        every = [[Draw(prior, -1, number) for number in range(40)] for prior in (False, True)]
        own, beside = (list(render(draws, subjects, priors, settings)) for draws in every)
        return list(zip(own, beside, strict=True))

    white, some, black = drawn(0.0), drawn(0.25), drawn(1.0)
    count = 0
    for (plain, _), (own, prior), (dark, _) in zip(white, some, black, strict=True):
        outside = plain.mask == 0
        assert torch.equal(own.mask, plain.mask) and torch.equal(dark.mask, plain.mask)
        assert plain.image[outside].min() == 1 and dark.image[outside].max() == 0
        is_black = bool(own.image[outside].max() == 0)
        count += is_black
        assert torch.equal(own.image, (dark if is_black else plain).image)
        assert prior.image[prior.mask == 0].unique().tolist() == [0.0 if is_black else 1.0]
        assert own.caption == (dark if is_black else plain).caption
        assert ("black" if is_black else "white") + " simple background" in own.caption
    assert 4 <= count <= 16
    with pytest.raises(BadTrainConfig, match=r"black_canvas is 1\.5; it must be 0\.\.1"):
        CONFIG.but(black_canvas=1.5)


def test_every_composition_is_new_and_the_plan_says_so(subjects: SubjectSet) -> None:
    """As in the official code, whatever the number of steps, up to a limit that hangs on their size alone."""
    config = CONFIG.but(steps=20, segmix_prob=1.0, max_composites=None)
    plan, _ = plan_of(subjects, config)
    assert len({latent.numpy().tobytes() for latent in plan.latents}) == 40
    assert plan.composed == "40 compositions, all different"
    few, _ = plan_of(subjects, config.but(max_composites=7))
    assert few.composed == "40 compositions, 7 of them different"
    assert plan_of(subjects, config.but(method="dreambooth"))[0].composed == ""
    assert (
        config.but(resolution=1024).samples.composites == 8192
        and config.but(resolution=2048).samples.composites == 2048
    )


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
    config = CONFIG.but(method=method, segmix_prob=probability, steps=1000)
    draws = [draw for row in draw_steps(config.samples, [16, 1, 16], True) for draw in row]
    share = sum(draw.photo < 0 for draw in draws) / len(draws)
    assert share == pytest.approx(0 if method == "dreambooth" else probability, abs=0.03)


def test_no_composite_before_its_start_step_and_some_after() -> None:
    table = draw_steps(CONFIG.but(segmix_start_step=20, segmix_prob=0.5).samples, [3, 3, 3], True)
    mixed = [step for step, row in enumerate(table) if any(draw.photo < 0 for draw in row)]
    assert mixed and min(mixed) >= 20


def test_every_photo_comes_once_before_any_comes_twice() -> None:
    draws = [draw.photo for row in draw_steps(CONFIG.but(method="dreambooth").samples, [2] * 5, True) for draw in row]
    for first in range(0, len(draws), 5):
        assert sorted(draws[first : first + 5]) == list(range(5))


def test_a_prior_composite_stands_beside_an_own_one(subjects: SubjectSet, priors: SubjectSet) -> None:
    own, prior = draw_steps(CONFIG.samples, [3] * 3, True), draw_steps(CONFIG.samples, [3] * 7, True, prior=True)
    assert [[d.photo < 0 for d in row] for row in own] == [[d.photo < 0 for d in row] for row in prior]
    plan, _ = plan_of(subjects, priors=priors)
    assert plan.priors.shape == (30, 2) and not set(plan.priors.flatten().tolist()) & set(plan.steps.flatten().tolist())
    assert plan_of(subjects)[0].priors.shape == (30, 0)
    assert plan_of(subjects, CONFIG.but(prior_loss_weight=0.0), priors=priors)[0].priors.shape == (30, 0)


def test_one_subject_alone_trains_only_when_no_composition_is_asked_for(subjects: SubjectSet) -> None:
    alone = SubjectSet(subjects.subjects[:1])
    with pytest.raises(OneSubject, match="only one subject, 'olis dog'.*'dreambooth'"):
        plan_of(alone)
    plan, _ = plan_of(alone, CONFIG.but(method="dreambooth"))
    assert plan.captions == ("a photo of olis dog",)


def test_a_caption_without_the_token_is_warned_of(subjects: SubjectSet, caplog: Any) -> None:
    one = subjects.subjects[0]
    said = tuple(replace(p, caption=words) for p, words in zip(one.photos, ("a dog", "olis on grass"), strict=True))
    plan_of(SubjectSet((replace(one, photos=said), subjects.subjects[1])))
    assert "olis0.png: its caption 'a dog' does not say 'olis'" in caplog.text and "olis1.png" not in caplog.text


def test_samples_are_named_by_what_they_show(subjects: SubjectSet, priors: SubjectSet) -> None:
    plan, _ = plan_of(subjects, priors=priors)
    names = {"olis0.png", "olis1.png", "ht0.png", "prior p0.png", "prior prior20.png", "composition 0"}
    assert names <= set(plan.names) and len(plan.names) == len(plan.latents)
    sizes = {"olis0.png": [80, 100], "ht0.png": [90, 40]}
    for name, ids in zip(plan.names, plan.time_ids.int().tolist(), strict=True):
        assert ids[:2] == sizes.get(name, ids[:2])


def test_a_step_has_the_samples_of_all_its_batches(subjects: SubjectSet) -> None:
    at_once, _ = plan_of(subjects, CONFIG.but(batch_size=4))
    in_parts, _ = plan_of(subjects, CONFIG.but(batch_size=2, accumulation=2))
    assert at_once.steps.shape == (30, 4) and same(at_once, in_parts)


def test_relative_scale_of_the_subjects_does_not_trouble_the_priors(subjects: SubjectSet, priors: SubjectSet) -> None:
    config = CONFIG.but(segmix_prob=1.0, layout=LayoutConfig(relative_scale={"olis": 1, "ht": 2}))
    assert plan_of(subjects, config, priors=priors)[0].priors.shape == (30, 2)


@pytest.mark.parametrize("size", [(96, 64), (64, 128)])
def test_any_size_of_picture(subjects: SubjectSet, size: tuple[int, int]) -> None:
    plan, _ = plan_of(subjects, CONFIG.but(resolution=size, steps=4))
    assert {latent.shape for latent in plan.latents} == {(4, size[1] // 8, size[0] // 8)}
    assert {mask.shape for mask in plan.masks} == {(1, size[1] // 8, size[0] // 8)}
    assert {tuple(ids[4:]) for ids in plan.time_ids.int().tolist()} == {(size[1], size[0])}


@pytest.mark.parametrize("width, height, count", [(64, 64, 1), (512, 512, 1), (66, 64, 3), (400, 300, 3), (40, 90, 3)])
def test_the_crops_of_a_photo_differ_and_a_square_photo_has_one(width: int, height: int, count: int) -> None:
    one, mask = photo("a.png", width, height, 1)
    image, _ = cover(one.image, mask, (64, 64))
    corners = crops((width, height), CONFIG.samples, random.Random(0))
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


@pytest.mark.parametrize(
    "photo, size",
    [
        ((1000, 1000), (512, 512)),
        ((1000, 1100), (512, 512)),
        ((1500, 1000), (640, 384)),
        ((1000, 1500), (448, 576)),
        ((900, 100), (704, 320)),
        ((100, 900), (384, 640)),
    ],
)
def test_a_bucket_has_the_photos_aspect_and_no_more_pixels(photo: tuple[int, int], size: tuple[int, int]) -> None:
    config = TrainConfig.of(resolution=512, buckets=True)
    assert training_size(photo, config.samples) == size and size[0] * size[1] <= 512 * 512
    assert training_size(photo, config.but(buckets=False).samples) == (512, 512)


def test_with_buckets_a_tall_photo_stays_whole(subjects: SubjectSet, tmp_path: Path) -> None:
    """The colours of a photo are its coordinates, so the latents tell how much of it is seen."""

    def seen(plan: Plan) -> float:
        spans = [
            latent[0].max() - latent[0].min()
            for latent, name in zip(plan.latents, plan.names, strict=True)
            if name == "ht0.png"
        ]
        return min(float(span) for span in spans)

    squares, _ = plan_of(subjects, CONFIG.but(method="dreambooth"))
    config = CONFIG.but(buckets=True, segmix_prob=0.5)
    plan, _ = plan_of(subjects, config, cache_dir=tmp_path)
    assert seen(plan) > 0.65 > 0.5 > seen(squares)
    for latent, mask, ids, name in zip(plan.latents, plan.masks, plan.time_ids.int().tolist(), plan.names, strict=True):
        assert ids[4:] == [8 * latent.shape[1], 8 * latent.shape[2]] and mask.shape == (1, *latent.shape[1:])
        assert "composition" not in name or latent.shape[1:] == (8, 8)
    assert len({latent.shape for latent in plan.latents}) > 1
    assert same(plan, plan_of(subjects, config, cache_dir=tmp_path)[0])


PROBES = 1, ["a photo"]
"""What tells one encoder from another: an image and a caption."""


def test_a_second_run_with_other_learning_settings_encodes_and_draws_nothing(
    subjects: SubjectSet, priors: SubjectSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = plan_of(subjects, cache_dir=tmp_path / "cache", priors=priors)
    assert same(first, plan_of(subjects, priors=priors)[0])
    monkeypatch.setattr("mudi_core.train.plan.render", None)
    other = CONFIG.but(learning_rate=1e-3, rank=4, dco_beta=0.0, batch_size=1, accumulation=2)
    again, encoders = plan_of(subjects, other, cache_dir=tmp_path / "cache", priors=priors)
    assert same(first, again) and (len(encoders.images), encoders.captions) == PROBES


def test_a_run_of_other_length_encodes_only_what_is_new(subjects: SubjectSet, tmp_path: Path) -> None:
    first, _ = plan_of(subjects, cache_dir=tmp_path)
    longer = CONFIG.but(steps=40)
    again, encoders = plan_of(subjects, longer, cache_dir=tmp_path)
    assert same(again, plan_of(subjects, longer)[0]) and len(again.latents) == len(first.latents)
    assert (len(encoders.images), encoders.captions) == PROBES


@pytest.mark.parametrize("part", ["photo", "mask", "caption", "token", "prior"])
def test_the_cache_sees_every_change(
    part: str, subjects: SubjectSet, priors: SubjectSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_of(subjects, cache_dir=tmp_path, priors=priors)
    one = subjects.subjects[0] if part != "prior" else priors.subjects[0]
    changes: dict[str, Any] = {
        "mask": {"masks": (one.masks[0] * 0.5, *one.masks[1:])},
        "caption": {"photos": (replace(one.photos[0], caption="olis sits"), *one.photos[1:])},
        "token": {"token": "lun"},
    }
    other_photo = {"photos": (replace(one.photos[0], image=one.photos[0].image * 0.5), *one.photos[1:])}
    changed = replace(one, **changes.get(part, other_photo))
    if part == "prior":
        priors = SubjectSet((changed, *priors.subjects[1:]))
    else:
        subjects = SubjectSet((changed, *subjects.subjects[1:]))
    assert same(plan_of(subjects, cache_dir=tmp_path, priors=priors)[0], plan_of(subjects, priors=priors)[0])


def test_the_cache_of_another_vae_is_not_used(subjects: SubjectSet, tmp_path: Path) -> None:
    plan_of(subjects, cache_dir=tmp_path)
    other, _ = plan_of(subjects, cache_dir=tmp_path, encoders=Encoders(factor=2.0))
    assert same(other, plan_of(subjects, encoders=Encoders(factor=2.0))[0])


def test_a_damaged_cache_file_is_made_again(subjects: SubjectSet, tmp_path: Path, caplog: Any) -> None:
    first, _ = plan_of(subjects, cache_dir=tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, content in whole.items():
        file.write_bytes(content[:20])
    assert same(first, plan_of(subjects, cache_dir=tmp_path)[0])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == whole and "made again" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells what a process holds in memory")
def test_a_process_holds_only_the_samples_that_it_takes_of_a_plan_on_disk(subjects: SubjectSet, tmp_path: Path) -> None:
    made, _ = plan_of(subjects)
    wide = tuple(torch.randn(4, 512, 512) for _ in made.latents)  # 4 MB each
    masks = tuple(torch.zeros(1, 512, 512) for _ in wide)
    _write(Cache(tmp_path), "plan", replace(made, latents=wide, masks=masks))
    os.sync()
    held = resident()
    plan = _read(Cache(tmp_path), "plan")
    assert plan is not None and len(wide) >= 8
    own = range(0, len(wide), 4)
    assert all(torch.equal(plan.latents[i], wide[i]) for i in own)
    # The system may bring in a little more than was asked for.
    assert resident() - held < 0.75 * sum(latent.nbytes for latent in wide)


def resident() -> int:
    """Bytes that this process holds in memory, of its own and of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(status[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssFile"))


def test_the_cache_lets_the_longest_unused_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for age, name in enumerate(("new", "used", "old", "oldest")):
        cache.write(name, {"x": torch.zeros(1000)})
        os.utime(tmp_path / f"{name}.safetensors", (10_000 - age, 10_000 - age))
    (tmp_path / "not ours.txt").write_text("x" * 100_000)
    assert cache.read("used") is not None
    each = (tmp_path / "new.safetensors").stat().st_size
    Cache(tmp_path, limit=4 * each).prune()
    assert len(list(tmp_path.iterdir())) == 5
    Cache(tmp_path, limit=2 * each + 10).prune()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.safetensors", "not ours.txt", "used.safetensors"]


def test_a_cache_folder_that_cannot_be_made_stops_no_training(
    subjects: SubjectSet, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / "file").write_text("")
    assert same(plan_of(subjects, cache_dir=tmp_path / "file" / "cache")[0], plan_of(subjects)[0])
    assert caplog.text.count("Training goes on") == 1


def test_encoders_that_cannot_be_trained_on_are_told(subjects: SubjectSet) -> None:
    with pytest.raises(BadEncoding, match="float16"):
        plan_of(subjects, encoders=Encoders(factor=float("nan")))
    encoders = Encoders()
    with pytest.raises(BadEncoding, match="shrinks every image by the same whole number"):
        make_plan(subjects, CONFIG.samples, lambda batch: encoders.image(batch)[..., ::2], encoders.text)


@pytest.mark.parametrize("shrinks", [4, 16])
def test_latents_may_be_of_any_shape_and_factor(subjects: SubjectSet, shrinks: int, tmp_path: Path) -> None:
    """As video models have them, ``[c, 1, h, w]``, and with masks of their size; also from the cache."""
    encoders = Encoders()

    def image(batch: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(batch.movedim(3, 1), shrinks)[:, :, None].repeat(1, 6, 1, 1, 1)

    plan = make_plan(subjects, CONFIG.samples, image, encoders.text, cache_dir=tmp_path)
    width, height = CONFIG.samples.size
    assert {tuple(latent.shape) for latent in plan.latents} == {(18, 1, height // shrinks, width // shrinks)}
    assert {tuple(mask.shape) for mask in plan.masks} == {(1, height // shrinks, width // shrinks)}
    assert same(plan, make_plan(subjects, CONFIG.samples, image, encoders.text, cache_dir=tmp_path))
