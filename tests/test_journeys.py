"""What a new user does in the real frontend, counted in clicks and seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from browser import command, is_newer
from comfyui_server import Server
from hand import Hand
from test_server import STOCK

if TYPE_CHECKING:
    from playwright.sync_api import Page

FIRST = {
    "multi subject": "Train LoRA",
    "character": "Subject",
    "consistent character": "Subject from Photos",
    "two characters": "Train LoRA",
    "dreambooth": "Train LoRA",
    "identity": "D&C Score",
    "regional": "Regional Prompts",
    "owlv2": "Detect Subjects",
    "sam": "SAM Mask",
    "dinov2": "D&C Score",
}
"""What people type into the search -> the first of our nodes below it."""
BY_NAME = ("regional", "sam")
"""Words that stand in a node's name: older frontends search nothing else."""
OTHERS_NAMES = ("sam", "character")
"""Words that begin the names of core's nodes: those come before anybody's."""


def test_what_people_type_into_the_search_shows_the_right_node_first(page: Page, comfyui_server: Server) -> None:
    page.evaluate("() => app.graph.clear()")
    for word in FIRST if is_newer(comfyui_server) else BY_NAME:
        command(page, "Workspace.SearchBox.Toggle")
        page.locator("input:focus").fill(word)
        found = page.get_by_role("option").filter(has_text=re.compile("MuDI" if word in OTHERS_NAMES else r"\w"))
        found.first.filter(has_text=f"{FIRST[word]} (MuDI)").wait_for()
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)


FIT = """() => {
    app.canvas.ds.scale = 0.7
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 200
    app.canvas.setDirty(true, true)
}"""
WIRED = """async () => {
    const nodes = (await app.graphToPrompt()).output
    const wires = Object.values(nodes).flatMap(node => Object.entries(node.inputs)
        .filter(([, value]) => Array.isArray(value))
        .map(([name, [origin, slot]]) => `${nodes[origin].class_type} ${slot} -> ${node.class_type}.${name}`))
    return [Object.keys(nodes).length, wires]
}"""
"""How many nodes a run has, and the wires between them."""
NAMED = """() => app.graph.nodes.flatMap(target => target.inputs
    .filter(input => input.link !== null)
    .map(input => {
        const link = app.graph.getLink ? app.graph.getLink(input.link) : app.graph.links.get(input.link)
        const origin = app.graph.getNodeById(link.origin_id)
        return `${origin.type}.${origin.outputs[link.origin_slot].name} -> ${target.type}.${input.name}`
    }))"""
"""The wires of a graph, by the names of their sockets."""


@pytest.fixture
def hand(either_page: Page) -> Hand:
    """A user's hand in an empty graph."""
    either_page.evaluate("() => app.graph.clear()")
    either_page.evaluate(FIT)
    return Hand(either_page)


def test_a_stock_graph_gets_our_start_in_eight_actions(hand: Hand) -> None:
    hand.page.evaluate("graph => app.loadApiJson(graph, 'stock')", STOCK)
    hand.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(STOCK))
    hand.page.evaluate(FIT)
    hand.add("MudiLoadSubjectSet", "Load Subject Set (MuDI)", 1900, 300)
    hand.add("MudiLayout", "Layout (MuDI)", 2300, 300)
    hand.add("MudiInitLatent", "Init Latent (MuDI)", 2800, 300)
    hand.wire("MudiLoadSubjectSet", "subjects", "MudiLayout", "subjects")
    hand.wire("MudiLayout", "layout", "MudiInitLatent", "layout")
    hand.wire("MudiMiniCheckpoint", "vae", "MudiInitLatent", "vae")
    hand.wire("MudiInitLatent", "latent", "KSampler", "latent_image")
    assert hand.actions + len(("which set",)) <= 8
    _, wires = hand.page.evaluate(WIRED)
    assert "MudiInitLatent 0 -> KSampler.latent_image" in wires and "MudiLayout 0 -> MudiInitLatent.layout" in wires
    assert "MudiLoadSubjectSet 0 -> MudiLayout.subjects" in wires and "MudiMiniCheckpoint 2 -> VAEDecode.vae" in wires


