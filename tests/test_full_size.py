"""Models of their true size with random weights, from the file on disk to the LoRA that a loader puts on.

Gigabytes of memory and of disk, minutes of a CPU: run with ``-m full_size``.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from sd_file import full_size_sd15
from sdxl_file import full_size_sdxl

from benchmarks.train_memory import reckon
from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.lora.file import load_lora
from mudi_core.train.config import TrainConfig
from mudi_core.train.loop import train
from mudi_core.train.memory import MARGIN, memory_settings
from mudi_core.train.plan import make_plan
from mudi_core.types import Photo, Subject, SubjectSet

pytestmark = pytest.mark.full_size

SIDE = 64
"""Pixels of training images: the models are whole, the pictures small, since many CPUs are slow in bfloat16."""
MEMORY_LIMIT = 20 * 2**30
"""Bytes, of the whole process and of what it has mapped from disk."""
SDXL, SD = 560, 128
"""Attention projections: 70 and 16 transformer blocks, each with two attentions of four."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Checkpoints by kind, each written when it is first asked for; gone when the tests are done."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(kind: str) -> Path:
        path = folder / f"{kind}.safetensors"
        if not path.exists():
            full_size_sdxl(path) if kind == "sdxl" else full_size_sd15(path)
        return path

    yield write
    for path in folder.glob("*.safetensors"):
        path.unlink()


def two_subjects() -> SubjectSet:
    subjects = []
    for number, token in enumerate(("olis", "hta")):
        image = torch.rand(256, 256, 3, generator=torch.Generator().manual_seed(number))
        mask = torch.zeros(256, 256)
        mask[40:220, 60:200] = 1
        subjects.append(Subject(token, "dog", (Photo(f"{token}.png", image),), (mask,)))
    return SubjectSet(tuple(subjects))


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def settings(comfy: Comfy) -> Any:
    """Small pictures and bfloat16; all else as Train Settings has it."""
    inputs = comfy.node("MudiTrainSettings").GET_SCHEMA().inputs
    defaults = {one.id: one.options[0] if hasattr(one, "options") else one.default for one in inputs}
    told = {"memory": "16 GB", "resolution": SIDE}
    return comfy.run("MudiTrainSettings", **{**defaults, **told}).result[0]


def through_comfyui(comfy: Comfy, path: Path, preset: str, layers: int) -> dict[str, str]:
    """CheckpointLoaderSimple, Train LoRA, LoraLoader; gives what the LoRA's file says of itself."""
    comfy.core("folder_paths").add_model_folder_path("checkpoints", str(path.parent))
    model, clip, vae = comfy.run_stock("CheckpointLoaderSimple", ckpt_name=path.name)
    assert model.model.diffusion_model.dtype == torch.bfloat16
    dataset, _ = comfy.run(
        "MudiSegMixDataset", subjects=two_subjects(), probability=0.5, relative_sizes="", overlap=0.2,
        background_weight=1.0,
    ).result  # fmt: skip
    trained, name, _ = comfy.run(
        "MudiTrainLora", model=model, clip=clip, vae=vae, dataset=dataset, name=path.stem, method="segmix",
        preset=preset, steps=2, rank=32, learning_rate=1e-4, batch_size=1, seed=1, settings=settings(comfy),
    ).result  # fmt: skip
    comfy.core("folder_paths").filename_list_cache.clear()
    loaded, _ = comfy.run_stock(
        "LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=1.0
    )
    assert len(loaded.patches) == len(trained.patches) == layers and not model.patches
    state, about = load_lora(comfy.base / "models" / "loras" / name)
    assert sum(key.endswith(".alpha") for key in state) == layers
    assert all(value.abs().max() > 0 for key, value in state.items() if "lora_up" in key)
    return about


@pytest.fixture
def in_bfloat16(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI loads a U-Net on a card of these years, or with --bf16-unet anywhere."""
    monkeypatch.setattr(comfy.core("comfy.cli_args").args, "bf16_unet", True)


def test_sdxl_goes_through_comfyui(comfy: Comfy, written: Callable[[str], Path], in_bfloat16: None) -> None:
    about = through_comfyui(comfy, written("sdxl"), "SDXL, 1024 px", SDXL)
    assert about["ss_base_model_version"] == "sdxl_base_v1-0" and about["ss_resolution"] == f"({SIDE}, {SIDE})"
    assert peak() < MEMORY_LIMIT


def test_sd_15_goes_through_comfyui(comfy: Comfy, written: Callable[[str], Path], in_bfloat16: None) -> None:
    about = through_comfyui(comfy, written("sd15"), "SD 1.5 and 2, 512 px", SD)
    assert about["ss_base_model_version"] == "sd_v1"
    assert peak() < MEMORY_LIMIT


@pytest.mark.parametrize(
    ("kind", "side", "layers", "numbers"), [("sdxl", 1024, SDXL, 46_448_640), ("sd15", 512, SD, 6_377_472)]
)
def test_the_library_trains_a_step_of_the_same_file(
    written: Callable[[str], Path], kind: str, side: int, layers: int, numbers: int
) -> None:
    checkpoint = open_checkpoint(written(kind), dtype=torch.bfloat16)
    assert checkpoint.side == side
    config = TrainConfig.of(steps=1, batch_size=1, resolution=SIDE, precision="bf16", dco_beta=0, rank=32)
    plan = make_plan(two_subjects(), config.samples, checkpoint.encode_image, checkpoint.condition)
    checkpoint.release_encoders()
    state = train(checkpoint.denoiser(), plan, config).state
    assert len(state) == 3 * layers
    assert sum(value.numel() for key, value in state.items() if not key.endswith(".alpha")) == numbers
    assert peak() < MEMORY_LIMIT


def test_a_step_at_1024_px_fits_into_a_card_of_12_gb() -> None:
    """Reckoned with tensors that have no numbers; one gigabyte is left to CUDA itself, to workspaces and to holes."""
    settings = memory_settings(12) | {"accumulation": 1}
    found = reckon(TrainConfig.of(**settings, steps=2, resolution=1024))
    assert 5 * 2**30 < found["peak"] < 11 * 2**30
    assert found["expected"] == pytest.approx(found["peak"], rel=MARGIN)
