from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from coloured import coloured
from safetensors.torch import save_file

from mudi_core.bases.checkpoint import NEGATIVE_PROMPT
from mudi_core.lora.file import save_lora
from mudi_core.lora.metadata import LoraSubjects, UnknownLora, lora_metadata, plain_base, read_lora_subjects
from mudi_core.subjects.prompt import NEGATIVE, TooManyOrders, write_prompt, write_prompts
from mudi_core.subjects.storage import read_subjects, write_subjects
from mudi_core.train.config import TrainConfig
from mudi_core.types import BadSubject, Photo, Subject, SubjectSet, misread_in_prompts

NAMES = ["olis corgi", "hta chow chow"]


@pytest.mark.parametrize(
    ("names", "text", "kind", "prompt"),
    [
        (NAMES, "playing in the snow", "dogs", "2 dogs: a photo of olis corgi and hta chow chow playing in the snow"),
        (NAMES, "", "", "a photo of olis corgi and hta chow chow"),
        (NAMES[:1], " on a beach ", " ", "a photo of olis corgi on a beach"),
        (NAMES, "a drawing: {subjects} {a|b}", "", "a drawing: olis corgi and hta chow chow {a|b}"),
        ([*NAMES, "lun toy"], "{subjects}", "objects", "3 objects: olis corgi, hta chow chow and lun toy"),
    ],
)
def test_everybody_is_named(names: list[str], text: str, kind: str, prompt: str) -> None:
    assert write_prompt(names, text, kind) == prompt


def test_every_order_comes_once_and_the_given_one_first() -> None:
    names = ["a x", "b x", "c x"]
    assert write_prompts(names) == [write_prompt(names)]
    orders = write_prompts(names, every_order=True)
    assert orders[0] == write_prompt(names) and len(set(orders)) == len(orders) == 6
    assert len(write_prompts([f"t{i} x" for i in range(5)], every_order=True)) == 120
    with pytest.raises(TooManyOrders, match="6 subjects have 720 orders"):
        write_prompts([f"t{i} x" for i in range(6)], every_order=True)


def test_the_negative_prompt_is_that_of_the_pictures() -> None:
    assert NEGATIVE == NEGATIVE_PROMPT


@pytest.mark.parametrize(("resolution", "size"), [(768, (768, 768)), ((832, 1216), (832, 1216))])
def test_a_lora_says_whom_it_knows(tmp_path: Path, resolution: int | tuple[int, int], size: tuple[int, int]) -> None:
    about = lora_metadata(
        TrainConfig.of(resolution=resolution).described(), coloured("red", "blue"), base="sdxl.x", plan_hash=""
    )
    part = torch.zeros(1, 1)
    state = {"lora_unet_q.lora_down.weight": part, "lora_unet_q.lora_up.weight": part, "lora_unet_q.alpha": part[0, 0]}
    save_lora(tmp_path / "l.safetensors", state, about)
    known = read_lora_subjects(tmp_path / "l.safetensors")
    assert known == LoraSubjects(("red", "blue"), ("ball", "ball"), "sdxl.x", size)
    assert known.names == ["red ball", "blue ball"]
    assert known.disagreements(["blue ball"]) == []
    assert known.disagreements(["blue cube", "rex dog"]) == [
        "The LoRA knows 'blue' as a ball, not as a cube.",
        "The LoRA was not trained on 'rex dog'; it knows red ball and blue ball.",
    ]


@pytest.mark.parametrize("noun", [" ball", "ball ", "\u3000ball", "red  ball", "ball, red"])
def test_whoever_trains_is_known_again_also_from_a_saved_set(tmp_path: Path, noun: str) -> None:
    subjects = coloured("red", "blue", photos=1)
    subjects = SubjectSet(tuple(replace(subject, class_noun=noun) for subject in subjects))
    about = lora_metadata(TrainConfig().described(), subjects, base="mini", plan_hash="")
    part = torch.ones(1, 1)
    state = {"lora_unet_q.lora_down.weight": part, "lora_unet_q.lora_up.weight": part, "lora_unet_q.alpha": part[0, 0]}
    save_lora(tmp_path / "l.safetensors", state, about)
    earlier = {**about, "mudi_class_nouns": json.dumps([noun, noun])}
    save_file({"x": torch.zeros(1)}, tmp_path / "earlier.safetensors", earlier)
    saved = read_subjects(write_subjects(subjects, tmp_path / "set"))
    for name in ("l", "earlier"):
        known = read_lora_subjects(tmp_path / f"{name}.safetensors")
        for one in (subjects, saved):
            assert known.names == [subject.name for subject in one] and not known.disagreements(known.names)


