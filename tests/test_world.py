"""Laws of the toy world: what it says about a picture is true."""

import json
import random

import cv2
import numpy as np
import pytest

from mudi_core.toy import world
from mudi_core.toy.pairs import MOST, Cast, drawn, drawn_cast
from mudi_core.toy.world import HELD_OUT_IDENTITIES
from mudi_core.vocabulary import TOKENIZER


def scenes(number, seed=0, **kwargs):
    rng = random.Random(seed)
    return [world.random_scene(rng, **kwargs) for _ in range(number)]


def test_masks_are_disjoint_and_boxes_tight():
    for scene in scenes(60):
        drawn = world.render(scene, 128)
        assert drawn.image.shape == (128, 128, 3) and drawn.image.dtype == np.uint8
        assert drawn.masks.sum(0).max() == 1
        for mask, box in zip(drawn.masks, drawn.boxes, strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_a_lone_character_fills_its_place():
    for scene in scenes(40, count=1):
        drawn = world.render(scene, 128)
        assert np.abs(drawn.boxes[0] / 128 - scene.actors[0].xyxy).max() < 2.5 / 128


def test_everybody_is_inside_and_mostly_visible():
    for scene in scenes(80, seed=1, count=2):
        for i, actor in enumerate(scene.actors):
            assert 0 <= min(actor.xyxy) and max(actor.xyxy) <= 1
            alone = world.Scene(scene.background, scene.background_seed, (actor,))
            whole = world.render(alone, 96).masks[0].sum()
            assert world.render(scene, 96).masks[i].sum() >= 0.65 * whole


@pytest.mark.parametrize("count", range(1, world.MOST + 1))
def test_a_crowd_is_inside_and_everybody_is_seen(count):
    for scene in scenes(20, seed=count, count=count):
        drawn = world.render(scene, 128)
        assert len(scene.actors) == count and all(0 <= min(a.xyxy) and max(a.xyxy) <= 1 for a in scene.actors)
        assert (drawn.masks.sum((1, 2)) > 0.01 * 128**2).all()


def test_scenes_are_shared_out():
    numbers = [len(scene.actors) for scene in scenes(1500, shares=world.CROWDED)]
    shares = [numbers.count(count) / 1500 for count in range(1, world.MOST + 1)]
    assert sum(world.CROWDED) == pytest.approx(1) and shares == pytest.approx(world.CROWDED, abs=0.04)
    assert max(len(scene.actors) for scene in scenes(100)) == len(world.USUAL) == 3


def test_the_same_scene_gives_the_same_picture():
    for scene in scenes(5):
        a, b = world.render(scene, 96), world.render(scene, 96)
        assert (a.image == b.image).all() and (a.masks == b.masks).all()
    assert scenes(5, seed=3) == scenes(5, seed=3)


def test_size_changes_only_the_resolution():
    for scene in scenes(20, seed=2):
        small, large = world.render(scene, 128), world.render(scene, 256)
        for a, b in zip(small.masks, large.masks, strict=True):
            b = cv2.resize(b.astype(np.uint8) * 255, (128, 128), interpolation=cv2.INTER_AREA) > 127
            assert (a & b).sum() / (a | b).sum() > 0.9


def test_what_lies_behind_nobody_is_background():
    scene = scenes(1, count=2)[0]
    floating = tuple(world.Actor(a.character, a.pose, a.xyxy, grounded=False) for a in scene.actors)
    drawn = world.render(world.Scene(scene.background, scene.background_seed, floating), 128)
    empty = world.render(world.Scene(scene.background, scene.background_seed, ()), 128)
    assert empty.masks.shape == (0, 128, 128)
    far = cv2.dilate(drawn.masks.any(0).astype(np.uint8), np.ones((5, 5))) == 0
    assert (drawn.image[far] == empty.image[far]).all()


def test_held_out_characters_stay_out():
    rng = random.Random(0)
    assert not any(world.random_character(rng).combination in world.HELD_OUT for _ in range(5000))
    assert not any(c.combination in world.HELD_OUT for c in world.NAMED.values())
    pairs = world.PAIRS + world.DEV_PAIRS
    held_out = [s.character.combination for pair in pairs for s in pair]
    held_out += [c.combination for c in world.HELD_OUT_IDENTITIES]
    assert len(set(held_out)) == len(held_out) == len(world.HELD_OUT) == 2 * len(pairs) + 100


@pytest.mark.parametrize("pair", world.PAIRS + world.DEV_PAIRS, ids=lambda p: f"{p[0].character.describe()}")
def test_pairs_are_similar_but_not_alike(pair):
    a, b = pair
    assert a.class_noun == b.class_noun == a.character.species == b.character.species
    assert a.token != b.token and {a.token, b.token} <= set(world.SUBJECT_TOKENS)
    assert a.character.color != b.character.color and a.character.pattern != b.character.pattern
    assert a.character.headwear != b.character.headwear


def test_names_are_two_hundred_and_their_own():
    assert len(world.NAMED) == len(set(world.NAMED.values())) == 200
    assert not set(world.NAMED) & set(world.SUBJECT_TOKENS)


def test_captions_are_true_and_short():
    rng = random.Random(4)
    names = {c: token for token, c in world.NAMED.items()}
    for scene in scenes(300, seed=4, named_prob=0.3):
        text = world.caption(scene, rng, names)
        assert len(text.split()) < 50
        for actor in scene.actors:
            assert actor.character.species in text
            if actor.character in names:
                assert f"{names[actor.character]} {actor.character.species}" in text


def test_a_description_names_every_attribute_or_only_the_species():
    c = world.Character("cat", "red", "striped", "hat", "blue", "bowtie", "green", True)
    assert c.describe() == "red striped cat with a blue hat, a green bow tie and glasses"
    assert {c.describe(0.0, random.Random(i)) for i in range(30)} == {"cat", "red cat"}


def test_a_photo_shows_one_character_large():
    rng = random.Random(5)
    for i in range(20):
        drawn = world.photo(world.HELD_OUT_IDENTITIES[i], rng, (160, 128))
        assert drawn.image.shape == (128, 160, 3) and len(drawn.masks) == 1
        assert drawn.boxes[0, 3] - drawn.boxes[0, 1] > 0.4 * 128


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="species must be one of cat"):
        world.Character("cow", "red", "plain", "none", "none", "none", "none", False)
    with pytest.raises(ValueError, match="color of none"):
        world.Character("cat", "red", "plain", "none", "blue", "none", "none", False)


