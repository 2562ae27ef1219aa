"""Captions by style: what each says of whom, what templates may have, and that sentences are as they always were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured import coloured
from safetensors.torch import save_file
from test_cli import FAST_PICTURES, FAST_TRAIN, answer
from test_train_plan import plan_of, subject

from mudi_core.bases.families import FAMILIES, Family
from mudi_core.cli import main
from mudi_core.lora.file import load_lora
from mudi_core.lora.metadata import lora_metadata, read_lora_subjects
from mudi_core.stage.captions import (
    STYLES,
    BadTemplate,
    background_word,
    check_template,
    composition,
    is_tags,
    of_photo,
    says,
    with_name,
)
from mudi_core.stage.counting import count_tags
from mudi_core.subjects.prompt import write_prompt
from mudi_core.train.config import TrainConfig, plan_json
from mudi_core.train.parts import CAME_LATER, BadTrainConfig, Samples
from mudi_core.train.resume import _differences
from mudi_core.types import Photo, SubjectSet

WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
GIRLS, PETS = [("olis", "girl"), ("hta", "girl")], [("olis", "corgi"), ("hta", "chow chow")]
LOOK = "pasted, sticker, unnatural, glued, clip-art, attached, collage, low quality."


@pytest.mark.parametrize(
    ("style", "names", "text"),
    [
        ("sentence", PETS, "a photo of a olis corgi and a hta chow chow, simple background."),
        ("sentence", GIRLS, "a photo of a olis girl and a hta girl, simple background."),
        ("tags", GIRLS, "2girls, olis, hta, simple background, white background"),
        ("tags", [("olis", "boy"), ("hta", "man")], "2boys, olis, hta, simple background, white background"),
        ("tags", [("olis", "girl"), ("hta", "boy")], "1boy, 1girl, olis, hta, simple background, white background"),
        ("tags", PETS, "no humans, olis corgi, hta chow chow, simple background, white background"),
        ("tags", [("olis", "girl"), ("hta", "corgi")], "1girl, olis, hta corgi, simple background, white background"),
        (
            "tags",
            [("olis", "silver-haired girl"), ("hta", "girl with a hat")],
            "2girls, olis silver-haired girl, hta girl with a hat, simple background, white background",
        ),
        ("tags", [("olis", "knight"), ("hta", "bard")], "olis knight, hta bard, simple background, white background"),
        (
            "FLUX (official)",
            PETS,
            f"a close out photo of a small olis corgi and a small hta chow chow, white simple background, {LOOK}",
        ),
    ],
)
def test_a_composition_is_told_in_its_style(style: str, names: list[tuple[str, str]], text: str) -> None:
    assert composition(style, names, WHITE) == text


@pytest.mark.parametrize(
    ("style", "photo", "prior", "halves", "of_priors"),
    [
        (
            "sentence",
            "a photo of olis girl",
            "A photo of girl, simple background, full body shot.",
            "a photo of a olis girl and a hta girl.",
            "a photo of a girl and a girl, simple background.",
        ),
        (
            "tags",
            "1girl, olis",
            "1girl, full body, simple background",
            "2girls, olis, hta",
            "2girls, simple background, white background",
        ),
        (
            "FLUX (official)",
            "a photo of olis girl",
            "A photo of girl, simple background, full body shot.",
            "a photo of a small olis girl and a small hta girl.",
            f"a close out photo of a small girl and a small girl, white simple background, {LOOK}",
        ),
    ],
)
def test_photos_priors_and_halves_are_told_in_their_style(
    style: str, photo: str, prior: str, halves: str, of_priors: str
) -> None:
    assert (of_photo(style, GIRLS[0]), of_photo(style, GIRLS[0], prior=True)) == (photo, prior)
    assert composition(style, GIRLS, WHITE, halves=True) == halves
    assert composition(style, GIRLS, WHITE, prior=True) == of_priors


@pytest.mark.parametrize(
    ("nouns", "tags"),
    [
        (["girl"], ["1girl"]),
        (["woman", "princess"], ["2girls"]),
        (["Boy"], ["1boy"]),
        (["boy", "boy", "girl"], ["2boys", "1girl"]),
        (["girl"] * 5, ["5girls"]),
        (["girl"] * 7, ["6+girls", "multiple girls"]),
        (["man"] * 6 + ["girl"], ["6+boys", "multiple boys", "1girl"]),
        (["person", "child"], ["2others"]),
        (["red monster plush"], ["no humans"]),
        (["dog", "girl"], ["1girl"]),
        (["boy in a red coat"], ["1boy"]),
        (["dog", "knight"], []),
        (["woman-shaped teapot"], ["no humans"]),
        ([], []),
    ],
)
def test_tags_count_only_whom_danbooru_counts(nouns: list[str], tags: list[str]) -> None:
    assert count_tags(nouns) == tags


@pytest.mark.parametrize("style", STYLES)
def test_the_background_is_that_of_the_canvas(style: str) -> None:
    said = {colour: composition(style, PETS, colour) for colour in (WHITE, BLACK)}
    if style == "sentence":
        assert len(set(said.values())) == 1 and "white" not in said[WHITE]
    else:
        assert "white" in said[WHITE] and "black" not in said[WHITE]
        assert "black" in said[BLACK] and "white" not in said[BLACK]
    assert (background_word((0.5, 0.5, 0.52)), background_word((0.9, 0.05, 0.1))) == ("grey", "red")


def test_a_template_is_filled_in_the_words_of_the_style() -> None:
    template = "{count}: {subjects} ({classes}), {background}"
    assert composition("sentence", PETS, BLACK, template) == (
        "2: a olis corgi and a hta chow chow (a corgi and a chow chow), black"
    )
    assert composition("tags", GIRLS, WHITE, "masterpiece, {count}, {subjects}, {classes}, pasted") == (
        "masterpiece, 2girls, olis, hta, pasted"
    )
    assert composition("sentence", PETS, WHITE, "two: {subjects}", prior=True) == "two: a corgi and a chow chow"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a photo of two dogs", r"names nobody.*Write \{subjects\} where"),
        ("{classes} on white", "names nobody"),
        ("{subjects} by {artist}", r"in braces it may have \{subjects\}, .*, but it has '\{artist\}'"),
        ("{subjects:>999999999}", "but it has"),
        ("{subjects.__class__}", "but it has"),
        ("{subjects} {", r"but it has '\{'"),
        ("{subjects}}", r"but it has '\}'"),
        ("{subjects}" + "x" * 4000, "more than 4000 letters"),
    ],
)
def test_a_template_that_cannot_be_is_refused_in_a_sentence(template: str, words: str) -> None:
    with pytest.raises(BadTemplate, match=words):
        check_template(template)
    with pytest.raises(BadTrainConfig, match=words):
        TrainConfig.of(caption_template=template)
    with pytest.raises(BadTrainConfig, match="captions is 'poem'; it must be one of sentence, tags"):
        TrainConfig.of(captions="poem")


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("1girl, solo, hand on own hip", True),
        ("1girl,solo", True),
        ("a photo of a dog, in the snow", False),
        ("A dog, a cat", False),
        ("dog in the snow, at night.", False),
        ("olis corgi", False),
        (", ,", False),
    ],
)
def test_tags_are_told_from_sentences(caption: str, tags: bool) -> None:
    assert is_tags(caption) == tags


@pytest.mark.parametrize(
    ("caption", "name", "named"),
    [
        ("1girl, smile, red hat", ("olis", "girl"), "olis, 1girl, smile, red hat"),
        ("dog, grass, sky", ("olis", "corgi"), "olis corgi, dog, grass, sky"),
        ("1girl, olis, smile", ("olis", "girl"), "1girl, olis, smile"),
        ("a photo of Olis corgi", ("olis", "corgi"), "a photo of Olis corgi"),
        ("A brown Corgi on a sofa.", ("olis", "corgi"), "A brown olis Corgi on a sofa."),
        ("polish food on a sofa.", ("olis", "corgi"), "olis corgi, polish food on a sofa."),
        ("海辺のオ猫", ("オ", "猫"), "海辺のオ猫"),
    ],
)
def test_a_caption_gets_the_name_that_it_lacks(caption: str, name: tuple[str, str], named: str) -> None:
    assert with_name(caption, name) == named and says(named, name[0])


@pytest.mark.parametrize(
    ("names", "text", "kind", "prompt"),
    [
        (["olis girl", "hta girl"], "", "", "2girls, olis, hta"),
        (["olis girl", "hta girl"], "a photo of {subjects}", "", "2girls, olis, hta"),
        (["olis girl", "hta girl"], "a photo of {subjects} in the snow", "", "2girls, olis, hta, in the snow"),
        (["olis girl", "hta boy"], "playing in the snow", "", "1boy, 1girl, olis, hta, playing in the snow"),
        (["olis girl"], "masterpiece, {subjects}, smile", "", "masterpiece, 1girl, olis, smile"),
        (["olis girl", "hta girl"], "2girls, {subjects}, smile", "", "2girls, olis, hta, smile"),
        (["olis corgi", "hta chow chow"], "", "", "no humans, olis corgi, hta chow chow"),
        (["olis knight"], "", "", "olis knight"),
        (["olis knight", "hta bard"], "", "boys", "2boys, olis knight, hta bard"),
    ],
)
def test_a_prompt_of_tags_counts_and_names(names: list[str], text: str, kind: str, prompt: str) -> None:
    assert write_prompt(names, text, kind, "tags") == prompt


def test_a_prompt_in_the_official_style_is_a_sentence() -> None:
    names = ["olis corgi", "hta chow chow"]
    assert write_prompt(names, "", "dogs", "FLUX (official)") == write_prompt(names, "", "dogs")


EARLIER = {
    "buckets", "crops_per_photo", "layout", "max_composites", "method", "prior_loss_weight", "resolution",
    "samples_per_step", "seed", "segmix_prob", "segmix_start_step", "steps",
}  # fmt: skip
"""The settings of a plan before there were styles."""


def test_sentences_leave_plans_runs_and_loras_as_they_were() -> None:
    config = TrainConfig()
    assert set(json.loads(plan_json(Samples()))) == EARLIER == set(vars(Samples())) - set(CAME_LATER)
    assert not set(CAME_LATER) & (set(json.loads(config.run_json())) | set(json.loads(config.to_json())))
    assert not any("captions" in key for key in metadata("sentence"))
    tags = config.but(captions="tags")
    assert json.loads(plan_json(tags.samples))["captions"] == json.loads(tags.to_json())["captions"] == "tags"
    assert json.loads(tags.run_json())["captions"] == "tags"


def test_the_style_is_in_the_plan_and_the_sentences_are_the_same_to_the_letter() -> None:
    subjects = SubjectSet((subject("olis", "girl", (64, 64)), subject("ht", "boy", (64, 64))))
    priors = SubjectSet((subject("p", "girl", (64, 64)), subject("prior2", "boy", (64, 64))))
    config = TrainConfig.of(steps=30, resolution=64, segmix_prob=0.5)
    plan, _ = plan_of(subjects, config, priors=priors)
    assert set(plan.captions) == {
        "a photo of a olis girl and a ht boy, simple background.",
        "a photo of a ht boy and a olis girl, simple background.",
        "a photo of olis girl", "a photo of ht boy",
        "a photo of a girl and a boy, simple background.", "a photo of a boy and a girl, simple background.",
        "A photo of girl, simple background, full body shot.", "A photo of boy, simple background, full body shot.",
    }  # fmt: skip
    tags, _ = plan_of(subjects, config.but(captions="tags"), priors=priors)
    assert set(tags.captions) == {
        "1boy, 1girl, olis, ht, simple background, white background",
        "1boy, 1girl, ht, olis, simple background, white background",
        "1girl, olis", "1boy, ht",
        "1boy, 1girl, simple background, white background",
        "1girl, full body, simple background", "1boy, full body, simple background",
    }  # fmt: skip
    own, _ = plan_of(subjects, config.but(caption_template="{count}: {subjects}"))
    assert {"2: a olis girl and a ht boy", "a photo of olis girl"} <= set(own.captions)
    assert len({plan.plan_hash, tags.plan_hash, own.plan_hash}) == 3


def test_a_plan_saved_before_there_were_styles_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a plan in the cache is made of the settings of then: with sentences nothing is encoded again."""
    subjects = SubjectSet((subject("olis", "girl", (64, 64)), subject("ht", "boy", (64, 64))))
    config = TrainConfig.of(steps=4, resolution=64)
    of_then = json.dumps(
        {name: vars(config.samples)[name] for name in EARLIER}, default=lambda value: vars(value), sort_keys=True
    )
    with monkeypatch.context() as then:
        then.setattr("mudi_core.train.plan.plan_json", lambda samples: of_then)
        first, _ = plan_of(subjects, config, cache_dir=tmp_path)
    files = sorted(tmp_path.iterdir())
    again, encoders = plan_of(subjects, config, cache_dir=tmp_path)
    assert again.plan_hash == first.plan_hash and sorted(tmp_path.iterdir()) == files
    assert encoders.captions == ["a photo"]  # only to know the encoder
    plan_of(subjects, config.but(captions="tags"), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) > len(files)


