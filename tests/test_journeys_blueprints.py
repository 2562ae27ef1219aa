"""Blueprints as artists use them: from the search into a graph, a few wires, and Run to the end."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import command, is_newer
from comfyui_server import Server
from hand import PLACE, Hand
from PIL import Image
from test_journeys import hand

from mudi_core.subjects.storage import read_subjects
from mudi_core.toy.world import PAIRS, photo

__all__ = ["hand"]

BLUEPRINTS = {
    "MuDI Prepare": ("folder", "token", "class_noun", "folder_1", "token_1", "class_noun_1", "name", "download"),
    "MuDI Train": ("name", "name_1", "steps", "seed"),
    "MuDI Generate": ("width", "height", "gamma", "batch_size", "seed", "steps", "cfg"),
    "MuDI Compare": ("name", "threshold", "download"),
}
"""What each has to choose in it, closed."""
INSIDE = """([title, values]) => {
    for (const node of app.graph.nodes.find(node => node.title === title).subgraph.nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name in values) widget.value = values[widget.name]
}"""
"""What is chosen in the opened blueprint."""
CHOOSE = """([title, values]) => {
    const {widgets} = app.graph.nodes.find(node => node.title === title)
    for (const [name, value] of Object.entries(values)) {
        const widget = widgets.find(widget => widget.name === name)
        widget.value = value
        widget.callback?.(value)
    }
}"""
OPTIONS = """([title, name]) => {
    const {widgets} = app.graph.nodes.find(node => node.title === title)
    const {values} = widgets.find(widget => widget.name === name).options
    return typeof values === 'function' ? values() : values
}"""
EYES = dict.fromkeys(("detector", "segmenter", "embedder"), "embedded (drawn toys only)")


def put(hand: Hand, name: str, x: float, y: float) -> None:
    """Take a blueprint from the search and lay it down."""
    page, before = hand.page, hand.page.evaluate("() => app.graph.nodes.length")
    x, y = page.evaluate(PLACE, [x, y])
    command(page, "Workspace.SearchBox.Toggle")
    page.locator("input:focus").fill(name)
    page.get_by_role("option").filter(has_text=name).first.click()
    page.wait_for_timeout(500)
    page.mouse.move(x, y, steps=3)
    page.mouse.click(x, y)
    page.wait_for_function("count => app.graph.nodes.length === count", arg=before + 1)


@pytest.fixture
def photos(comfyui_server: Server, mini_weights: None) -> tuple[str, str]:
    """Two folders of ComfyUI's input, with three photos of a dog in each."""
    names = ("one_dog", "other_dog")
    for subject, name in zip(PAIRS[2], names, strict=True):
        folder = comfyui_server.base / "input" / name
        folder.mkdir(exist_ok=True)
        for number in range(3):
            drawn = photo(subject.character, random.Random(f"{subject.token}/{number}"), 192)
            Image.fromarray(drawn.image).save(folder / f"{number}.png")
    return names


@pytest.fixture
def newer(hand: Hand, comfyui_server: Server) -> Iterator[Hand]:
    """Where blueprints are known, and nothing goes wrong in the page: a canvas that cannot draw a widget says so only
    there."""
    if not is_newer(comfyui_server):
        pytest.skip("this ComfyUI knows no blueprints")
    errors: list[str] = []
    hand.page.on("pageerror", lambda error: errors.append(str(error)))
    hand.page.on("console", lambda said: errors.append(said.text) if "TypeError" in said.text else None)
    yield hand
    hand.page.wait_for_timeout(500)
    assert errors == []


def test_a_blueprint_comes_from_the_search_with_all_its_widgets(newer: Hand) -> None:
    for number, name in enumerate(BLUEPRINTS):
        put(newer, name, 200 + 700 * number, 0)
    widgets = newer.page.evaluate("() => app.graph.nodes.map(n => [n.title, n.widgets.map(widget => widget.name)])")
    assert {name: tuple(some) for name, some in widgets} == BLUEPRINTS
    assert newer.page.evaluate("() => app.graph.nodes.flatMap(n => n.widgets).every(w => w.value != null)")


def test_blueprints_lead_from_photos_to_scored_pictures(
    newer: Hand, comfyui_server: Server, photos: tuple[str, str]
) -> None:
    hand, page, base = newer, newer.page, comfyui_server.base
    name = f"by_blueprints_{'in_vue' if page.evaluate('() => LiteGraph.vueNodesMode') else 'classic'}"
    put(hand, "MuDI Prepare", 200, 0)
    page.evaluate(INSIDE, ["MuDI Prepare", EYES])
    names = {"token": "lun", "class_noun": "dog", "token_1": "vex", "class_noun_1": "dog"}
    page.evaluate(CHOOSE, ["MuDI Prepare", {"folder": photos[0], "folder_1": photos[1], "name": name, **names}])
    hand.run()
    made = read_subjects(base / "input" / name)
    assert [(one.token, one.class_noun, len(one.photos)) for one in made] == [("lun", "dog", 3), ("vex", "dog", 3)]

    command(page, "Comfy.RefreshNodeDefinitions")  # by the key R: which sets there are now
    page.wait_for_timeout(1000)
    put(hand, "MuDI Train", 800, 0)
    assert name in page.evaluate(OPTIONS, ["MuDI Train", "name"])
    page.evaluate(CHOOSE, ["MuDI Train", {"name": name, "name_1": name, "steps": 1}])
    hand.add("MudiMiniCheckpoint", "Mini Checkpoint (MuDI)", 0, 600)
    for socket in ("model", "clip", "vae"):
        hand.wire("MudiMiniCheckpoint", socket, "MuDI Train", socket)
    put(hand, "MuDI Generate", 1500, 0)
    page.evaluate(CHOOSE, ["MuDI Generate", {"width": 192, "height": 192, "steps": 2, "batch_size": 2}])
    hand.add("CLIPTextEncode", "CLIP Text Encode (Prompt)", 800, 600)
    hand.wire("MudiMiniCheckpoint", "clip", "CLIPTextEncode", "clip")
    hand.wire("MudiMiniCheckpoint", "vae", "MuDI Generate", "vae")
    for socket in ("subjects", "model"):
        hand.wire("MuDI Train", socket, "MuDI Generate", socket)
    for socket in ("positive", "negative"):
        hand.wire("CLIPTextEncode", "CONDITIONING", "MuDI Generate", socket)
    put(hand, "MuDI Compare", 2200, 0)
    page.evaluate(INSIDE, ["MuDI Compare", EYES])
    page.evaluate(CHOOSE, ["MuDI Compare", {"name": name}])
    hand.wire("MuDI Generate", "IMAGE", "MuDI Compare", "images")
    hand.add("SaveImage", "Save Image", 2600, 0)
    hand.wire("MuDI Compare", "ranked", "SaveImage", "images")
    hand.add("PreviewAny", "Preview as Text", 2600, 600)
    hand.wire("MuDI Compare", "verdict", "PreviewAny", "source")
    run = comfyui_server.wait(hand.run())
    (saved,) = (base / "models" / "loras").rglob(f"{name}*.safetensors")
    assert saved.stat().st_size > 10_000
    pictures = [
        shown for shown in run.outputs.values() if any(one["type"] == "output" for one in shown.get("images", ()))
    ]
    assert [len(shown["images"]) for shown in pictures] == [2]
    assert any(" of 2 pictures, mean score " in str(shown.get("text")) for shown in run.outputs.values())
    if folder := os.environ.get("MUDI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")