@pytest.mark.parametrize("base", ["my <best> model.safetensors", "two\nlines", "a\x1b[2Jb", "x" * 300, ""])
def test_a_lora_of_an_oddly_named_base_is_known_again(tmp_path: Path, base: str) -> None:
    subjects = coloured("red", "blue", photos=1)
    about = lora_metadata(TrainConfig().described(), subjects, base=base, plan_hash="")
    save_file({"x": torch.zeros(1)}, tmp_path / "l.safetensors", about)
    assert read_lora_subjects(tmp_path / "l.safetensors").base == plain_base(base) == plain_base(plain_base(base))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"ss_network_dim": "4"},
        {"mudi_tokens": "olis", "mudi_class_nouns": "[]", "mudi_config": "{}", "mudi_base": ""},
        {"mudi_tokens": "[1]", "mudi_class_nouns": "[2]", "mudi_config": '{"resolution": 8}', "mudi_base": ""},
        {"mudi_tokens": '["a"]', "mudi_class_nouns": "[]", "mudi_config": '{"resolution": 8}', "mudi_base": ""},
        {"mudi_tokens": '["a"]', "mudi_class_nouns": '["b"]', "mudi_config": json.dumps({}), "mudi_base": ""},
        {"mudi_tokens": '["a"]', "mudi_class_nouns": '["b"]', "mudi_config": '{"resolution": [8]}', "mudi_base": ""},
    ],
)
def test_a_foreign_lora_is_told(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata)
    with pytest.raises(UnknownLora, match="other.safetensors does not name its subjects"):
        read_lora_subjects(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "about",
    [
        {"mudi_tokens": '["(olis:1.9)"]'},
        {"mudi_tokens": '["embedding:evil"]'},
        {"mudi_tokens": '["<lora:evil:1>"]'},
        {"mudi_tokens": '["olis olis"]'},
        {"mudi_tokens": json.dumps(["o" * 200])},
        {"mudi_class_nouns": '["dog\\nnaked"]'},
        {"mudi_class_nouns": '["dog [a|b]"]'},
        {"mudi_tokens": json.dumps(["x"] * 12), "mudi_class_nouns": json.dumps(["y"] * 12)},
        {"mudi_config": '{"resolution": 1000000000}'},
        {"mudi_config": '{"resolution": Infinity}'},
        {"mudi_config": '{"resolution": [NaN, 64]}'},
        {"mudi_config": "[" * 100_000},
    ],
)
def test_what_a_foreign_lora_says_reaches_no_prompt_unchecked(tmp_path: Path, about: dict[str, str]) -> None:
    usual = {"mudi_tokens": '["olis"]', "mudi_class_nouns": '["red dog"]', "mudi_config": '{"resolution": 64}'}
    save_file({"x": torch.zeros(1)}, tmp_path / "good.safetensors", {**usual, "mudi_base": ""})
    assert read_lora_subjects(tmp_path / "good.safetensors").names == ["olis red dog"]
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {**usual, "mudi_base": "", **about})
    with pytest.raises(UnknownLora, match="other.safetensors does not name its subjects"):
        read_lora_subjects(tmp_path / "other.safetensors")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\x09")
    for name in ("torn", "gone"):
        with pytest.raises(UnknownLora, match=f"{name}.safetensors cannot be read as a safetensors file"):
            read_lora_subjects(tmp_path / f"{name}.safetensors")


ODD_NAMES = [
    ("olis", "cat"), ("<olis>", "cat"), ("[V]", "cat"), ("🐶", "dog"), ("olis", "plush toy (red)"), ("_olis", "cat"),
    ("olis", 'so-called "best" cat'), ("olis", "cat/dog mix"), ("olis", "x" * 81), ("olis", "x" * 200),
    ("olis", "red\ncat"), ("olis", "cat\u2028dog"), ("olis", "a {cat|dog}"), ("embedding:x", "cat"), ("オ", "猫"),
    ("o\u200blis", "cat"), ("👩\u200d🚀", "astronaut"), ("olis", "\u202etac"), ("a\\b", "cat"), ("olis", "cat\x7f"),
]  # fmt: skip


@pytest.mark.parametrize(("token", "noun"), ODD_NAMES)
def test_names_that_train_are_known_again_others_never_train(tmp_path: Path, token: str, noun: str) -> None:
    photo = Photo("a.png", torch.zeros(16, 16, 3))
    try:
        subject = Subject(token, noun, (photo,), (torch.ones(16, 16),))
    except BadSubject as error:
        assert misread_in_prompts(token + noun) and "Use plain words." in str(error)
        return
    about = lora_metadata(TrainConfig.of(resolution=64).described(), SubjectSet((subject,)), base="mini", plan_hash="")
    save_file({"x": torch.zeros(1)}, tmp_path / "l.safetensors", about)
    assert read_lora_subjects(tmp_path / "l.safetensors").names == [f"{token} {noun}"]