def test_a_stopped_run_says_that_the_style_changed() -> None:
    def origin(config: TrainConfig) -> dict[str, str]:
        return {"plan": config.samples.captions, "unet": "u", "start": "", "config": config.run_json()}

    sentences, tags = origin(TrainConfig()), origin(TrainConfig.of(captions="tags"))
    assert _differences(sentences, sentences) == []
    assert _differences(tags, sentences) == ["the style of the captions was 'tags', is 'sentence'"]
    assert _differences(sentences, tags) == ["the style of the captions was 'sentence', is 'tags'"]


def test_a_family_has_a_style_that_there_is_and_it_is_usual() -> None:
    assert {family.captions for family in FAMILIES.values()} <= set(STYLES)
    assert TrainConfig.usual(Family(captions="tags")).samples.captions == "tags"
    assert TrainConfig.usual(Family(captions="tags"), captions="sentence").samples.captions == "sentence"


def metadata(style: str) -> dict[str, Any]:
    settings = TrainConfig.of(resolution=64).described()
    return lora_metadata(settings, coloured("red", "blue"), base="mini", plan_hash="", captions=style)


@pytest.mark.parametrize(("style", "read"), [*((style, style) for style in STYLES), ("haiku", "sentence")])
def test_a_lora_says_the_style_of_its_captions(tmp_path: Path, style: str, read: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "l.safetensors", metadata(style))
    assert read_lora_subjects(tmp_path / "l.safetensors").captions == read


