"""What a node gives hangs on the files it read and wrote, not on its graph alone."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comfyui import Comfy

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.bases.families import FAMILIES
from mudi_core.lora.adapter import Adapter
from mudi_core.lora.file import save_lora
from mudi_core.lora.metadata import lora_metadata
from mudi_core.subjects.storage import write_subjects
from mudi_core.train.config import TrainConfig
from mudi_core.types import SubjectSet


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def training(name: str, start: str) -> dict[str, Any]:
    return {
        "base": node("MudiMiniCheckpoint"),
        "set": node("MudiLoadSubjectSet", name="stale"),
        "mix": node(
            "MudiSegMixDataset", subjects=["set", 0], probability=0.5, relative_sizes="", overlap=0.2,
            background_weight=1.0,
        ),
        "settings": node(
            "MudiTrainSettings", learning="as in Train LoRA", memory="as in Train LoRA", optimizer="adamw",
            schedule="constant", warm_up=0, accumulation=1, alpha=0.0, min_snr_gamma=0.0, noise_offset=0.0,
            kl_weight=0.0, buckets=False, save_every=0, resolution=0, start_from=start,
        ),
        "train": node(
            "MudiTrainLora", model=["base", 0], clip=["base", 1], vae=["base", 2], dataset=["mix", 0], name=name,
            method="segmix", preset="mini, 192 px", steps=1, rank=2, learning_rate=1e-3, batch_size=1, seed=7,
            settings=["settings", 0],
        ),
    }  # fmt: skip


def a_lora(path: Path, seed: int, subjects: SubjectSet) -> None:
    targets = FAMILIES["mini"].training["target_modules"]
    with Adapter.new(open_checkpoint("mini").denoiser(), 2, 2.0, targets) as adapter:
        adapter.start(seed)
        about = lora_metadata(TrainConfig.of(resolution=192).described(), subjects, base=f"base {seed}", plan_hash="")
        save_lora(path, adapter.state(), about)


@pytest.fixture
def loras(comfy: Comfy, drawn_subjects: SubjectSet, random_mini: None) -> Path:
    comfy.forget()
    write_subjects(drawn_subjects, comfy.base / "input" / "stale")
    folder = comfy.base / "models" / "loras"
    for path in folder.glob("stale*"):
        path.unlink()
    comfy.core("folder_paths").filename_list_cache.clear()
    return folder


def test_a_training_runs_again_when_what_it_began_with_or_made_is_another(
    comfy: Comfy, loras: Path, drawn_subjects: SubjectSet
) -> None:
    def numbers() -> list[int]:
        run = comfy.queue(training("stale", "stale_start.safetensors"), "train")
        assert run.status == "success", run.messages
        return [int(path.stem[-5:]) for path in sorted(loras.glob("stale_0*"))]

    a_lora(loras / "stale_start.safetensors", 1, drawn_subjects)
    assert numbers() == [1] and numbers() == [1]
    a_lora(loras / "stale_start.safetensors", 2, drawn_subjects)
    os.utime(loras / "stale_start.safetensors", (1, 1))
    assert numbers() == [1, 2] and numbers() == [1, 2]
    assert len({path.read_bytes() for path in loras.glob("stale_0*")}) == 2
    (loras / "stale_00001.safetensors").unlink()  # somebody tidies up: the newest is still there
    (loras / "stale_00002.safetensors").unlink()
    assert numbers() == [1]
    write_subjects(SubjectSet(drawn_subjects.subjects[::-1]), comfy.base / "input" / "stale")
    assert numbers() == [1, 2]


def test_a_saved_set_that_is_gone_is_saved_again(comfy: Comfy, loras: Path) -> None:
    def save() -> str:
        return comfy.queue(  # a graph of its own each time, since ComfyUI writes into it
            {
                "set": node("MudiLoadSubjectSet", name="stale"),
                "save": node("MudiSaveSubjectSet", subjects=["set", 0], name="stale_copy"),
            },
            "save",
        ).status

    saved = comfy.base / "input" / "stale_copy"
    assert save() == "success" and saved.is_dir()
    kept = (saved / "metadata.jsonl").stat().st_ino
    assert save() == "success" and (saved / "metadata.jsonl").stat().st_ino == kept
    shutil.rmtree(saved)
    assert save() == "success" and (saved / "metadata.jsonl").is_file()


def test_a_prompt_reads_a_replaced_lora_and_names_a_newer_one(
    comfy: Comfy, loras: Path, drawn_subjects: SubjectSet
) -> None:
    def said() -> str:
        graph = {
            "prompt": node(
                "MudiSubjectPrompt", lora_name="stale_00001.safetensors", text="at sea", kind="", every_order=False,
                negative="",
            ),
        }  # fmt: skip
        run = comfy.queue(graph, "prompt")
        assert run.status == "success", run.messages
        return str(run.outputs["prompt"]["text"][0])

    first = loras / "stale_00001.safetensors"
    a_lora(first, 1, drawn_subjects)
    assert "base 1" in said() and "newer" not in said()
    time = first.stat().st_mtime_ns
    a_lora(first, 2, drawn_subjects)
    os.utime(first, ns=(time, time))
    assert "base 2" in said()
    a_lora(loras / "stale_00002-best.safetensors", 3, drawn_subjects)
    a_lora(loras / "stale_00002-000200.safetensors", 3, drawn_subjects)
    assert "newer" not in said()
    a_lora(loras / "stale_00012.safetensors", 3, drawn_subjects)
    told = "stale_00012.safetensors is newer than stale_00001.safetensors: choose it here and in the LoRA loader"
    assert told in said()
    (loras / "stale_00012.safetensors").unlink()
    assert "newer" not in said()


@pytest.mark.parametrize("name", ["none", "gone_00001.safetensors", "a/../b_00001.safetensors", "\0_00001.safetensors"])
def test_a_lora_that_is_not_there_has_no_newer_one(comfy: Comfy, name: str) -> None:
    assert comfy.module("host").newer_lora(name) is None
    assert comfy.node("MudiTrainSettings").fingerprint_inputs(start_from=name) == [()]


def test_remarks_on_what_is_wired_behind_a_node_are_those_of_this_run(
    comfy: Comfy, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Init Latent itself is the same in all these graphs; ComfyUI keeps what it gave wherever the remarks stay."""
    server = SimpleNamespace(queue_updated=lambda: None, send_progress_text=lambda *_: None)
    queue = comfy.core("execution").PromptQueue(server)
    server.prompt_queue = queue
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))

    def run(denoise: float, steps: int) -> tuple[list[str], bool]:
        graph = {
            "base": node("MudiMiniCheckpoint"),
            "set": node("MudiLoadSubjectSet", name="stale"),
            "layout": node(
                "MudiLayout", subjects=["set", 0], width=64, height=64, mode="random", seed=1, relative_sizes="",
                overlap=0.2,
            ),
            "start": node("MudiInitLatent", layout=["layout", 0], vae=["base", 2], gamma=2.0, batch_size=1, seed=1),
            "sampler": node("KSampler", model=["base", 0], latent_image=["start", 0], denoise=denoise, steps=steps),
        }  # fmt: skip
        queue.put((0, "run", graph, {}, ["start"]))
        _, number = queue.get()
        ran = comfy.queue(graph, "start")
        queue.task_done(number, {}, None)
        assert ran.status == "success", ran.messages
        said = [] if "start" not in ran.outputs else ran.outputs["start"]["text"][0].split("\n")[1:]
        return said, "start" in ran.cached

    assert run(1.0, 4) == ([], False)
    (told,), cached = run(0.5, 4)
    assert told.startswith("KSampler (node sampler) has a denoise of 0.5") and not cached
    assert run(0.5, 8) == ([told], True)
    assert run(1.0, 8)[0] == []
