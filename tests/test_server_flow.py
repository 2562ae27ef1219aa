"""A tiny random FLUX in the real server: trained, started by Init Latent's model, drawn by the plain KSampler."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_server import CHECKOUT, ROOT, Graph, Server, serve
from PIL import Image

from mudi_core.lora.file import load_lora

SIDE = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (CHECKOUT / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    base = tmp_path_factory.mktemp("flow")
    (base / "custom_nodes").mkdir()
    shutil.copy(ROOT / "tests" / "tiny_flux_node.py", base / "custom_nodes")
    yield from serve(base)


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def drawn(name: str, model: str, slot: int) -> Graph:
    """The plain KSampler at denoise 1, from Init Latent's latent."""
    return {
        name: node(
            "KSampler", model=[model, slot], positive=["guided", 0], negative=["words", 0], latent_image=["start", 0],
            seed=5, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        f"decode_{name}": node("VAEDecode", samples=[name, 0], vae=["checkpoint", 2]),
        f"save_{name}": node("SaveImage", images=[f"decode_{name}", 0], filename_prefix=name),
    }  # fmt: skip


def started(model: str) -> Graph:
    """Init Latent with the MODEL of a node, and pictures by the MODEL that it gives and by the one that it gets."""
    return {
        "flux": node("TinyFlux"),
        "checkpoint": node("MudiMiniCheckpoint"),
        "subjects": node("MudiLoadSubjectSet", name="to_learn"),
        "layout": node(
            "MudiLayout", subjects=["subjects", 0], width=SIDE, height=SIDE, mode="random", seed=3, relative_sizes="",
            overlap=0.2,
        ),
        "start": node(
            "MudiInitLatent", layout=["layout", 0], vae=["checkpoint", 2], gamma=2.0, batch_size=1, seed=3,
            model=[model, 0],
        ),
        "words": node("CLIPTextEncode", clip=["checkpoint", 1], text="a photo of olis cat and hta cat"),
        "guided": node("FluxGuidance", conditioning=["words", 0], guidance=3.5),
        **drawn("with_start", "start", 1),
    }  # fmt: skip


TRAINED: Graph = {
    **started("train"),
    **drawn("without", "train", 0),
    "dataset": node(
        "MudiSegMixDataset", subjects=["subjects", 0], probability=0.5, relative_sizes="", overlap=0.2,
        background_weight=1.0, model=["flux", 0],
    ),
    "settings": node(
        "MudiTrainSettings", learning="as in Train LoRA", memory="as in Train LoRA", optimizer="adamw",
        schedule="constant", warm_up=0, accumulation=1, alpha=0.0, min_snr_gamma=0.0, noise_offset=0.0, kl_weight=0.0,
        buckets=False, save_every=0, resolution=SIDE, start_from="none",
    ),
    "train": node(
        "MudiTrainLora", model=["flux", 0], clip=["checkpoint", 1], vae=["checkpoint", 2], dataset=["dataset", 0],
        name="flow", method="segmix", preset="auto", steps=3, rank=4, learning_rate=0.05, batch_size=1, seed=0,
        settings=["settings", 0],
    ),
}  # fmt: skip


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def test_a_flux_is_trained_started_and_drawn_and_its_file_loads(
    server: Server, drawn_dataset: Path, mini_weights: None
) -> None:
    """The stock LoraLoader draws with the file what Train LoRA's model drew, and without the start something else."""
    shutil.copytree(drawn_dataset, server.base / "input" / "to_learn")
    run = server.run(TRAINED)
    (told,) = run.outputs["train"]["text"]
    assert "flow_00001.safetensors: 3 steps of segmix" in told
    (remark,) = run.outputs["start"]["text"][0].split("\n")[1:]
    assert remark.startswith("KSampler (node without) begins in noise alone")
    assert run.outputs["dataset"]["text"][0].count("white simple background, pasted") == 1
    about = load_lora(server.base / "models" / "loras" / "flow_00001.safetensors")[1]
    assert about["ss_base_model_version"] == "flux1" and about["mudi_captions"] == "FLUX (official)"
    by_start, plain = (picture(server.files(run, f"save_{name}")[0]) for name in ("with_start", "without"))
    assert np.abs(by_start - plain).max() > 3  # of 255; a latent that counts nothing changes none

    loaded = node(
        "LoraLoader", model=["flux", 0], clip=["checkpoint", 1], lora_name="flow_00001.safetensors",
        strength_model=1.0, strength_clip=0.0,
    )  # fmt: skip
    again = server.run({**started("lora"), "lora": loaded})
    assert again.outputs["start"]["text"] == ["gamma 2"]
    assert np.abs(picture(server.files(again, "save_with_start")[0]) - by_start).max() <= 1
    bare = server.run(started("flux"))
    assert np.abs(picture(server.files(bare, "save_with_start")[0]) - by_start).max() > 2
    assert "lora key not loaded" not in server.log()


def test_a_start_that_nobody_samples_with_is_told_on_the_node(server: Server, drawn_dataset: Path) -> None:
    """Init Latent's model is not wired to the sampler that gets the latent: told though the node itself is the same,
    and no longer once it is wired."""
    shutil.copytree(drawn_dataset, server.base / "input" / "to_learn", dirs_exist_ok=True)
    right, wrong = started("flux"), started("flux")
    wrong["with_start"]["inputs"]["model"] = ["flux", 0]
    for _ in range(2):
        assert server.run(copy.deepcopy(right)).outputs["start"]["text"] == ["gamma 2"]
        (told,) = server.run(copy.deepcopy(wrong)).outputs["start"]["text"]
        assert "begins in noise alone" in told and "so the start is lost" in told
    assert "start" in server.run(copy.deepcopy(wrong)).cached
