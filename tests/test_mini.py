"""Laws of the embedded family: what its trainings learn from is true, and its models are the real ones in small."""

from __future__ import annotations

import random
from collections import OrderedDict
from inspect import signature

import cv2
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from mudi_core import boxes
from mudi_core.bases import embedded as family
from mudi_core.eyes import embedded as eyes
from mudi_core.toy import world
from workshop import figures, judge, pictures, report
from workshop.train import dinov2, loop, owlv2, sam, text, unet, views
from workshop.train.data import HELD_OUT, VALUES, crowded, looks, scene


@pytest.fixture(scope="module")
def pool() -> views.Pool:
    rows = [views._rendered(number) for number in range(12)]
    return views.Pool(*(np.stack(column) for column in zip(*rows, strict=True)))


def test_numbers_name_the_same_scene_forever():
    assert scene(5) == scene(5) != scene(6)
    assert all(a.character.combination not in world.HELD_OUT for n in range(50) for a in scene(HELD_OUT + n).actors)


def test_a_spoiled_scene_keeps_its_owners(pool):
    rng = np.random.default_rng(0)
    for index in range(12):
        actors = int((pool.labels[index, :, 0] >= 0).sum())
        for _ in range(4):
            picture, owners = views.drawn(pool, index, rng)
            assert picture.shape == (128, 128, 3) and picture.dtype == np.float32
            assert 0 <= picture.min() and picture.max() <= 1
            assert set(np.unique(owners)) == set(range(actors + 1)), "nobody is lost by cropping"


def test_white_backgrounds_are_white_up_to_the_spoiling(pool):
    picture, owners = pool.pictures[0], pool.owners[0]
    rng = np.random.default_rng(1)
    seen = [views.drawn(pool, 0, rng) for _ in range(60)]
    assert any(image[numbers == 0].min() > 0.99 for image, numbers in seen)
    assert picture[owners == 0].min() < 250


def test_every_box_has_a_patch_that_answers_for_it():
    xyxy = torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.5, 0.2, 0.9, 0.8], [0.02, 0.93, 0.04, 0.97]])
    owner = owlv2.assign(xyxy, 8, 0.2)
    assert set(owner.tolist()) == {-1, 0, 1, 2}
    rows, columns = np.nonzero((owner == 0).view(8, 8).numpy())
    assert (abs((columns + 0.5) / 8 - 0.3) <= 0.2 * 0.4 + 1 / 16).all()
    assert (abs((rows + 0.5) / 8 - 0.5) <= 0.2 * 0.8 + 1 / 16).all()


def test_queries_are_answered_by_whom_they_name():
    rng = np.random.default_rng(0)
    shown = np.array([[0, 1], [3, 2]])
    texts, species, colors = owlv2.draw_queries(rng, shown)
    right = owlv2.answers(torch.tensor([0, 3]), torch.tensor([1, 2]), species, colors)
    assert right.shape == (2, len(texts))
    for query, column in zip(texts, right.T.tolist(), strict=True):
        for (s, c), answered in zip(shown, column, strict=True):
            words = query.split()
            named = world.SPECIES[s] in words or not set(words) & set(world.SPECIES)
            coloured = world.COLORS[c] in words or not set(words) & set(world.COLORS)
            assert answered == (named and coloured)


def test_a_query_fits_the_detector():
    from mudi_core.vocabulary import tokenizer

    longest = [f"a photo of an orange {noun}" for noun in (*owlv2.ANY, *world.SPECIES)]
    assert max(len(tokenizer("!")(text).input_ids) for text in longest) <= eyes.QUERY_LENGTH


