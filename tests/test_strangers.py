"""Compositions with strangers: a subject that is trained alone learns to be one figure among others."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from torch import Tensor

from mudi_core.cli import main
from mudi_core.stage.segmix import SegMixConfig, cut_outs, segmix
from mudi_core.stage.strangers import strangers_of, with_strangers
from mudi_core.subjects import storage
from mudi_core.train.parts import Samples
from mudi_core.train.plan import OneSubject, Plan, make_plan
from mudi_core.types import BadSubject, Photo, Subject, SubjectSet


def drawn(token: str, noun: str, level: float, photos: int = 2) -> Subject:
    """A grey square in each photo."""
    images = tuple(Photo(f"{i}.png", torch.full((32, 32, 3), level)) for i in range(photos))
    mask = torch.zeros(32, 32)
    mask[8:24, 8:24] = 1
    return Subject(token, noun, images, (mask,) * photos)


OLIS = SubjectSet((drawn("olis", "corgi", 0.2),))
OTHERS = SubjectSet((drawn("a", "corgi", 0.4), drawn("b", "robot", 0.6), drawn("c", "corgi", 0.8)))


def test_strangers_of_one_class_are_one_and_their_tokens_are_nobodys() -> None:
    made = strangers_of(OTHERS, SubjectSet((drawn("a", "robot", 0.1),)))
    assert [(one.class_noun, len(one.photos)) for one in made] == [("corgi", 4), ("robot", 4)]
    taken = SubjectSet((replace(OLIS.subjects[0], token="stranger1"),))
    together, strangers = with_strangers(taken, made)
    assert len(set(together.tokens)) == 3 and strangers == set(together.tokens) - {"stranger1"}


def test_too_many_classes_are_refused() -> None:
    crowd = SubjectSet(tuple(drawn(f"t{i}", f"kind{i}", 0.5, 1) for i in range(11)))
    with pytest.raises(BadSubject, match="1 subjects and strangers of 11 classes.*Leave out some classes"):
        with_strangers(OLIS, crowd)


@pytest.mark.parametrize("style", ["sentence", "tags"])
def test_every_composition_has_the_subject_and_one_stranger_in_either_order(style: str) -> None:
    together, strangers = with_strangers(OLIS, OTHERS)
    cuts, config = cut_outs(together), SegMixConfig(size=(64, 64), strangers=strangers, captions=style)
    captions = set()
    for number in range(60):
        mix = segmix(cuts, random.Random(number), config)
        who = [placement.token for placement in mix.layout.placements]
        assert who.count("olis") == 1 and len(set(who) & strangers) == 1
        captions.add(mix.caption)
    assert not any("stranger" in caption for caption in captions)
    if style == "sentence":
        assert captions == {
            f"a photo of {names}, simple background."
            for other in ("corgi", "robot")
            for names in (f"a olis corgi and a {other}", f"a {other} and a olis corgi")
        }
    else:
        assert {caption.partition(", simple")[0] for caption in captions} == {
            *("no humans, olis corgi, robot", "no humans, robot, olis corgi"),
            *("no humans, olis corgi, corgi", "no humans, corgi, olis corgi"),
        }


def test_two_subjects_meet_each_other_and_strangers_but_no_two_strangers_meet() -> None:
    both = SubjectSet((*OLIS.subjects, drawn("hta", "cat", 0.9)))
    together, strangers = with_strangers(both, OTHERS)
    cuts, config, seen = cut_outs(together), SegMixConfig(size=(64, 64), strangers=strangers), set()
    for number in range(120):
        mix = segmix(cuts, random.Random(number), config)
        seen.add(frozenset("?" if one.token in strangers else one.token for one in mix.layout.placements))
    assert seen == {frozenset(("olis", "hta")), frozenset(("olis", "?")), frozenset(("hta", "?"))}


def plan(others: SubjectSet | None, **more: Any) -> Plan:
    def encode(images: Tensor) -> Tensor:
        return images.movedim(3, 1)[:, :, ::8, ::8]

    def read(captions: list[str]) -> list[dict[str, Tensor]]:
        return [{"cross_attn": torch.zeros(1)} for _ in captions]

    settings = Samples(**{"steps": 12, "resolution": 64, "segmix_prob": 0.5, "compose_with_others": True, **more})
    return make_plan(OLIS, settings, encode, read, others=others)


def test_a_plan_of_one_subject_has_compositions_and_depends_on_the_strangers() -> None:
    made = plan(OTHERS)
    assert "compositions, all different" in made.composed
    named = [caption for caption in made.captions if "olis" in caption]
    assert named == list(made.captions)  # a stranger is never alone
    assert any(" and a corgi" in caption or "a corgi and" in caption for caption in made.captions)
    assert plan(OTHERS).plan_hash == made.plan_hash != plan(SubjectSet(OTHERS.subjects[:2])).plan_hash


def test_one_subject_and_nobody_else_is_refused() -> None:
    with pytest.raises(OneSubject, match="no pictures of others"):
        plan(None)
    with pytest.raises(OneSubject, match="compose it with others"):
        plan(OTHERS, compose_with_others=False)


def test_the_commands_make_strangers_and_learn_beside_them(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, crowd, out = tmp_path / "alone", tmp_path / "crowd", tmp_path / "l.safetensors"
    storage.write_subjects(SubjectSet(storage.read_subjects(drawn_dataset).subjects[:1]), alone)
    made = ["priors", str(alone), "--base", "mini", "--out", str(crowd), "--count", "1", "--also", "dog", "--json"]
    assert main([*made, "--steps", "8", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["class_nouns"] == ["cat", "dog"]
    train = ["train", str(alone), "--base", "mini", "--others", str(crowd), "--out", str(out), "--segmix-prob", "1"]
    assert main([*train, "--steps", "1", "--batch", "1", "--rank", "2", "--resolution", "64"]) == 0
    from mudi_core.lora.reading import read_lora

    about = read_lora(out).about
    assert json.loads(about["mudi_config"])["compose_with_others"] is True
    assert json.loads(about["mudi_tokens"]) == ["olis"]


def test_the_node_takes_strangers_from_others_and_priors_and_shows_them(comfy: Comfy) -> None:
    plain = {"probability": 0.5, "relative_sizes": "", "overlap": 0.2, "background_weight": 1.0}
    others, priors = SubjectSet(OTHERS.subjects[1:2]), SubjectSet(OTHERS.subjects[:1])
    made = comfy.run(
        "MudiSegMixDataset", subjects=OLIS, **plain, priors=priors, others=others, compose_with_others=True,
        captions="sentence",
    )  # fmt: skip
    dataset, sheet = made.result
    assert [one.class_noun for one in dataset.others] == ["robot", "corgi"] and dataset.priors is priors
    assert "such as 'a photo of a olis corgi and a robot, simple background.'" in made.ui["text"][0]
    levels = {round(float(value), 1) for value in sheet.unique()}
    assert {0.2, 0.4, 0.6} <= levels
    off = comfy.run("MudiSegMixDataset", subjects=OLIS, **plain, others=others).result[0]
    assert off.others is None
    with pytest.raises(Exception, match="no pictures of others. Connect Make Priors to others"):
        comfy.run("MudiSegMixDataset", subjects=OLIS, **plain, compose_with_others=True)