def test_a_caption_of_a_photo_is_its_own_in_every_style() -> None:
    one, other = subject("olis", "girl", (64, 64)), subject("ht", "boy", (64, 64))
    said = tuple(Photo(photo.name, photo.image, "olis, smile, beach") for photo in one.photos)
    subjects = SubjectSet((replace(one, photos=said), other))
    for style in STYLES:
        plan, _ = plan_of(subjects, TrainConfig.of(steps=8, resolution=64, captions=style))
        assert "olis, smile, beach" in plan.captions and of_photo(style, ("ht", "boy")) in plan.captions


def test_the_embedded_model_trains_on_tags_and_is_prompted_with_them(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run on the command line: its LoRA says "tags", and `prompt` and `generate` read that."""
    lora, tags = tmp_path / "tags.safetensors", "no humans, olis cat, hta cat"
    command = ["train", str(drawn_dataset), "--base", "mini", "--out", str(lora), *FAST_TRAIN, "--captions", "tags"]
    assert main([*command, "--json"]) == 0
    assert answer(capsys)["trained"] and read_lora_subjects(lora).captions == "tags"
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out
    assert main([part for part in command if part not in ("--captions", "tags")]) == 1
    assert "made from other settings" in capsys.readouterr().err
    assert main(["prompt", "at sea", "--lora", str(lora), "--json"]) == 0
    words = answer(capsys)
    assert words["prompts"] == [f"{tags}, at sea"] and words["captions"] == "tags"
    assert main(["prompt", "--lora", str(lora), "--captions", "sentence"]) == 0
    assert capsys.readouterr().out == "a photo of olis cat and hta cat\n"
    pictures = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path / "out")]
    assert main([*pictures, "--lora", str(lora), *FAST_PICTURES, "--json"]) == 0
    assert answer(capsys)["prompt"] == tags


def test_a_template_on_the_command_line_must_name_the_subjects(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = tmp_path / "own.safetensors"
    command = ["train", str(drawn_dataset), "--base", "mini", "--out", str(lora), *FAST_TRAIN, "--caption-template"]
    assert main([*command, "two cats"]) == 1
    assert "names nobody" in capsys.readouterr().err and not lora.exists()
    assert main([*command, "{count} cats: {subjects}, pasted"]) == 0
    assert json.loads(load_lora(lora)[1]["mudi_config"])["caption_template"] == "{count} cats: {subjects}, pasted"
