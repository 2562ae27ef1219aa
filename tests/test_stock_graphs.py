"""ComfyUI's own template graphs of flow models with our nodes swapped in: they open in the real frontend, whole.

`MUDI_TEMPLATES` names a folder of templates (``*.json`` of the package comfyui-workflow-templates, or of
comfyui-workflow-templates-json since ComfyUI 0.4); otherwise those of an installed package are taken.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import page
from comfyui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["page"]

TEMPLATES = ("flux_dev_full_text_to_image", "flux_dev_checkpoint_example", "image_z_image")
PACKAGES = ("comfyui_workflow_templates", "comfyui_workflow_templates_json")
WIRED = """() => {
    const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])]
    return graphs.flatMap((graph, number) => [...graph.links.values()].map(link => {
        const from = graph.getNodeById(link.origin_id), to = graph.getNodeById(link.target_id)
        const out = from?.outputs?.[link.origin_slot], into = to?.inputs?.[link.target_slot]
        return {
            link: `${number}/${link.id}`,
            from: from ? `${from.type}.${out?.name}` : 'edge', to: to ? `${to.type}.${into?.name}` : 'edge',
            lost: Boolean((from && !out?.links?.includes(link.id)) || (to && into?.link !== link.id)),
        }
    }))
}"""
"""Every wire of the open graph, number 0, and its subgraphs; lost: a socket at one of its ends does not know it."""


def template(name: str) -> Path | None:
    """The file of a template."""
    folders = [Path(os.environ["MUDI_TEMPLATES"])] if os.environ.get("MUDI_TEMPLATES") else []
    for package in PACKAGES:
        if found := importlib.util.find_spec(package):
            folders += [Path(place) / "templates" for place in found.submodule_search_locations or []]
    return next((path for folder in folders if (path := folder / f"{name}.json").is_file()), None)


class Sheet:
    """The nodes and links of a graph or a subgraph, whose links are lists and objects."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.graph, self.nodes = graph, {node["id"]: node for node in graph["nodes"]}
        self.objects = any(isinstance(link, dict) for link in graph["links"])
        self.links: dict[int, list[Any]] = {}
        for link in graph["links"]:
            row = [link[part] for part in PARTS] if isinstance(link, dict) else list(link)
            self.links[row[0]] = row

    def only(self, *kinds: str) -> dict[str, Any]:
        (found,) = [node for node in self.nodes.values() if node["type"] in kinds]
        return found

    def giving(self, kind: str) -> tuple[dict[str, Any], int]:
        """The loader that gives this type, and its slot."""
        for node in self.nodes.values():
            for slot, output in enumerate(node.get("outputs", [])):
                if output["type"] == kind and "Loader" in node["type"] and "Lora" not in node["type"]:
                    return node, slot
        raise AssertionError(kind)

    def add(self, kind: str, info: dict[str, Any], pos: tuple[float, float]) -> dict[str, Any]:
        """A node as the frontend makes it, with the default values of its widgets."""
        about, inputs, values = info[kind], [], []
        for name, (type_, *more) in {**about["input"]["required"], **about["input"].get("optional", {})}.items():
            options = more[0] if more else {}
            if isinstance(type_, list) or type_ in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                inputs.append({"name": name, "type": type_, "widget": {"name": name}, "link": None})
                values.append(options.get("default", (options.get("options") or [""])[0]))
                values += ["fixed"] if options.get("control_after_generate") else []
            else:
                inputs.append({"name": name, "type": type_, "link": None})
        outputs = [
            {"name": name, "type": type_, "links": []}
            for name, type_ in zip(about["output_name"], about["output"], strict=True)
        ]
        node = {
            "id": max(self.nodes) + 1000, "type": kind, "pos": list(pos), "size": [330, 300], "flags": {}, "order": 0,
            "mode": 0, "inputs": inputs, "outputs": outputs, "widgets_values": values,
            "properties": {"Node name for S&R": kind},
        }  # fmt: skip
        self.nodes[node["id"]] = node
        self.graph["nodes"].append(node)
        return node

    def wire(self, origin: dict[str, Any], slot: int, target: dict[str, Any], name: str) -> None:
        """Connect an output to an input, in the place of what was connected to it."""
        at = next(number for number, one in enumerate(target["inputs"]) if one["name"] == name)
        self.cut(target["inputs"][at].get("link"))
        number = max(self.links) + 1
        self.links[number] = [number, origin["id"], slot, target["id"], at, origin["outputs"][slot]["type"]]
        target["inputs"][at]["link"] = number
        origin["outputs"][slot]["links"] = [*(origin["outputs"][slot]["links"] or []), number]

    def cut(self, number: int | None) -> None:
        if number in self.links:
            _, origin, slot, target, at, _ = self.links.pop(number)
            if origin in self.nodes:
                self.nodes[origin]["outputs"][slot]["links"].remove(number)
            self.nodes[target]["inputs"][at]["link"] = None

    def take_over(self, old: dict[str, Any], new: dict[str, Any], names: tuple[str, ...]) -> None:
        """Let what goes into an old node's inputs go into those of a new one."""
        for name in names:
            given = next((one for one in old["inputs"] if one["name"] == name), None)
            if given and given.get("link") is not None:
                at = next(number for number, one in enumerate(new["inputs"]) if one["name"] == name)
                self.links[given["link"]][3:5] = [new["id"], at]
                new["inputs"][at]["link"], given["link"] = given["link"], None

    def remove(self, node: dict[str, Any]) -> None:
        for number in [number for number, row in self.links.items() if node["id"] in (row[1], row[3])]:
            self.cut(number)
        self.graph["nodes"].remove(self.nodes.pop(node["id"]))

    def write(self) -> None:
        rows = list(self.links.values())
        self.graph["links"] = [dict(zip(PARTS, row, strict=True)) for row in rows] if self.objects else rows
        # The frontend counts on from here: it wires widgets that a subgraph shows on itself when it opens it.
        if "state" in self.graph:
            self.graph["state"] |= {"lastNodeId": max(self.nodes), "lastLinkId": max(self.links)}
        else:
            self.graph |= {"last_node_id": max(self.nodes), "last_link_id": max(self.links)}


