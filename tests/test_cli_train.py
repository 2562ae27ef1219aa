"""`train` as a command: its presets and options, what it does with files that are there, and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mudi_core.bases.families import usual
from mudi_core.cli import main, parser
from mudi_core.cli.settings import CHOICES, SETTINGS, SWITCHES, train_config
from mudi_core.lock import claimed
from mudi_core.lora.file import load_lora
from mudi_core.subjects import storage
from mudi_core.subjects.storage import write_subjects
from mudi_core.train.config import PRESETS, TrainConfig
from mudi_core.train.memory import MEMORY, UnknownMemory, memory_settings
from mudi_core.types import SubjectSet

FAST = ("--steps", "3", "--batch", "1", "--rank", "2", "--resolution", "64", "--learning-rate", "0.01")


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(dataset), "--base", "mini", "--out", str(out), *FAST, *more]


def settings(*options: str, base: str = "x.safetensors") -> TrainConfig:
    args = parser().parse_args(["train", "d", "--base", base, "--out", "o", *options])
    return train_config(args, usual(base), 1024, "fp32")


def test_presets_stand_below_what_is_said() -> None:
    assert settings() == settings("--preset", "official code") == TrainConfig()
    assert settings("--preset", "paper") == TrainConfig.of(dco_beta=0.0)
    for name, values in PRESETS.items():
        assert settings("--preset", name) == TrainConfig.of(**values)
    quick = settings("--preset", "quick look", "--rank", "64", "--memory", "12")
    assert (quick.samples.steps, quick.learning.rank, quick.fit.batch_size, quick.accumulation) == (
        PRESETS["quick look"]["steps"],
        64,
        1,
        2,
    )
    assert settings("--memory", "16") == TrainConfig.of(**{**MEMORY[16], "precision": "fp32"})
    assert settings("--optimizer", "prodigy").learning.learning_rate == 1.0
    assert settings("--optimizer", "prodigy", "--learning-rate", "0.5").learning.learning_rate == 0.5
    assert settings("--target-modules", "to_k", "to_v").learning.target_modules == ("to_k", "to_v")


@pytest.mark.parametrize("said", ["12", " 12", "12 GB", "12gb", "012"])
def test_the_size_of_a_card_may_have_its_unit(said: str) -> None:
    assert settings("--memory", said) == settings("--memory", "12")


@pytest.mark.parametrize(
    "said",
    ["", "0", "-1", "7", "6.0", "6,0", "1e9", "9" * 30, "nan", "inf", "²", "١٢", "1_2", "None", "12 MB", "x" * 99],
)
def test_another_size_of_a_card_is_refused_in_a_sentence(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--memory", said)
    assert "There is no memory preset for a card of" in capsys.readouterr().err


@pytest.mark.parametrize("size", [7, 0, -1, True, 6.0, None, "6", float("nan"), 10**400, [], {}])
def test_a_preset_that_is_not_there_is_told(size: Any) -> None:
    with pytest.raises(UnknownMemory, match="there are: 6, 8, 12, 16, 24"):
        memory_settings(size)


def test_every_option_reaches_its_setting() -> None:
    for option, (name, kind, *_) in SETTINGS.items():
        value = kind(64 if name == "resolution" else 3 if kind is int else 0.5)
        assert settings(option, str(value)).flat()[name] == value != TrainConfig().flat()[name]
    for option, (name, values, _) in CHOICES.items():
        said = (option, values[-1]) if name != "optimizer" else (option, values[-1], "--learning-rate", "1")
        assert settings(*said).flat()[name] == values[-1] != TrainConfig().flat()[name]
    for option, (name, _) in SWITCHES.items():
        assert settings(option).flat()[name] is True and TrainConfig().flat()[name] is False


def test_a_lora_that_is_there_is_kept_unless_it_would_be_the_same(
    random_mini: None,
    drawn_subjects: SubjectSet,
    drawn_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "l.safetensors"
    assert main(command(drawn_dataset, out)) == 0
    first, written = out.read_bytes(), out.stat().st_mtime_ns
    capsys.readouterr()
    assert main(command(drawn_dataset, out)) == 0
    assert "nothing to do" in capsys.readouterr().out and out.stat().st_mtime_ns == written
    one, other = drawn_subjects.subjects
    fewer = SubjectSet((one, replace(other, photos=other.photos[:1], masks=other.masks[:1])))
    for arguments, origin in (
        (command(drawn_dataset, out, "--seed", "9"), "other settings"),
        (command(write_subjects(fewer, tmp_path / "fewer"), out), "other photos"),
    ):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert f"already exists, made from {origin}" in said and "--overwrite" in said
        assert out.read_bytes() == first
    assert main(command(drawn_dataset, out, "--seed", "9", "--overwrite")) == 0
    assert out.read_bytes() != first
    out.write_text("my diary")
    assert main(command(drawn_dataset, out)) == 1
    assert "something else" in capsys.readouterr().err and out.read_text() == "my diary"


def test_one_subject_trains_as_dreambooth_only_when_asked(
    random_mini: None,
    drawn_subjects: SubjectSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = write_subjects(SubjectSet(drawn_subjects.subjects[:1]), tmp_path / "alone")
    assert main(command(alone, tmp_path / "l.safetensors")) == 1
    assert "only one subject" in capsys.readouterr().err and not (tmp_path / "l.safetensors").exists()
    assert main(command(alone, tmp_path / "l.safetensors", "--method", "dreambooth")) == 0


def test_savings_on_the_way_and_a_start_from_one_of_them(
    random_mini: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, further = tmp_path / "l.safetensors", tmp_path / "further.safetensors"
    assert main(command(drawn_dataset, out, "--save-every", "2", "--dco-beta", "5")) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["l-000002.safetensors", "l.safetensors"]
    saved, about = load_lora(tmp_path / "l-000002.safetensors")
    assert about["ss_steps"] == "2"
    still = ("--start-from", str(tmp_path / "l-000002.safetensors"), "--learning-rate", "1e-12")
    assert main(command(drawn_dataset, further, *still)) == 0
    begun, _ = load_lora(further)
    assert any(value.abs().max() > 0 for key, value in saved.items() if "lora_up" in key)
    for key, value in saved.items():
        torch.testing.assert_close(begun[key], value, rtol=1e-3, atol=1e-5)
    assert "The start holds" not in capsys.readouterr().out
    assert main(command(drawn_dataset, tmp_path / "cut.safetensors", *still, "--rank", "1")) == 0
    assert "% of what l-000002.safetensors changes; a higher rank holds more." in capsys.readouterr().out
    assert main(command(drawn_dataset, further, "--learning-rate", "1e-12")) == 1
    assert "made from another LoRA to start from" in capsys.readouterr().err
    assert main(command(drawn_dataset, tmp_path / "x.safetensors", "--start-from", str(tmp_path / "gone"))) == 1
    assert "There is no file" in capsys.readouterr().err


def test_previews_are_scored_and_the_best_lora_stays_beside_the_last(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, logs = tmp_path / "l.safetensors", tmp_path / "logs"
    looks = ("--preview-every", "2", "--preview-count", "1", "--log-every", "2", "--tensorboard", str(logs))
    assert main(command(drawn_dataset, out, "--json", *looks)) == 0
    said = capsys.readouterr()
    best = json.loads(said.out)["best"]
    assert best["step"] in (2, 3) and best["lora"] == str(tmp_path / "l-best.safetensors")
    about = load_lora(Path(best["lora"]))[1]
    assert (int(about["ss_steps"]), float(about["mudi_score"])) == (best["step"], best["score"])
    pictures = {path.name: storage.read_photo(path).image for path in (tmp_path / "l-previews").iterdir()}
    assert sorted(pictures) == [f"00000{step}-{start}-0.png" for step in (2, 3) for start in ("mudi", "plain")]
    assert not torch.equal(pictures["000002-mudi-0.png"], pictures["000002-plain-0.png"])
    assert not torch.equal(pictures["000002-mudi-0.png"], pictures["000003-mudi-0.png"])
    assert "step 2 of 3: loss 0." in said.err and "s a step, 0 min" in said.err
    assert "step 2: Detect-and-Compare plain start" in said.err and "the best so far" in said.err
    plain = tmp_path / "plain.safetensors"
    assert main(command(drawn_dataset, plain)) == 0
    with_looks, without = load_lora(out)[0], load_lora(plain)[0]
    assert all(torch.equal(with_looks[key], value) for key, value in without.items())

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(logs)).Reload()
    assert [event.step for event in written.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in written.Scalars("Detect-and-Compare/mudi")] == [2, 3]
    assert written.Tags()["images"] == ["plain/0", "mudi/0"]


def test_without_tensorboard_it_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(command(tmp_path / "nothing", tmp_path / "l.safetensors", "--tensorboard", str(tmp_path))) == 1
    assert "pip install tensorboard" in capsys.readouterr().err


def test_two_processes_make_the_lora_of_one_with_twice_the_accumulation(
    mini_weights: None, drawn_dataset: Path, tmp_path: Path
) -> None:
    def launch(out: str, processes: int, *more: str) -> Any:
        arguments = command(drawn_dataset, tmp_path / out, "--json", *more)
        if processes > 1:
            launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
            launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            launcher += ["--main_process_port", "0"]
            arguments = [*launcher, "-m", "mudi_core", *arguments]
        else:
            arguments = ["mudi_core", *arguments]
        done = subprocess.run(
            [sys.executable, "-m", *arguments, "--device", "cpu"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    two = launch("two.safetensors", 2, "--dco-beta", "1", "--accumulation", "1")
    one = launch("one.safetensors", 1, "--dco-beta", "1", "--accumulation", "2")
    assert two["plan_hash"] == one["plan_hash"] and two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    together, about = load_lora(tmp_path / "two.safetensors")
    alone, about_one = load_lora(tmp_path / "one.safetensors")
    assert about == about_one and together.keys() == alone.keys()
    assert any(value.abs().max() > 1e-3 for key, value in alone.items() if "lora_up" in key)
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=0, atol=1e-5)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]


def test_a_second_training_of_one_file_is_told(drawn_dataset: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "cats.safetensors"
    with claimed(tmp_path / ".cats.safetensors.lock"):
        assert main(command(drawn_dataset, out)) == 1
    assert "Another training is writing" in capsys.readouterr().err and not list(tmp_path.glob("*.safetensors"))
    (tmp_path / ".dogs.safetensors.lock").touch()  # of a training that was killed
    assert main(command(drawn_dataset, out)) == 0
    assert not list(tmp_path.glob(".*"))
