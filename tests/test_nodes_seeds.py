"""Seeds: any graph samples once for each, and D&C Score says which was the best."""

from __future__ import annotations

import re

import pytest
import torch
from comfyui import Comfy
from comfyui_server import Graph
from test_nodes_compare import SUBJECTS, eyes, scene
from test_nodes_refusals import node

__all__ = ["eyes"]


def test_a_sampler_of_any_graph_runs_once_for_each_seed(comfy: Comfy, random_mini: None) -> None:
    words = {"clip": ["checkpoint", 1], "text": "a cat"}
    sampled = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    graph: Graph = {
        "checkpoint": node("MudiMiniCheckpoint"),
        "words": node("CLIPTextEncode", **words),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "seeds": node("MudiSeeds", seed=2**64 - 1, count=3),
        "sampler": node(
            "KSampler",
            **{"model": ["checkpoint", 0], "positive": ["words", 0], "negative": ["words", 0], **sampled},
            **{"latent_image": ["empty", 0], "seed": ["seeds", 0]},
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="seeds"),
    }
    run = comfy.queue(graph, "save")
    assert run.status == "success", run.messages
    files = [comfy.base / "output" / shown["filename"] for shown in run.outputs["save"]["images"]]
    assert len({file.read_bytes() for file in files}) == 3
    assert comfy.run("MudiSeeds", seed=2**64 - 1, count=3).result[0] == [2**64 - 1, 0, 1]


def verdict(eyes: Comfy, images: list[torch.Tensor], seeds: list[int]) -> list[str]:
    given = {"detector": "", "embedder": "", "threshold": 0.25, "query": "", "cut_out": True, "download": False}
    values = {name: [value] for name, value in given.items()}
    told = eyes.run("MudiCompare", images=images, subjects=[SUBJECTS], seeds=seeds, **values).result[3]
    return re.findall(r"^(seed [^:]*): ", told, re.MULTILINE)


def test_the_best_seed_comes_first(eyes: Comfy) -> None:
    good, bad = scene("red", "blue"), scene("red")
    assert verdict(eyes, [bad[None], good[None]], [7, 9]) == ["seed 9", "seed 7"]
    assert verdict(eyes, [torch.stack([bad, good])], [7, 9]) == ["seed 9", "seed 7"]
    batches = [torch.stack([bad, bad]), torch.stack([bad, good])]
    assert verdict(eyes, batches, [7, 9])[0] == "seed 9, 2 of its batch"
    assert verdict(eyes, batches, [5])[0] == "seed 5, 4 of its batch"


def test_seeds_of_other_pictures_are_refused(eyes: Comfy) -> None:
    with pytest.raises(eyes.module("seeds").BadSeeds, match="3 seeds for 2 runs with 2 pictures"):
        verdict(eyes, [scene("red")[None]] * 2, [1, 2, 3])
