"""`benchmarks/ablate.py`: a change is what it says, and each has its own LoRA."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import ablate


def test_a_change_is_read_as_settings() -> None:
    assert ablate.settings_of("usual") == {}
    assert ablate.settings_of("rank=32,lr_schedule=linear") == {"rank": 32, "lr_schedule": "linear"}
    assert ablate.settings_of("target_modules=to_k+to_v") == {"target_modules": ("to_k", "to_v")}
    rows = [dict.fromkeys(ablate.COLUMNS, 1.0), dict.fromkeys(ablate.COLUMNS, 0.0)]
    assert ablate.line("usual", "0", rows) == "| usual | 0 | 2 | 0.50 | 0.50 | 0.50 | 0.50 | 0.50 |"


def test_a_change_is_trained_once_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablate, "PROMPTS", ablate.PROMPTS[:1])
    monkeypatch.setattr(ablate, "SEEDS", 1)
    small = "steps=2,batch_size=1,accumulation=1"
    command = ["ablate.py", "--out", str(tmp_path), "--pairs", "1", f"{small},rank=2", f"{small},rank=4"]
    monkeypatch.setattr(sys, "argv", command)
    ablate.main()
    rows = capsys.readouterr().out.splitlines()[2:]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pair-0/segmix-*.safetensors")}
    assert len(rows) == len(files) == 2 and all(path.with_suffix(".png").is_file() for path in files)
    ablate.main()
    assert capsys.readouterr().out.splitlines()[2:] == rows
    assert {path: path.stat().st_mtime_ns for path in files} == files
