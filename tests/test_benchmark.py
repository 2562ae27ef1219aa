"""Real photos with their masks, from prepare to compare. They belong to others and are not part of the project."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from mudi_core.cli import main
from mudi_core.stage.cutouts import cut_outs
from mudi_core.stage.segmix import SegMixConfig, segmix
from mudi_core.subjects.storage import read_subjects

PHOTOS = Path(os.environ.get("MUDI_BENCHMARK") or Path(__file__).parent.parent.parent / "shared" / "benchmark")
SETS = ("bear_plushie_and_robot_toy", "can_and_monster_toy", "monster_toy_and_robot_toy")

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no real photos in {PHOTOS} (set MUDI_BENCHMARK)")


def prepared(name: str, folder: Path) -> Path:
    """The set's dataset, made again from its photos and masks by `prepare`, a subject at a time."""
    given = read_subjects(PHOTOS / name)
    for letter, subject in zip("ab", given, strict=True):
        photos = folder / letter
        photos.mkdir()
        for path in (PHOTOS / name).glob(f"*{letter}0*.*"):
            shutil.copy(path, photos)
        command = ["prepare", str(photos), "--masks", str(photos), "--out", str(folder / "dataset"), "--base", "mini"]
        assert main([*command, "--token", subject.token, "--class-noun", subject.class_noun]) == 0
    return folder / "dataset"


@pytest.mark.parametrize("name", SETS)
def test_prepare_keeps_the_photos_and_masks(name: str, tmp_path: Path) -> None:
    given, made = read_subjects(PHOTOS / name), read_subjects(prepared(name, tmp_path))
    for one, other in zip(given, made, strict=True):
        assert one.name == other.name and len(other.photos) == 5
        for i in range(5):
            assert torch.equal(one.photos[i].image, other.photos[i].image)
            assert torch.equal(one.masks[i], other.masks[i])


@pytest.mark.parametrize("name", SETS)
def test_compositions_show_both_on_white(name: str) -> None:
    cutouts = cut_outs(read_subjects(PHOTOS / name))
    for seed in range(4):
        mix = segmix(cutouts, random.Random(seed), SegMixConfig(size=(512, 512)))
        assert (mix.image[mix.mask == 0] == 1).all()
        assert all(mask.mean() > 0.02 for mask in mix.masks)


@pytest.mark.parametrize("name", SETS)
def test_the_embedded_models_train_and_compare_on_them(
    name: str, mini_weights: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = prepared(name, tmp_path)
    lora = tmp_path / "lora.safetensors"
    assert main(["train", str(dataset), "--base", "mini", "--steps", "50", "--batch", "2", "--out", str(lora)]) == 0
    pictures = tmp_path / "pictures"
    command = ["generate", "--base", "mini", "--lora", str(lora), "--dataset", str(dataset), "--out", str(pictures)]
    assert main([*command, "--count", "1", "--steps", "4"]) == 0
    capsys.readouterr()
    assert main(["compare", str(pictures), "--dataset", str(dataset), "--base", "mini", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert len(compared["pictures"]) == 1 and len(compared["tokens"]) == 2