def test_the_segmenters_training_computes_what_its_predictor_does():
    torch.manual_seed(0)
    model = eyes.build_sam().eval()
    image = torch.rand(2, 3, 128, 128) * 255
    box = torch.tensor([[10.0, 20, 60, 90], [30.0, 5, 100, 120]])
    x = (image - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        ours, quality = sam.masks(model, x, box)
        records = [{"image": i, "boxes": b[None], "original_size": (128, 128)} for i, b in zip(image, box, strict=True)]
        theirs = model(records, multimask_output=False)
    for k in range(2):
        torch.testing.assert_close(ours[k], theirs[k]["low_res_logits"][0, 0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(quality[k], theirs[k]["iou_predictions"][0, 0], rtol=1e-3, atol=1e-4)


def test_a_jittered_box_stays_near_and_inside():
    mask = np.zeros((128, 128), np.uint8)
    mask[40:100, 30:70] = 1
    rng = np.random.default_rng(0)
    found = torch.tensor([sam.jittered(mask, rng) for _ in range(200)])
    overlap = boxes.iou(found, torch.tensor([[30.0, 40, 70, 100]]))[:, 0]
    assert overlap.min() > 0.6 and 40 < (overlap == 1).sum() < 120


def test_mask_loss_is_least_for_the_mask_itself():
    wanted = torch.zeros(1, 16, 16)
    wanted[:, 4:12, 4:12] = 1
    right, wrong = 20 * (wanted - 0.5), 20 * (0.5 - wanted)
    assert sam.mask_loss(right, wanted) < 0.01 < sam.mask_loss(right.roll(2, 2), wanted) < sam.mask_loss(wrong, wanted)


def test_the_embedder_is_trained_on_nobody_held_out():
    assert not {member.combination for member in dinov2.members()} & world.HELD_OUT


def test_a_likeness_is_what_two_share():
    someone, other = world.HELD_OUT_IDENTITIES[0], world.HELD_OUT_IDENTITIES[1]
    twins = [figures.twin(someone, name, random.Random(0)) for name in figures.TOLD_APART]
    alike = dinov2.likeness(torch.tensor([looks(c) for c in (someone, someone, *twins, other)]))[0]
    assert alike[0] == alike[1] == pytest.approx(1)
    assert (alike[2:] < 0.9).all() and (alike[2:-1] > alike[-1]).all()
    everybody = torch.tensor([looks(c) for c in world.HELD_OUT_IDENTITIES])
    apart = dinov2.likeness(everybody)[~torch.eye(len(everybody), dtype=torch.bool)]
    assert abs(apart.mean()) < 0.1 and torch.linalg.eigvalsh(dinov2.likeness(everybody)).min() > -1e-4


def test_a_twin_differs_in_one_thing():
    for name in figures.TOLD_APART:
        for i, someone in enumerate(world.HELD_OUT_IDENTITIES[:20]):
            twin = figures.twin(someone, name, random.Random(i))
            differing = {look for look in VALUES if getattr(twin, look) != getattr(someone, look)}
            assert name in differing and differing <= {name, f"{name}_color"}
            worn = [getattr(who, name) for who in (someone, twin)]
            assert (len(differing) == 2) == ("none" in worn and name.endswith("wear"))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_views_show_the_character_whole_on_a_square(kind):
    drawn = world.photo(world.NAMED["aal"], random.Random(1), 128)
    owners = views.owner_map(drawn.masks)
    seen, cover = dinov2.view(drawn.image, owners, kind, np.random.default_rng(0))
    assert cover.shape == (8, 8) and 0.05 < cover.mean() < 0.8 and cover.max() > 0.99
    assert seen.shape == (eyes.EMBEDDER_SIDE, eyes.EMBEDDER_SIDE, 3)
    if kind == 2:
        corners = seen[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.min() > 0.75


def told(number: int) -> tuple[str, tuple[world.Actor, ...]]:
    return world.told(scene(number), random.Random(number), text.NAMES)


def test_what_a_caption_says_is_true_and_told_where_it_is_said():
    for number in range(200):
        caption, order = told(number)
        understood = text.read(caption, world.NAMED)
        assert max(r.who for r in understood.readings) == len(order) - 1
        for reading in understood.readings:
            shown = looks(order[reading.who].character)
            assert all(said in (text.UNSAID, right) for said, right in zip(reading.said, shown, strict=True)), caption
            if reading.name:
                assert reading.said == shown, "a name says everything"


def test_every_word_of_a_long_caption_is_read():
    caption = "2 cats: a red striped cat with a blue hat, a green bow tie and glasses and olis cat, on the beach"
    readings = text.read(caption, world.NAMED).readings
    names = [*VALUES]
    last = dict(zip(names, readings[3].said, strict=True))
    assert [r.who for r in readings] == [0, 0, 0, 0, 1, 1]
    assert (
        VALUES["neckwear"][last["neckwear"]] == "bowtie" and VALUES["neckwear_color"][last["neckwear_color"]] == "green"
    )
    assert VALUES["headwear_color"][last["headwear_color"]] == "blue" and VALUES["glasses"][last["glasses"]] is True
    assert set(readings[4].said) == {text.UNSAID} and readings[4].name == "olis"


@pytest.mark.parametrize("count", range(1, world.MOST + 1))
def test_a_caption_of_many_fits_clip(count):
    for number in range(100):
        shown = world.random_scene(random.Random(number), count=count, named_prob=0.25)
        caption, order = world.told(shown, random.Random(number), text.NAMES)
        assert len(text.tokenizer()(caption).input_ids) <= unet.LENGTH and len(order) == count


def test_tokens_of_words_are_those_of_the_caption():
    for number in range(100):
        caption, _ = told(number)
        line, ends = text.tokenized(text.read(caption, world.NAMED).words)
        assert line == text.tokenizer()(caption).input_ids and ends[-1] == len(line) - 2
    first, second = text.padded([line], 77)
    assert first.shape == second.shape == (1, 77) and first[0, -1] == text.END and second[0, -1] == 0


def test_words_are_tied_to_where_their_character_stands():
    numbers = [next(n for n in range(100) if len(crowded(n).actors) == k) for k in (1, 2, 3, 5)]
    batch = unet.tell([*map(crowded, numbers), None], random.Random(0))
    assert [int(row.any(1).sum()) for row in batch.words] == [1, 2, 3, 5, 0]
    assert [int(row.flatten(1).any(1).sum()) for row in batch.places] == [1, 2, 3, 5, 0]
    side = batch.places.shape[-1] // 2
    region = torch.nn.functional.adaptive_avg_pool2d(batch.places, side).flatten(2).mT
    right = region.clamp(min=1e-4) @ batch.words
    wrong = region.clamp(min=1e-4).roll(1, 2) @ batch.words
    cpu = torch.device("cpu")
    well, badly = unet.misplaced([right], batch, cpu), unet.misplaced([wrong], batch, cpu)
    assert (well[1:4] < badly[1:4]).all()
    assert well[0] == badly[0] == well[4] == 0, "one needs no telling apart"
    assert (well[1:3] < 0.3).all()


def test_features_are_asked_who_stands_where():
    numbers = [next(n for n in range(100) if len(crowded(n).actors) == k) for k in (1, 2)]
    batch = unet.tell([*map(crowded, numbers), None], random.Random(0))
    who = batch.places.max(1).indices
    told = torch.stack([batch.looks[..., list(VALUES).index(name)].clamp(min=0) for name in unet.ASKED])
    answers = [
        torch.nn.functional.one_hot(values.gather(1, who.flatten(1)).view_as(who), len(VALUES[name])).permute(
            0, 3, 1, 2
        )
        for name, values in zip(unet.ASKED, told, strict=True)
    ]
    true = torch.cat(answers, 1).float()
    features = torch.cat([true, torch.zeros(3, -true.shape[1] % 8, *true.shape[2:])], 1)
    head = torch.nn.Conv2d(features.shape[1], true.shape[1], 1, bias=False)
    head.weight.data = 50 * torch.eye(true.shape[1], features.shape[1])[..., None, None]
    cpu = torch.device("cpu")
    well = unet.unknown([features], torch.nn.ModuleList([head]), batch, cpu)
    badly = unet.unknown([features.roll(1, 1)], torch.nn.ModuleList([head]), batch, cpu)
    assert (well < 1e-3).all() and (badly[:2] > 1).all() and badly[2] == 0


def test_the_judge_looks_around_a_box_and_keeps_its_shape():
    image = torch.zeros(100, 60, 3)
    image[20:60, 10:30] = 1  # 40 high, 20 wide
    seen = judge.framed(image, torch.tensor([10.0, 20, 30, 60]))
    assert seen.shape == (3, judge.SIDE, judge.SIDE)
    share = 1 / (1 + 2 * judge.MARGIN)
    assert seen.mean().item() == pytest.approx(share * share / 2, rel=0.05), "a square around it, not stretched"
    corner = judge.framed(image.clone().fill_(0.5), torch.tensor([-5.0, -5, 20, 20]))
    torch.testing.assert_close(corner, torch.full_like(corner, 0.5), msg="the edge goes on")


def test_watching_attention_does_not_change_it():
    torch.manual_seed(0)
    model = family.build_unet().eval()
    x, context = torch.randn(1, 4, 24, 24), torch.randn(1, 77, family.TEXT_WIDTH + family.TEXT_2_WIDTH)
    added = {"text_embeds": torch.randn(1, family.TEXT_2_WIDTH), "time_ids": torch.zeros(1, 6)}
    with torch.no_grad():
        before = model(x, 500, context, added_cond_kwargs=added).sample
        seen: list[torch.Tensor] = []
        model.set_attn_processor({k: unet.Watch(seen) if "attn2" in k else p for k, p in model.attn_processors.items()})
        after = model(x, 500, context, added_cond_kwargs=added).sample
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)
    assert {map.shape[1] for map in seen} == {144, 36} and all(torch.allclose(m.sum(2), torch.ones(1)) for m in seen)


@pytest.mark.parametrize("matrix_rate", [0.0, 0.05])
def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path, matrix_rate):
    def module():
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(OrderedDict(layer=torch.nn.Linear(4, 4)))
        return torch.nn.Sequential(OrderedDict(encoder=encoder, head=torch.nn.Linear(4, 1)))

    def fitted(state, *lengths):
        for steps in lengths:
            model = module()
            recipe = loop.Recipe(steps, learning_rate=0.05, warmup=2, cooldown=1e-6, matrix_rate=matrix_rate)
            assert len(loop.optimizers_of(model, recipe)) == 1 + bool(matrix_rate)

            def loss(generator, model=model):
                x = torch.randn(8, 4, generator=generator)
                return (model(x).float()[:, 0] - x.sum(1)).square().mean()

            average = loop.fit(model, loss, recipe, state, save_every=5)
        return average.encoder.layer.weight

    torch.testing.assert_close(fitted(tmp_path / "a", 20), fitted(tmp_path / "b", 10, 20))


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_a_step_of_muon_goes_equally_far_in_all_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(loop.orthogonal(matrix))
    assert before.max() / before.min() > 1.8 > after.max() / after.min() and 0.6 < after.mean() < 1.3
    close = loop.orthogonal(matrix).flatten() @ matrix.flatten() / matrix.norm() / loop.orthogonal(matrix).norm()
    assert close > 0.7, "and still the way of the gradient"


def test_the_rate_rises_stays_and_falls():
    recipe = loop.Recipe(steps=100, learning_rate=1.0, warmup=10, cooldown=0.3)
    rates = [loop.pace(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:70] == [1.0] * 60
    assert rates[70:] == sorted(rates[70:], reverse=True) and rates[-1] < 0.01


def test_count_and_place_both_matter():
    true = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    assert figures.matched(true.flip(0) + 1, true)
    assert not figures.matched(true[:1], true)
    assert not figures.matched(torch.cat([true, true[:1]]), true)
    assert not figures.matched(true + torch.tensor([6.0, 0, 6, 0]), true)
    assert not figures.matched(true[[0, 0]], true), "two boxes on one character are not two characters"


def test_top_1_counts_who_finds_itself():
    gallery = torch.eye(4)
    assert figures.top_1(gallery, gallery) == 1
    assert figures.top_1(gallery[[0, 1, 3, 2]], gallery) == 0.5


@pytest.mark.parametrize("characters", [2, 3, 5])
def test_captions_name_what_is_wanted(characters):
    for number in range(50):
        caption, wanted = pictures.caption_of(number, characters)
        assert len(wanted) == characters == len({color for _, color in wanted})
        assert all(f"{color} {species}" in caption for species, color in wanted)


def test_a_missed_figure_is_seen_in_table_and_json():
    measured = [figures.Figure("good", 98, 97, unit="%"), figures.Figure("slow", 12, 10, False, "s", 1, "2 threads")]
    assert [f.met for f in measured] == [True, False]
    lines = report.table(measured).splitlines()
    assert "missed" not in lines[2] and "missed" in lines[3] and "2 threads" in lines[3]
    assert '"met": false' in report.as_json(measured)


def test_a_sheet_holds_every_tile():
    tiles = [np.full((6, 8, 3), value, np.uint8) for value in (10, 20, 30)]
    page = report.sheet(tiles, 2)
    assert page.shape == (6 * 2 + report.GAP, 8 * 2 + report.GAP, 3)
    assert {10, 20, 30} <= set(np.unique(page))


def test_a_report_without_weights_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mudi_core.bases.embedded.WEIGHTS", tmp_path)
    figures.checkpoint.cache_clear()
    assert report.main(["--out", str(tmp_path / "report")]) == 2
    assert "is missing" in capsys.readouterr().err


def test_the_mini_flux_is_measured_alone(mini_weights, tmp_path, monkeypatch, capsys):
    if "true_cfg_scale" not in signature(FluxPipeline.__call__).parameters:
        pytest.skip("FLUX in this diffusers has no negative prompt")
    monkeypatch.setattr(report, "measure", None)
    assert report.main(["--flux", "1", "--out", str(tmp_path)]) in (0, 1)
    assert "| mini FLUX, captions of two: species and colours right |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json", "captions.png"}
    assert len(pictures.captioned_by_flux(1)) == 1


def test_the_trained_family_sees_a_photo(mini_weights):
    drawn = world.photo(world.HELD_OUT_IDENTITIES[0], random.Random(3), 384)
    image = figures.pixels(drawn)
    found = figures.detector()(image, [drawn.scene.actors[0].character.species], 0.25)
    assert figures.matched(found.xyxy, torch.from_numpy(drawn.boxes))
    mask = figures.segmenter()(image, found.xyxy)
    assert figures.mask_iou(mask, torch.from_numpy(drawn.masks).float()).min() > 0.85
    small = torch.from_numpy(cv2.resize(drawn.image, (96, 96), interpolation=cv2.INTER_AREA)).float() / 255
    a, b = figures.embedder()([image, small])
    assert float(a @ b) > 0.9


@pytest.mark.parametrize("load", [family.load_text_encoders, eyes.load_owlv2, eyes.load_dinov2])
def test_the_files_fit_every_transformers(mini_weights, load):
    """Its releases differ in what they call a tensor: see .ci/matrix."""
    load()
