"""The workflow files as ComfyUI's frontend would send them."""

from __future__ import annotations

import copy
import json
from typing import Any

from comfyui_server import ROOT, Graph

FOLDER = ROOT / "workflows"
NAMES = (
    "0_quickstart",
    "1_prepare",
    "2_train",
    "3_generate",
    "4_compare",
    "5_best_seed",
    "6_flow_model",
    "7_anime_tags",
    "8_two_loras",
    "9_score_any_picture",
    "10_methods",
    "11_into_my_photo",
    "12_fuse_and_decouple",
    "13_masks",
    "14_detail",
    "15_controlnet",
)
NEWER = {"SAM3_Detect"}
"""Core's nodes that 0.3.64 does not have."""
NOTES = ("Note", "MarkdownNote")
MINI = "embedded (drawn toys only)"
LOADERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "DualCLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
"""Stock loaders and the folder of their models."""

Info = dict[str, Any]
"""ComfyUI's /object_info: what it knows of each node."""


def workflow(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def working(name: str) -> list[dict[str, Any]]:
    """The nodes of a workflow that are more than notes."""
    return [node for node in workflow(name)["nodes"] if node["type"] not in NOTES]


def widgets(node: dict[str, Any], info: Info) -> dict[str, Any]:
    """A node's widgets by name, with the slots that only the frontend knows left out."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    values, found = iter(node["widgets_values"]), {}
    for name, (kind, *more) in inputs.items():
        options = more[0] if more else {}
        is_widget = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
        if is_widget and not options.get("forceInput"):
            found[name] = next(values)
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "randomize", "increment", "decrement"), (node["id"], name)
            if options.get("image_upload"):
                assert next(values) == "image"
    assert list(values) == [], f"node {node['id']}, {node['type']}, has too many values"
    return found


MUTED = 2
"""The mode of a node that the frontend leaves out of the prompt."""


def api_graph(name: str, info: Info, *, awake: bool = False) -> Graph:
    """A workflow as POST /prompt takes it; ``awake``: with its muted nodes, too."""
    at_work = [node for node in working(name) if awake or node["mode"] != MUTED]
    at_work = [node for node in at_work if node["type"] in info or node["type"] not in NEWER]
    known = {node["id"] for node in at_work}
    links = {link[0]: link for link in workflow(name)["links"] if link[1] in known}
    graph = {}
    for node in at_work:
        inputs = widgets(node, info[node["type"]])
        for socket in node["inputs"]:
            if socket["link"] in links:
                _, origin, slot, *_ = links[socket["link"]]
                inputs[socket["name"]] = [str(origin), slot]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def with_settings(graph: Graph, settings: dict[str, dict[str, Any]]) -> Graph:
    """A copy in which all nodes of a type have other inputs."""
    graph = copy.deepcopy(graph)
    for node in graph.values():
        node["inputs"].update(settings.get(node["class_type"], {}))
    return graph


def nodes(graph: Graph, kind: str) -> list[str]:
    return [name for name, node in graph.items() if node["class_type"] == kind]


IN_SMALL: dict[str, dict[str, Any]] = {
    "MudiDetectSubjects": {"detector": MINI, "threshold": 0.03, "which": "best"},
    "MudiSamMask": {"segmenter": MINI},
    "MudiSegMixDataset": {"overlap": 0.2},
    "MudiTrainLora": {"preset": "mini, 192 px", "steps": 2, "rank": 4, "batch_size": 1},
    "MudiLayout": {"width": 192, "height": 192},
    "MudiInitLatent": {"batch_size": 2},
    "KSampler": {"steps": 2},
    "MudiCompare": {"detector": MINI, "embedder": MINI},
    "MudiFindSeed": {"detector": MINI, "embedder": MINI, "count": 3, "keep": 2, "steps": 2},
    "MudiDetail": {"detector": MINI, "segmenter": MINI, "embedder": MINI, "threshold": 0.05, "steps": 3, "side": 96},
}


def in_small(name: str, info: Info) -> Graph:
    """A workflow with the embedded family in the place of the models that it loads."""
    graph = with_settings(api_graph(name, info), IN_SMALL)
    for slot, kind in enumerate(("UNETLoader", "DualCLIPLoader", "VAELoader")):  # of MODEL, CLIP and VAE
        for loader in nodes(graph, kind):
            for node in graph.values():
                moved = {name: [loader, slot] for name, value in node["inputs"].items() if value == [loader, 0]}
                node["inputs"].update(moved)
    for kind in LOADERS:
        for loader in nodes(graph, kind):
            graph[loader] = {"class_type": "MudiMiniCheckpoint", "inputs": {}}
    return graph
