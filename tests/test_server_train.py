"""Training in the real server: a picture, a LoRA and the picture again in one graph; Cancel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import Graph, Server, changed
from PIL import Image


def sampler(model: str) -> dict[str, Any]:
    return {
        "class_type": "KSampler",
        "inputs": {
            "model": [model, 0],
            "positive": ["words", 0],
            "negative": ["words", 0],
            "latent_image": ["empty", 0],
            "seed": 5,
            "steps": 2,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    }


def shown(name: str) -> Graph:
    return {
        f"decode_{name}": {"class_type": "VAEDecode", "inputs": {"samples": [name, 0], "vae": ["checkpoint", 2]}},
        f"save_{name}": {
            "class_type": "SaveImage",
            "inputs": {"images": [f"decode_{name}", 0], "filename_prefix": name},
        },
    }


TRAIN: Graph = {
    "checkpoint": {"class_type": "MudiMiniCheckpoint", "inputs": {}},
    "subjects": {"class_type": "MudiLoadSubjectSet", "inputs": {"name": "to_learn"}},
    "dataset": {
        "class_type": "MudiSegMixDataset",
        "inputs": {
            "subjects": ["subjects", 0],
            "probability": 0.3,
            "relative_sizes": "",
            "overlap": 0.2,
            "background_weight": 1.0,
        },
    },
    "train": {
        "class_type": "MudiTrainLora",
        "inputs": {
            "model": ["checkpoint", 0],
            "clip": ["checkpoint", 1],
            "vae": ["checkpoint", 2],
            "dataset": ["dataset", 0],
            "name": "toys",
            "method": "segmix",
            "preset": "mini, 192 px",
            "steps": 3,
            "rank": 4,
            "learning_rate": 0.01,
            "batch_size": 1,
            "seed": 0,
        },
    },
}
WHOLE: Graph = {
    **TRAIN,
    "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["checkpoint", 1], "text": "a photo of olis cat"}},
    "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "before": sampler("checkpoint"),
    "wearing": sampler("train"),
    **shown("before"),
    **shown("wearing"),
}


@pytest.fixture(scope="module")
def server(comfyui_server: Server, drawn_dataset: Path, mini_weights: None) -> Server:
    shutil.copytree(drawn_dataset, comfyui_server.base / "input" / "to_learn", dirs_exist_ok=True)
    return comfyui_server


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_the_model_is_the_same_after_training(server: Server) -> None:
    run = server.run(WHOLE)
    assert "toys_00001.safetensors: 3 steps of segmix" in run.outputs["train"]["text"][0]
    assert (server.base / "models" / "loras" / "toys_00001.safetensors").is_file()
    again = server.run(changed(WHOLE, before={"steps": 3}))
    assert "train" in again.cached
    once_more = server.run(changed(WHOLE, before={"steps": 2}, save_before={"filename_prefix": "again"}))
    before, after, wearing = (
        pixels(server.files(*one)[0])
        for one in ((run, "save_before"), (once_more, "save_before"), (run, "save_wearing"))
    )
    assert before == after != wearing
    loaded = changed(WHOLE, wearing={"model": ["loader", 0]}, save_wearing={"filename_prefix": "loaded"})
    loaded["loader"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["checkpoint", 0], "lora_name": "toys_00001.safetensors", "strength_model": 1.0},
    }
    assert pixels(server.files(server.run(loaded), "save_wearing")[0]) == wearing


def test_cancel_stops_training_within_a_step(server: Server) -> None:
    long = changed(TRAIN, dataset={"probability": 0.0}, train={"steps": 5000, "name": "long"})
    run = server.cancel(long, "train", total=5000, seconds=10)
    assert run.messages["execution_interrupted"]["node_id"] == "train"
    assert not list((server.base / "models" / "loras").glob("long*"))
    stopped = server.base / "output" / "mudi" / "long"
    (kept,) = stopped.iterdir()
    assert kept.name.startswith("stopped_")
    other = server.run(changed(TRAIN, train={"steps": 1, "name": "long"}))
    assert "It was begun anew" in other.outputs["train"]["text"][0]
    assert list(stopped.iterdir()) == [kept]  # another training of the name leaves it alone


def test_a_name_with_a_path_is_refused(server: Server) -> None:
    assert "cannot be the name of a LoRA" in server.refusal(changed(TRAIN, train={"name": "../../evil"}))