PARTS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def swapped(graph: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Train LoRA behind the loaders, Init Latent for the empty latent and before the sampler's model."""
    graph = copy.deepcopy(graph)
    places = [graph, *graph.get("definitions", {}).get("subgraphs", [])]
    (place,) = [one for one in places if any(node["type"] == "KSampler" for node in one["nodes"])]
    sheet = Sheet(place)
    sampler, empty = sheet.only("KSampler"), sheet.only("EmptySD3LatentImage", "EmptyLatentImage")
    (model, m), (clip, c), (vae, v) = (sheet.giving(kind) for kind in ("MODEL", "CLIP", "VAE"))
    behind = [(sheet.nodes[row[3]], row[4]) for row in sheet.links.values() if row[1] == model["id"] and row[2] == m]
    subjects, dataset, train, layout, start = (
        sheet.add(kind, info, (-1500.0 + 400 * number, 900.0))
        for number, kind in enumerate(
            ("MudiLoadSubjectSet", "MudiSegMixDataset", "MudiTrainLora", "MudiLayout", "MudiInitLatent")
        )
    )
    sheet.wire(subjects, 0, dataset, "subjects")
    sheet.wire(dataset, 0, train, "dataset")
    for (node, slot), name in (((model, m), "model"), ((clip, c), "clip"), ((vae, v), "vae")):
        sheet.wire(node, slot, train, name)
    for node, at in behind:  # what the model went to, such as ModelSamplingAuraFlow
        sheet.wire(train, 0, node, node["inputs"][at]["name"])
    into = next(one for one in sampler["inputs"] if one["name"] == "model")
    before = sheet.links[into["link"]]
    sheet.wire(sheet.nodes[before[1]], before[2], start, "model")
    sheet.wire(start, 1, sampler, "model")
    sheet.wire(subjects, 0, layout, "subjects")
    sheet.wire(layout, 0, start, "layout")
    sheet.wire(vae, v, start, "vae")
    sheet.wire(start, 0, sampler, "latent_image")
    sheet.take_over(empty, layout, ("width", "height"))
    sheet.remove(empty)
    sheet.write()
    return graph


@pytest.fixture(params=TEMPLATES)
def stock(request: pytest.FixtureRequest, comfyui_server: Server) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A template that this ComfyUI knows every node of, and its /object_info."""
    path = template(request.param)
    if path is None:
        pytest.skip(f"no template {request.param}: set MUDI_TEMPLATES to a folder of ComfyUI's templates")
    graph, info = json.loads(path.read_text(encoding="utf-8")), comfyui_server.get("/object_info")
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    used = {node["type"] for one in (graph, *subgraphs) for node in one["nodes"]}
    if unknown := used - set(info) - {one["id"] for one in subgraphs} - {"Note", "MarkdownNote", "Reroute"}:
        pytest.skip(f"this ComfyUI is older than the template {request.param}: it has no {', '.join(sorted(unknown))}")
    yield graph, info


def test_a_stock_graph_with_our_nodes_opens_whole(page: Page, stock: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Every wire ends in two sockets that know it; what the frontend sends has every input that a node requires."""
    graph, info = swapped(*stock), stock[1]
    graphs = (graph, *graph.get("definitions", {}).get("subgraphs", []))
    wires = {f"{number}/{link}" for number, one in enumerate(graphs) for link in Sheet(one).links}
    page.evaluate("graph => app.loadGraphData(graph)", graph)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(graph["nodes"]))
    assert page.get_by_text("Missing Node").count() == 0
    opened = page.evaluate(WIRED)
    assert wires <= {wire["link"] for wire in opened} and not [wire for wire in opened if wire["lost"]]
    ends = {(wire["from"], wire["to"]) for wire in opened}
    assert {
        ("MudiTrainLora.model", "MudiInitLatent.model"), ("MudiTrainLora.model", "ModelSamplingAuraFlow.model")
    } & ends  # fmt: skip
    assert {
        ("MudiInitLatent.model", "KSampler.model"), ("MudiInitLatent.latent", "KSampler.latent_image"),
        ("MudiLayout.layout", "MudiInitLatent.layout"), ("MudiSegMixDataset.dataset", "MudiTrainLora.dataset"),
    } <= ends  # fmt: skip
    sent: dict[str, Any] = page.evaluate("() => app.graphToPrompt().then(found => found.output)")
    kinds = [node["class_type"] for node in sent.values()]
    assert kinds.count("MudiTrainLora") == kinds.count("MudiInitLatent") == kinds.count("KSampler") == 1
    for node in sent.values():
        about = info[node["class_type"]]
        assert set(about["input"]["required"]) <= set(node["inputs"]), node["class_type"]
        every = {**about["input"]["required"], **about["input"].get("optional", {})}
        for name, value in node["inputs"].items():
            if isinstance(value, list) and len(value) == 2 and value[0] in sent:
                given = info[sent[value[0]]["class_type"]]["output"][value[1]]
                wanted = every[name][0]
                assert given == wanted or wanted == "*" or given in str(wanted), (node["class_type"], name)