def test_two_subjects_go_from_photos_to_training_with_six_nodes(hand: Hand) -> None:
    first, second = "MudiSubjectFromPhotos", "MudiSubjectFromPhotos"
    hand.add(first, "Subject from Photos (MuDI)", 0, 0)
    hand.add(second, "Subject from Photos (MuDI)", 400, 0)
    hand.add("MudiSegMixDataset", "Seg-Mix Dataset (MuDI)", 800, 0)
    hand.add("CheckpointLoaderSimple", "Load Checkpoint", 800, 700)
    hand.add("MudiTrainLora", "Train LoRA (MuDI)", 1300, 0)
    hand.wire(f"{first} 1", "subjects", f"{second} 2", "subjects")
    hand.wire(second, "subjects", "MudiSegMixDataset", "subjects")
    hand.wire("MudiSegMixDataset", "dataset", "MudiTrainLora", "dataset")
    for out in ("MODEL", "CLIP", "VAE"):
        hand.wire("CheckpointLoaderSimple", out, "MudiTrainLora", out.lower())
    nodes, wires = hand.page.evaluate(WIRED)
    assert nodes <= 6 and len(wires) == 6
    assert "MudiSubjectFromPhotos 0 -> MudiSubjectFromPhotos.subjects" in wires
    assert {wire.partition(" -> ")[2] for wire in wires} == {
        *("MudiSubjectFromPhotos.subjects", "MudiSegMixDataset.subjects", "MudiTrainLora.dataset"),
        *("MudiTrainLora.model", "MudiTrainLora.clip", "MudiTrainLora.vae"),
    }


@dataclass(frozen=True)
class Journey:
    """What is added to an empty graph, or to the stock one, and how it is wired."""

    nodes: tuple[tuple[str, str], ...]
    """Types and titles, from left to right."""
    wires: tuple[tuple[str, str, str, str], ...]
    """Node and output -> node and input."""
    stock: bool = False
    newer: bool = False
    """It has nodes of core that 0.3.64 does not have."""


