from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mudi_core.cli import main, parser
from mudi_core.cli.talk import Talk
from mudi_core.demo.page import OWN_PHOTOS
from mudi_core.eyes import embedded as eyes
from mudi_core.lora.file import load_lora
from mudi_core.stage import ask
from mudi_core.stage.layout_text import Place
from mudi_core.subjects.storage import read_subjects, write_subjects
from mudi_core.types import Detections, SubjectSet

COMMANDS = (
    "prepare",
    "priors",
    "train",
    "fuse",
    "from-loras",
    "residual",
    "iterate",
    "prompt",
    "generate",
    "compare",
    "demo",
    "benchmark",
)
FAST_TRAIN = ("--steps", "3", "--batch", "1", "--rank", "2", "--resolution", "64")
FAST_PICTURES = ("--steps", "2", "--count", "2", "--size", "64x64")


class OneBox:
    """A detector that finds its queries once, in the middle, unless the word is "unicorn"."""

    def __call__(self, image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        if "unicorn" in queries:
            return Detections(torch.zeros(0, 4), torch.zeros(0), (), 0.07)
        height, width = image.shape[:2]
        box = torch.tensor([[0.2 * width, 0.2 * height, 0.8 * width, 0.9 * height]])
        return Detections(box, torch.tensor([0.9]), (queries[0],), 0.9)


class BoxIsMask:
    def __call__(self, image: Tensor, xyxy: Tensor) -> Tensor:
        masks = torch.zeros(len(xyxy), *image.shape[:2])
        for mask, (x0, y0, x1, y1) in zip(masks, xyxy.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        return masks


class MeanColour:
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        means = torch.stack([image.mean(dim=(0, 1)) - 0.5 for image in images])
        return torch.nn.functional.normalize(means, dim=1)


@pytest.fixture
def simple_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the embedded detector, segmenter and embedder."""
    monkeypatch.setattr(eyes, "load_detector", lambda *_: OneBox(), raising=False)
    monkeypatch.setattr(eyes, "load_segmenter", lambda *_: BoxIsMask(), raising=False)
    monkeypatch.setattr(eyes, "load_embedder", lambda *_: MeanColour(), raising=False)


@pytest.fixture
def photos(tmp_path: Path, drawn_subjects: SubjectSet) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for photo in drawn_subjects.subjects[0].photos:
        Image.fromarray((photo.image * 255).byte().numpy()).save(folder / photo.name)
    return folder


def prepare(photos: Path, out: Path, *more: str, token: str = "olis") -> int:
    required = ("--token", token, "--class-noun", "cat", "--base", "mini", "--out", str(out))
    return main(["prepare", str(photos), *required, *more])


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed, which must be one JSON value and nothing else."""
    return json.loads(capsys.readouterr().out)


def content(lora: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """A LoRA's tensors and metadata; the order of the metadata in the file is safetensors' own affair."""
    state, metadata = load_lora(lora)
    return {key: value.numpy().tobytes() for key, value in state.items()}, metadata


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed command said: nothing on standard output, no traceback."""
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_option_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert f"example:\n  python -m mudi_core {command} " in text
    assert "--json" in text


def test_every_option_has_a_help_text() -> None:
    commands = parser()._actions[-1].choices
    assert isinstance(commands, dict) and set(commands) == set(COMMANDS)
    for name, command in commands.items():
        for action in command._actions:
            assert action.help, f"{name} {action.option_strings}"


def examples() -> list[str]:
    """Every command that the README, the report and the help texts show."""
    root = Path(__file__).parent.parent
    commands = parser()._actions[-1].choices
    assert isinstance(commands, dict)
    helps = [parser().epilog, *(command.epilog for command in commands.values())]
    texts = [(root / "README.md").read_text(encoding="utf-8"), OWN_PHOTOS, *helps]
    lines = [line.strip() for text in texts for line in str(text).splitlines()]
    return [line for line in lines if line.startswith("python -m mudi_core ") and "--help" not in line]


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_command_shown_to_users_is_a_right_one(line: str) -> None:
    parser().parse_args(shlex.split(line)[3:])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "paint",
        "train",
        "train dataset --base mini --out x.safetensors --steps many",
        "train dataset --base mini --out x.safetensors --relative-scale olis:hta=1",
        "train dataset --base mini --out x.safetensors --relative-scale olis:hta=1:-2",
        "train dataset --base mini --out x.safetensors --method magic",
        "generate --base mini --dataset d --out o --size big",
        "prepare photos --class-noun cat --base mini --out d",
        "prompt",
        "prompt --lora l.safetensors --dataset d",
    ],
)
def test_a_wrong_command_is_a_usage_error(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(line.split())
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_whole_way(
    simple_eyes: None,
    random_mini: None,
    photos: Path,
    drawn_subjects: SubjectSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, lora, pictures = tmp_path / "dataset", tmp_path / "cats.safetensors", tmp_path / "pictures"
    assert prepare(photos, dataset, "--json") == 0
    assert answer(capsys)["photos"] == 2
    assert prepare(photos, dataset, "--json", token="hta") == 0
    assert [one["token"] for one in answer(capsys)["subjects"]] == ["olis", "hta"]
    assert [subject.name for subject in read_subjects(dataset)] == ["olis cat", "hta cat"]

    assert main(["train", str(dataset), "--base", "mini", "--out", str(lora), "--json", *FAST_TRAIN]) == 0
    trained = answer(capsys)
    assert trained["steps"] == 3 and trained["layers"] > 0 and lora.is_file()
    assert main(["prompt", "in the snow", "--lora", str(lora), "--kind", "cats", "--every-order", "--json"]) == 0
    words = answer(capsys)
    assert words["prompts"] == [
        "2 cats: a photo of olis cat and hta cat in the snow",
        "2 cats: a photo of hta cat and olis cat in the snow",
    ]
    assert words["size"] == [64, 64] and words["base"] == "mini" and words["negative_prompt"] == "sticker, collage"
    assert list(tmp_path.glob("*.stopped.safetensors")) == []

    command = ["generate", "--base", "mini", "--lora", str(lora), "--dataset", str(dataset), *FAST_PICTURES, "--json"]
    assert main([*command, "--out", str(pictures), "--gamma", "1.5", "--seed", "7"]) == 0
    made = answer(capsys)
    assert made["gamma"] == 1.5 and made["prompt"] == "a photo of olis cat and hta cat"
    assert sorted(path.name for path in pictures.glob("*.png")) == [one["file"] for one in made["pictures"]]

    assert main(["compare", str(pictures), "--dataset", str(dataset), "--base", "mini", "--json"]) == 0
    compared = answer(capsys)
    assert len(compared["pictures"]) == 2
    assert compared["mean"] == pytest.approx(sum(one["score"] for one in compared["pictures"]) / 2)
    # One box where two subjects should be: the count is wrong.
    assert [one["score"] for one in compared["pictures"]] == [0.0, 0.0]
    assert main(["compare", str(pictures), "--dataset", str(dataset), "--base", "mini"]) == 0
    assert "mean of 2" in capsys.readouterr().out


def test_preparing_holds_one_decoded_photo_at_a_time(simple_eyes: None, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (3000, 3000), (number, 90, 90)).save(folder / f"{number}.jpg")
    one = 3000 * 3000 * 3
    tracemalloc.start()  # of numpy, which the decoded photos lie in
    try:
        assert prepare(folder, tmp_path / "set") == 0
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        subjects = read_subjects(tmp_path / "set", packed=True)
        to_read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(subjects["olis"].photos) == 10
    assert most < 5 * one, f"{most / one:.1f} photos at a time"
    assert to_read < 5 * one, f"{to_read / one:.1f} photos at a time"


def test_the_same_seed_makes_the_same_files(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, seed: str) -> tuple[Any, bytes]:
        lora, out = tmp_path / name / "l.safetensors", tmp_path / name / "pictures"
        assert (
            main(["train", str(drawn_dataset), "--base", "mini", "--out", str(lora), "--seed", seed, *FAST_TRAIN]) == 0
        )
        command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(out), "--seed", seed]
        assert main([*command, "--steps", "1", "--count", "1", "--size", "64x64"]) == 0
        pixels = Image.open(next(out.glob("*.png"))).tobytes()
        return content(lora), pixels

    first, again, other = run("a", "1"), run("b", "1"), run("c", "2")
    assert first == again
    assert first[0] != other[0] and first[1] != other[1]


def test_boxes_can_be_given_as_text_or_file(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = '{"olis": [0, 200, 450, 1000], "hta": [500, 200, 950, 1000]}'
    (tmp_path / "boxes.json").write_text(boxes)
    layouts = []
    for given in (boxes, str(tmp_path / "boxes.json")):
        command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path / "out")]
        assert main([*command, *FAST_PICTURES, "--layout", given, "--json"]) == 0
        layouts.append([one["layout"] for one in answer(capsys)["pictures"]])
    assert layouts[0] == layouts[1]
    xyxy = {one["token"]: one["xyxy"] for one in layouts[0][0]}
    assert xyxy["olis"][2] <= 0.4501 and xyxy["hta"][0] >= 0.4999


def test_a_layout_can_be_a_row_of_chosen_photos_or_asked_for(
    random_mini: None,
    drawn_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path), *FAST_PICTURES]
    assert main([*command, "--layout", "row", "--photos", "olis:hta=#2:#1", "--json"]) == 0
    first, second = (one["layout"] for one in answer(capsys)["pictures"])
    assert first == second and [(one["token"], one["photo"]) for one in first] == [("olis", "#2"), ("hta", "#1")]
    assert first[0]["xyxy"][2] <= first[1]["xyxy"][0]
    assert main([*command, "--layout", "row", "--photos", "olis:hta=1:0"]) == 0  # as older commands have it
    assert "Counted from 1 this is olis:hta=#2:#1." in "".join(capsys.readouterr())
    assert json.loads((tmp_path / "generate.json").read_text(encoding="utf-8"))["pictures"][0]["layout"] == first

    asked: list[Any] = []

    def places(*about: Any) -> dict[str, Place]:
        asked.append(about)
        return {"olis": Place((0.5, 0.0, 1.0, 1.0), mirror=True), "hta": Place((0.0, 0.0, 0.5, 1.0))}

    monkeypatch.setattr(ask, "ask_layout", places)
    llm = ("--llm", "http://127.0.0.1:1/v1", "--llm-model", "small")
    assert main([*command, "--layout", "ask", *llm, "--prompt", "olis cat and hta cat at sea", "--json"]) == 0
    by_token = {one["token"]: one for one in answer(capsys)["pictures"][0]["layout"]}
    assert by_token["olis"]["mirror"] and by_token["olis"]["xyxy"][0] >= 0.5 >= by_token["hta"]["xyxy"][2]
    assert asked[0][1:] == ("olis cat and hta cat at sea", (64, 64), ask.Endpoint(llm[1], "small"), 0)


def test_a_prompt_names_the_subjects_of_a_dataset(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompt", "--dataset", str(drawn_dataset)]) == 0
    assert capsys.readouterr().out == "a photo of olis cat and hta cat\n"
    command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path), *FAST_PICTURES]
    said = {"{subjects} at sea": "olis cat and hta cat at sea", " ": "a photo of olis cat and hta cat"}
    for text, prompt in said.items():
        assert main([*command, "--prompt", text, "--json"]) == 0
        assert answer(capsys)["prompt"] == prompt


def test_a_subject_without_a_box_is_warned_of(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path), *FAST_PICTURES]
    assert main([*command, "--layout", '{"olis": [0, 0, 1, 1]}']) == 0
    assert "'hta' has no box and is left out" in capsys.readouterr().err


def test_a_lora_of_other_subjects_is_warned_of(
    random_mini: None,
    drawn_subjects: SubjectSet,
    drawn_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lora, others = tmp_path / "l.safetensors", tmp_path / "others"
    assert main(["train", str(drawn_dataset), "--base", "mini", "--out", str(lora), *FAST_TRAIN]) == 0
    first, second = drawn_subjects.subjects
    write_subjects(SubjectSet((first, replace(second, token="lun"))), others)
    said = []
    for dataset in (drawn_dataset, others):
        command = ["generate", "--base", "mini", "--lora", str(lora), "--dataset", str(dataset), *FAST_PICTURES]
        capsys.readouterr()
        assert main([*command, "--out", str(tmp_path / "out")]) == 0
        said.append(capsys.readouterr().err)
    assert "Warning" not in said[0] and "was not trained on 'lun cat'" in said[1]


def test_masks_by_hand_need_no_detector(
    photos: Path, drawn_subjects: SubjectSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    subject = drawn_subjects.subjects[0]
    for photo, mask in zip(subject.photos, subject.masks, strict=True):
        Image.fromarray((mask * 255).byte().numpy()).save(masks / f"mask_{Path(photo.name).stem}.png")
    assert prepare(photos, tmp_path / "dataset", "--masks", str(masks)) == 0
    kept = read_subjects(tmp_path / "dataset").subjects[0]
    assert all(torch.equal(a, b) for a, b in zip(kept.masks, subject.masks, strict=True))


def test_a_plain_word_as_token_is_warned_of(
    simple_eyes: None, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(photos, tmp_path / "dataset", token="dog") == 0
    said = capsys.readouterr()
    assert "Warning: " in said.err and "'dog'" in said.err


def text_as_jpeg(photos: Path) -> None:
    (photos / "notes.jpg").write_text("milk, bread")


def truncated(photos: Path) -> None:
    Image.new("RGB", (200, 200), "red").save(photos / "cut.jpg")
    (photos / "cut.jpg").write_bytes((photos / "cut.jpg").read_bytes()[:500])


def thumbnail(photos: Path) -> None:
    Image.new("RGB", (20, 20)).save(photos / "small.png")


def animation(photos: Path) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "moves.webp", save_all=True, append_images=frames[1:])


def empty(photos: Path) -> None:
    for path in photos.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (text_as_jpeg, "notes.jpg"),
        (truncated, "cut.jpg"),
        (thumbnail, "small.png is only 20x20"),
        (animation, "moves.webp"),
        (empty, "holds no photo"),
    ],
)
def test_bad_photos_are_named_and_nothing_is_written(
    spoil: Callable[[Path], None],
    words: str,
    simple_eyes: None,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(photos)
    assert prepare(photos, tmp_path / "dataset") == 1
    assert words in sentence(capsys)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--query", "unicorn"), "no 'unicorn' was found (best score 0.07"),
        (("--token", "two words"), "needs a token"),
        (("--token", ""), "needs a token"),
        (("--class-noun", " ", "--query", "cat"), "needs a class noun"),
        (("--detector", "hubble"), "No detector is called 'hubble'"),
        (("--detector", "owlv2", "--models", "nowhere"), "https://"),
        (("--device", "cuda:77"), "no device 'cuda:77'"),
        (("--masks", "nowhere"), "no mask in nowhere"),
        (("--out", "photos/olis_0.png/dataset"), "olis_0.png"),
    ],
)
def test_a_mistake_is_a_sentence(
    options: tuple[str, ...],
    words: str,
    simple_eyes: None,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare(photos, tmp_path / "dataset", *options) == 1
    assert words in sentence(capsys)
    assert not (tmp_path / "dataset").exists()


def test_a_taken_token_leaves_the_dataset_as_it_was(
    simple_eyes: None, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(photos, tmp_path / "dataset") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "dataset").iterdir()}
    capsys.readouterr()
    assert prepare(photos, tmp_path / "dataset") == 1
    assert "token 'olis'" in sentence(capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dataset").iterdir()} == before
    assert prepare(photos, tmp_path / "dataset", "--replace") == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train nowhere --base mini --out l.safetensors", "nowhere is not a dataset"),
        ("train DATASET --base gone.safetensors --out l.safetensors", "no base model gone.safetensors"),
        ("train DATASET --base mini --out DATASET/metadata.jsonl/l.safetensors", "cannot be written"),
        ("train DATASET --base mini --out l.pt", "l.safetensors"),
        ("train DATASET --base mini --out l.safetensors --steps 0", "steps is 0"),
        ("train DATASET --base mini --out l.safetensors --resolution 63", "resolution"),
        ("train DATASET --base mini --out l.safetensors --resume", "l.stopped.safetensors"),
        ("train DATASET --base mini --out l.safetensors --priors nowhere", "nowhere is not a dataset"),
        ("train DATASET --base mini --out l.safetensors --relative-scale olis:nobody=1:2", "nobody"),
        ("train BROKEN --base mini --out l.safetensors", "line 2"),
        ("train LEAVING --base mini --out l.safetensors", "leads out of the dataset folder"),
        ("generate --base mini --dataset DATASET --out o --lora gone.safetensors", "gone.safetensors"),
        ("generate --base mini --dataset DATASET --out o --lora DATASET/metadata.jsonl", "metadata.jsonl"),
        ("generate --base mini --dataset DATASET --out DATASET/metadata.jsonl/x", "cannot be written"),
        ("generate --base mini --dataset DATASET --out o --gamma -1", "gamma"),
        ("generate --base mini --dataset DATASET --out o --size 70x70", "size"),
        ("generate --base mini --dataset DATASET --out o --layout {}", "one place for each subject"),
        ("generate --base mini --dataset DATASET --out o --photos worst", "random, best, or olis:hta=#1:#3"),
        ("generate --base mini --dataset DATASET --out o --photos olis=#9", "photo #9 of 'olis'"),
        ("generate --base mini --dataset DATASET --out o --rotation 400", "0 to 180 degrees"),
        ("generate --base mini --dataset DATASET --out o --layout ask --llm file:///x", "not an address"),
        ("generate --base mini --dataset DATASET --out o --layout gone.json", "gone.json"),
        ("prompt --lora gone.safetensors", "gone.safetensors cannot be read as a safetensors file"),
        ("prompt --lora DATASET/metadata.jsonl", "cannot be read as a safetensors file"),
        ("compare EMPTY --dataset DATASET --base mini", "holds no photo"),
        ("compare nowhere --dataset DATASET --base mini", "nowhere"),
        ("demo --out o --pair 99", "no pair 99"),
        ("demo --out DATASET/metadata.jsonl/x", "cannot be written"),
    ],
)
def test_a_mistake_in_later_commands_is_a_sentence(
    command: str,
    words: str,
    simple_eyes: None,
    random_mini: None,
    drawn_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    metadata = (drawn_dataset / "metadata.jsonl").read_text().splitlines()
    for name, line in (("BROKEN", metadata[1][:-5]), ("LEAVING", metadata[1].replace("olis_0.png", "../olis_0.png"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text("\n".join([metadata[0], line]))
    before = sorted(tmp_path.rglob("*"))
    assert main(command.replace("DATASET", str(drawn_dataset)).split()) == 1
    assert words in sentence(capsys)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.suffix == ".safetensors"] == []


def stop_after(monkeypatch: pytest.MonkeyPatch, stage: str, done: int) -> None:
    """Ctrl-C as soon as a stage has done so much."""
    from contextlib import contextmanager

    @contextmanager
    def progress(self: Talk, what: str) -> Any:
        def update(now: int, total: int, words: str = "") -> None:
            if what == stage and now == done:
                raise KeyboardInterrupt

        yield update

    monkeypatch.setattr(Talk, "progress", progress)


def test_ctrl_c_in_training_leaves_what_resume_takes(
    random_mini: None,
    drawn_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(name: str) -> list[str]:
        return ["train", str(drawn_dataset), "--base", "mini", "--out", str(tmp_path / name), *FAST_TRAIN]

    assert main(command("whole.safetensors")) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, "training", 2)
        capsys.readouterr()
        assert main(command("l.safetensors")) == 130
    said = sentence(capsys)
    assert "after step 2 of 3" in said and "l.stopped.safetensors" in said
    assert not (tmp_path / "l.safetensors").exists()
    assert main([*command("l.safetensors"), "--resume"]) == 0
    assert content(tmp_path / "l.safetensors") == content(tmp_path / "whole.safetensors")
    assert not (tmp_path / "l.stopped.safetensors").exists()


def test_ctrl_c_in_sampling_keeps_the_pictures_so_far(
    random_mini: None,
    drawn_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(monkeypatch, "sampling", 3)
    command = ["generate", "--base", "mini", "--dataset", str(drawn_dataset), "--out", str(tmp_path), "--batch", "1"]
    assert main([*command, *FAST_PICTURES]) == 130
    assert "1 of 2 pictures are in" in sentence(capsys)
    kept = json.loads((tmp_path / "generate.json").read_text())["pictures"]
    assert [one["file"] for one in kept] == [path.name for path in tmp_path.glob("*.png")]


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_in_preparing_says_what_is_there(
    there: bool,
    simple_eyes: None,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if there:
        prepare(photos, tmp_path / "dataset")
        capsys.readouterr()
    stop_after(monkeypatch, "finding and cutting out", 1)
    assert prepare(photos, tmp_path / "dataset", token="hta") == 130
    assert ("is as it was" if there else "Nothing was written") in sentence(capsys)
    assert (tmp_path / "dataset").exists() == there


def test_ctrl_c_from_outside_ends_the_program(drawn_dataset: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time, mudi_core.cli.compare as c\n"
        "def run(args, talk):\n    print('here', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "c.run = run\nfrom mudi_core.cli import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", script, "compare", "x", "--dataset", "y", "--base", "mini"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert program.stderr is not None and program.stderr.readline() == "here\n"
    begun = time.monotonic()
    os.kill(program.pid, signal.SIGINT)
    said = program.communicate(timeout=30)[1]
    assert program.returncode == 130 and said.startswith("Stopped.") and "Traceback" not in said
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.usefixtures("simple_eyes")
def test_no_command_ends_because_a_terminal_lacks_a_letter(
    encoding: str, photos: Path, tmp_path: Path, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, other = drawn_subjects.subjects[:2]
    named = SubjectSet((replace(subject, token="オリス", class_noun="猫"), replace(other, token="hta")))
    write_subjects(named, tmp_path / "set")
    lora, pictures = str(tmp_path / "猫.safetensors"), str(tmp_path / "猫")
    dataset = ("--dataset", str(tmp_path / "set"), "--base", "mini")
    (photos / subject.photos[0].name).rename(photos / "猫.png")
    written = {}
    for command in (
        [
            "prepare",
            str(photos),
            "--token",
            "ルン",
            "--class-noun",
            "猫",
            "--base",
            "mini",
            "--out",
            str(tmp_path / "o"),
        ],
        ["train", str(tmp_path / "set"), "--base", "mini", *FAST_TRAIN, "--out", lora],
        ["prompt", "--lora", lora],
        ["generate", *dataset, "--lora", lora, *FAST_PICTURES, "--prompt", "a 猫", "--out", pictures],
        ["compare", pictures, *dataset],
        ["train", str(tmp_path / "猫がいない"), "--base", "mini", "--out", lora],
    ):
        out, err = io.BytesIO(), io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding))
        assert main(command) == ("いない" in str(command)), command
        sys.stdout.flush()
        sys.stderr.flush()
        written[" ".join(command[:2])] = (out.getvalue() + err.getvalue()).decode(encoding)
    letter = "猫" if encoding == "utf-8" else r"\u732b"
    assert all(letter in text for text in written.values()), written


def test_half_a_letter_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "a \ud800", "--dataset", str(tmp_path)]) == 1
    assert prepare(tmp_path, tmp_path / "out", token="ol\udcffis") == 1
    assert capsys.readouterr().err.count("has a broken letter") == 2