@pytest.mark.skipif(not (TOKENIZER / "vocab.json").exists(), reason="no tokenizer folder")
def test_names_are_single_clip_tokens():
    vocab = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    words = (*world.RARE_TOKENS, *world.SUBJECT_TOKENS, *world.COLORS, *world.SPECIES, *world.HEADWEAR)
    assert [w for w in words if w + "</w>" not in vocab] == []


@pytest.mark.parametrize("seed", range(20))
def test_drawn_pairs_are_similar_strangers(seed):
    pairs = drawn(seed, MOST)
    cast = [spec.character for pair in pairs for spec in pair]
    assert len(set(cast)) == len(cast) and set(cast) <= set(HELD_OUT_IDENTITIES)
    for a, b in pairs:
        assert a.token != b.token and a.class_noun == b.class_noun == a.character.species == b.character.species
        assert a.character.color != b.character.color
    assert drawn(seed, 5) == pairs[:5] and drawn(seed + 1, 5) != pairs[:5]
    with pytest.raises(ValueError, match="100 characters give"):
        drawn(seed, 51)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("subjects", [2, 3, 4, 5])
def test_drawn_casts_are_strangers_of_one_species_or_of_as_many_as_they_are(subjects, alike):
    casts = [drawn_cast(9, Cast(subjects, alike, i)) for i in range(3)]
    everybody = [spec.character for cast in casts for spec in cast]
    assert len(set(everybody)) == 3 * subjects and set(everybody) <= set(HELD_OUT_IDENTITIES)
    for cast in casts:
        assert len(cast) == subjects == len({spec.token for spec in cast}) == len({s.character.color for s in cast})
        assert len({spec.class_noun for spec in cast}) == (1 if alike else subjects)
    assert drawn_cast(10, Cast(subjects, alike, 0)) != casts[0]
    with pytest.raises(ValueError, match="100 characters give"):
        drawn_cast(9, Cast(subjects, alike, 50))