SET = ("MudiLoadSubjectSet", "Load Subject Set (MuDI)")
LAYOUT = ("MudiLayout", "Layout (MuDI)")
PHOTO = ("LoadImage", "Load Image")
JOURNEYS = {
    "a subject by masks from anywhere": Journey(
        (PHOTO, ("MudiSubject", "Subject (MuDI)"), ("MudiSegMixDataset", "Seg-Mix Dataset (MuDI)")),
        (
            ("LoadImage", "IMAGE", "MudiSubject", "photos"),
            ("LoadImage", "MASK", "MudiSubject", "masks"),
            ("MudiSubject", "subjects", "MudiSegMixDataset", "subjects"),
        ),
    ),
    "a layout's masks and canvas for other nodes": Journey(
        (
            *(SET, LAYOUT, ("MudiLayoutParts", "Layout Parts (MuDI)")),
            *(("PreviewImage", "Preview Image"), ("SetLatentNoiseMask", "Set Latent Noise Mask")),
        ),
        (
            ("MudiLoadSubjectSet", "subjects", "MudiLayout", "subjects"),
            ("MudiLayout", "layout", "MudiLayoutParts", "layout"),
            ("MudiLayoutParts", "canvas", "PreviewImage", "images"),
            ("MudiLayoutParts", "masks", "SetLatentNoiseMask", "mask"),
        ),
    ),
    "a detail pass behind a stock graph": Journey(
        (SET, ("MudiDetail", "Detail Subjects (MuDI)")),
        (
            ("MudiLoadSubjectSet", "subjects", "MudiDetail", "subjects"),
            ("VAEDecode", "IMAGE", "MudiDetail", "images"),
            *(("MudiMiniCheckpoint", name, "MudiDetail", name) for name in ("model", "clip", "vae")),
            ("MudiDetail", "images", "SaveImage", "images"),
        ),
        stock=True,
    ),
    "into my photo": Journey(
        (PHOTO, SET, LAYOUT, ("MudiInitLatent", "Init Latent (MuDI)")),
        (
            ("LoadImage", "IMAGE", "MudiLayout", "scene"),
            ("MudiLoadSubjectSet", "subjects", "MudiLayout", "subjects"),
            ("MudiLayout", "layout", "MudiInitLatent", "layout"),
            ("MudiMiniCheckpoint", "vae", "MudiInitLatent", "vae"),
            ("MudiMiniCheckpoint", "model", "MudiInitLatent", "model"),
            ("MudiInitLatent", "model", "KSampler", "model"),
            ("MudiInitLatent", "latent", "KSampler", "latent_image"),
        ),
        stock=True,
    ),
    "one layout for a ControlNet, words and the start": Journey(
        (
            *(SET, LAYOUT, ("MudiLayoutParts", "Layout Parts (MuDI)"), ("ControlNetApplyAdvanced", "Apply ControlNet")),
            *(("MudiRegionalPrompts", "Regional Prompts (MuDI)"), ("MudiInitLatent", "Init Latent (MuDI)")),
        ),
        (
            ("MudiLoadSubjectSet", "subjects", "MudiLayout", "subjects"),
            *(
                ("MudiLayout", "layout", f"Mudi{one}", "layout")
                for one in ("LayoutParts", "RegionalPrompts", "InitLatent")
            ),
            ("MudiLayoutParts", "canvas", "ControlNetApplyAdvanced", "image"),
        ),
    ),
    "core's SAM3 gives masks and boxes": Journey(
        (
            *(PHOTO, SET, ("SAM3_Detect", "SAM3 Detect"), ("MudiSubject", "Subject (MuDI)")),
            *(("MudiSamMask", "SAM Mask (MuDI)"), ("MudiCompare", "D&C Score (MuDI)")),
        ),
        (
            ("LoadImage", "IMAGE", "SAM3_Detect", "image"),
            ("SAM3_Detect", "masks", "MudiSubject", "masks"),
            *(("SAM3_Detect", "bboxes", node, "boxes") for node in ("MudiSamMask", "MudiCompare")),
        ),
        newer=True,
    ),
    "the best seed of a stock graph": Journey(
        (SET, ("MudiSeeds", "Seeds (MuDI)"), ("MudiCompare", "D&C Score (MuDI)")),
        (
            ("MudiSeeds", "seeds", "KSampler", "seed"),
            ("MudiSeeds", "seeds", "MudiCompare", "seeds"),
            ("VAEDecode", "IMAGE", "MudiCompare", "images"),
            ("MudiLoadSubjectSet", "subjects", "MudiCompare", "subjects"),
            ("MudiCompare", "ranked", "SaveImage", "images"),
        ),
        stock=True,
    ),
    "a score for a folder of pictures": Journey(
        (("MudiLoadPhotos", "Load Photos (MuDI)"), SET, ("MudiCompare", "D&C Score (MuDI)")),
        (
            ("MudiLoadPhotos", "photos", "MudiCompare", "images"),
            ("MudiLoadSubjectSet", "subjects", "MudiCompare", "subjects"),
        ),
    ),
    "a score for any picture": Journey(
        (PHOTO, SET, ("MudiCompare", "D&C Score (MuDI)")),
        (
            ("LoadImage", "IMAGE", "MudiCompare", "images"),
            ("MudiLoadSubjectSet", "subjects", "MudiCompare", "subjects"),
        ),
    ),
}
"""What artists do besides -> how. Each takes as many actions as it has nodes and wires: nothing more is needed."""


@pytest.mark.parametrize("name", JOURNEYS)
def test_journeys_need_nothing_but_their_nodes_and_wires(hand: Hand, comfyui_server: Server, name: str) -> None:
    journey = JOURNEYS[name]
    if journey.newer and not is_newer(comfyui_server):
        pytest.skip("this ComfyUI does not have the nodes")
    if journey.stock:
        hand.page.evaluate("graph => app.loadApiJson(graph, 'stock')", STOCK)
        hand.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(STOCK))
        hand.page.evaluate(FIT)
    for number, (kind, title) in enumerate(journey.nodes):
        hand.add(kind, title, (1900 if journey.stock else 0) + 500 * number, 50 if journey.stock else 0)
    for wire in journey.wires:
        hand.wire(*wire)
    shapes = hand.page.evaluate(NAMED)
    assert {f"{a}.{out} -> {b}.{into}" for a, out, b, into in journey.wires} <= set(shapes)
    assert hand.actions == len(journey.nodes) + len(journey.wires) <= 11