def test_swapping_leaves_no_wire_in_the_air() -> None:
    """Of the swap itself, without a browser: each link's ends name each other."""
    small = {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "inputs": [], "outputs": [
                {"name": kind, "type": kind, "links": links}
                for kind, links in (("MODEL", [1]), ("CLIP", []), ("VAE", []))
            ]},
            {"id": 2, "type": "EmptyLatentImage", "inputs": [], "outputs": [
                {"name": "LATENT", "type": "LATENT", "links": [2]}
            ]},
            {"id": 3, "type": "KSampler", "outputs": [], "inputs": [
                {"name": "model", "type": "MODEL", "link": 1}, {"name": "latent_image", "type": "LATENT", "link": 2}
            ]},
        ],
        "links": [[1, 1, 0, 3, 0, "MODEL"], [2, 2, 0, 3, 1, "LATENT"]],
    }  # fmt: skip
    inputs = {
        "MudiLoadSubjectSet": {}, "MudiSegMixDataset": {"subjects": ["S"]},
        "MudiTrainLora": {"model": ["MODEL"], "clip": ["CLIP"], "vae": ["VAE"], "dataset": ["D"]},
        "MudiLayout": {"subjects": ["S"]}, "MudiInitLatent": {"layout": ["L"], "vae": ["VAE"], "model": ["MODEL"]},
    }  # fmt: skip
    outputs = {
        "MudiLoadSubjectSet": ["S"], "MudiSegMixDataset": ["D"], "MudiTrainLora": ["MODEL"], "MudiLayout": ["L"],
        "MudiInitLatent": ["LATENT", "MODEL"],
    }  # fmt: skip
    info = {
        kind: {"input": {"required": given}, "output": outputs[kind], "output_name": outputs[kind]}
        for kind, given in inputs.items()
    }
    graph = swapped(small, info)
    by_id = {node["id"]: node for node in graph["nodes"]}
    assert 2 not in by_id and len(graph["links"]) == 11
    for number, origin, slot, target, at, kind in graph["links"]:
        assert number in by_id[origin]["outputs"][slot]["links"] and by_id[target]["inputs"][at]["link"] == number
        assert by_id[target]["inputs"][at]["type"] == kind
