"""The workflow with a ControlNet in the real server, with a tiny one of random weights in the place of the file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from comfyui_server import CHECKOUT, ROOT, Server, changed, serve
from models import random_lora
from PIL import Image
from workflow_files import in_small, nodes

from mudi_core.subjects.storage import write_subjects
from mudi_core.types import SubjectSet

NAME = "15_controlnet"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, drawn_subjects: SubjectSet, mini_weights: None
) -> Iterator[Server]:
    if not (CHECKOUT / "main.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    base = tmp_path_factory.mktemp("control")
    (base / "custom_nodes").mkdir()
    shutil.copy(ROOT / "tests" / "tiny_control_node.py", base / "custom_nodes")
    write_subjects(drawn_subjects, base / "input" / "my_subjects")
    random_lora(base / "models" / "loras" / "my_subjects_00001.safetensors")
    yield from serve(base)


def pictures(server: Server, strength: float, regions: float, gamma: float) -> list[np.ndarray]:
    graph = in_small(NAME, server.get("/object_info"))
    parts = {kind: nodes(graph, kind) for kind in {node["class_type"] for node in graph.values()}}
    (loader,), (apply,), (layout,) = (
        parts[kind] for kind in ("ControlNetLoader", "ControlNetApplyAdvanced", "MudiLayout")
    )
    graph[loader] = {"class_type": "TinyControl", "inputs": {}}
    where, start = parts["MudiRegionalPrompts"][0], parts["MudiInitLatent"][0]
    (sampler,) = parts["KSampler"]
    graph = changed(
        graph,
        **{
            apply: {"strength": strength, "end_percent": 1.0},
            layout: {"width": 128, "height": 96, "mode": "row"},
            where: {"strength": regions},
            start: {"gamma": gamma, "batch_size": 2},
            sampler: {"steps": 2, "seed": 1},
            **{prompt: {"text": "a photo of a cat and a cat"} for prompt in parts["CLIPTextEncode"][:1]},
        },
    )
    run = server.run(graph)
    assert graph[where]["inputs"]["layout"] == graph[start]["inputs"]["layout"] == [layout, 0]
    found = [np.asarray(Image.open(file), dtype=int) for file in server.files(run, parts["SaveImage"][0])]
    assert [one.shape for one in found] == [(96, 128, 3)] * 2
    return found


def test_one_layout_feeds_control_regions_and_the_start(server: Server) -> None:
    whole = pictures(server, 1.0, 1.0, 1.0)
    assert np.abs(whole[0] - whole[1]).max() > 10
    for without in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        assert np.abs(pictures(server, *without)[0] - whole[0]).max() > 3, without
