"""The files that training writes and reads: whole to the bit or refused, never mapped where they are to be replaced."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import flips
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_nothing_is_lost import anybody, posix, with_full_disk
from test_train_loop import CONFIG, plan_for, stopped
from test_train_plan import plan_of, same, subject
from tiny_sdxl import tiny_unet, train

from mudi_core.tensor_file import BadTensorFile, read_tensors, write_tensors
from mudi_core.train.resume import BadCheckpoint, losses_so_far
from mudi_core.types import SubjectSet

TENSORS = {"a": torch.arange(10.0), "b": torch.tensor([1, 2]), "c": torch.tensor(float("nan"))}
SUBJECTS = SubjectSet((subject("olis", "dog", (100, 80), (64, 64)), subject("ht", "cat", (40, 90))))


def test_one_bit_that_flips_is_noticed_in_every_kind_of_file(tmp_path: Path) -> None:
    """`python tests/flips.py` tries 300 files of each kind."""
    unnoticed = flips.run(6, 1, tmp_path)
    assert len(unnoticed) == 6 and set(unnoticed.values()) == {0}, unnoticed


def test_every_single_bit_of_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(3.0), "b": torch.ones(1)}, {"note": "crc32 of something"})
    whole = path.read_bytes()
    assert read_tensors(path)[1] == {"note": "crc32 of something"}
    for place in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        path.write_bytes(broken)
        with pytest.raises(BadTensorFile, match=r"x\.safetensors"):
            read_tensors(path)


def test_files_of_others_and_of_earlier_versions_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"note": "theirs"})
    found, about = read_tensors(path)
    assert about == {"note": "theirs"} and found.keys() == TENSORS.keys()
    with pytest.raises(BadTensorFile, match="no checksum"):
        read_tensors(path, checked=True)


def test_a_file_that_another_program_wrote_anew_is_read_although_our_checksum_stands_in_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"note": "ours"})
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    assert "mudi_checksum" in about
    changed = {**load_file(path), "a": torch.zeros(5)}
    save_file(changed, path, about)
    assert torch.equal(read_tensors(path)[0]["a"], torch.zeros(5))


def test_a_header_that_no_file_needs_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as file:
        file.write((17 * 2**20).to_bytes(8, "little"))
        file.truncate(18 * 2**20)
    with pytest.raises(BadTensorFile, match="header of 17825792 bytes"):
        read_tensors(path)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells which files are mapped")
def test_a_run_that_goes_on_holds_no_file_that_it_will_replace(tmp_path: Path) -> None:
    file, unet, held = tmp_path / "run.safetensors", tiny_unet(), []
    stopped(unet, CONFIG, file)

    def look(*_: Any) -> None:
        held.append([line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line])

    config = CONFIG.but(save_every=1)
    train(unet, plan_for(config), config, look, resume=file, checkpoint=file)
    assert held == [[], []]


def test_a_damaged_stopped_run_is_told_with_what_to_do(tmp_path: Path) -> None:
    file, unet = tmp_path / "run.safetensors", tiny_unet()
    stopped(unet, CONFIG, file)
    broken = bytearray(file.read_bytes())
    broken[-100] ^= 4
    file.write_bytes(broken)
    with pytest.raises(BadCheckpoint, match=r"run\.safetensors is damaged.*remove it and start again"):
        train(unet, plan_for(CONFIG), CONFIG, resume=file)


def test_a_stopped_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    file, unet = tmp_path / "run.safetensors", tiny_unet()
    stopped(unet, CONFIG, file)
    tensors, about = read_tensors(file)
    save_file(tensors, file, about)
    assert len(losses_so_far(file)) == 3
    train(unet, plan_for(CONFIG), CONFIG, resume=file)


@pytest.mark.parametrize("key", ["optimizer", "config", "plan", "format"])
@pytest.mark.parametrize(
    "value", ["", "{", "[]", "null", '{"x": 1}', '{"state.0.exp_avg": 1, "a.b.c": 2}', "[" * 100_000]
)
def test_strange_words_in_a_stopped_run_are_a_sentence(tmp_path: Path, key: str, value: str) -> None:
    file, unet = tmp_path / "run.safetensors", tiny_unet()
    stopped(unet, CONFIG, file)
    tensors, about = read_tensors(file)
    write_tensors(file, tensors, {**about, key: value})
    with pytest.raises(BadCheckpoint, match=r"run\.safetensors"):
        train(unet, plan_for(CONFIG), CONFIG, resume=file)


def test_bad_cache_files_are_made_again_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = plan_of(SUBJECTS, cache_dir=tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, content in whole.items():
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert same(first, plan_of(SUBJECTS, cache_dir=tmp_path)[0])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == whole
    assert caplog.text.count("made again") == 1


def test_a_kept_plan_of_another_kind_is_made_again(tmp_path: Path) -> None:
    first, _ = plan_of(SUBJECTS, cache_dir=tmp_path)
    for file in tmp_path.iterdir():
        write_tensors(file, {"shapes": torch.zeros(2, 2, 2)}, {"names": json.dumps(7)})
    assert same(first, plan_of(SUBJECTS, cache_dir=tmp_path)[0])


@posix
@pytest.mark.parametrize("byte", [0, 2000])
def test_a_full_cache_folder_stops_no_training(tmp_path: Path, byte: int) -> None:
    wanted = plan_of(SUBJECTS)[0]

    def work() -> None:
        assert same(plan_of(SUBJECTS, cache_dir=tmp_path / "cache")[0], wanted)
        raise InterruptedError("it went on")

    assert with_full_disk(work, byte) == "InterruptedError: it went on"


@posix
@pytest.mark.parametrize("rights", [0o000, 0o100, 0o400, 0o555])
def test_a_forbidden_cache_folder_stops_no_training(rights: int, caplog: pytest.LogCaptureFixture) -> None:
    wanted = plan_of(SUBJECTS)[0]
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, rights)
        try:
            with anybody(), caplog.at_level(logging.WARNING):
                assert same(plan_of(SUBJECTS, cache_dir=Path(name))[0], wanted)
                assert same(plan_of(SUBJECTS, cache_dir=Path(name) / "below")[0], wanted)
        finally:
            os.chmod(name, 0o700)
    assert caplog.text.count("Training goes on") == 2
