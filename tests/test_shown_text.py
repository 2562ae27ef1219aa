"""What nodes say under their widgets, in the real frontend: after a run, from the cache, and after an undo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import command
from comfyui_server import Server
from hand import Hand

if TYPE_CHECKING:
    from playwright.sync_api import Page

GRAPH = """() => {
    const add = (type, x, y, values = {}) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, y]
        app.graph.add(node)
        for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name]
        return node
    }
    const wire = (one, slot, other, name) =>
        one.connect(slot, other, other.inputs.findIndex(input => input.name === name))
    const mini = 'embedded (drawn toys only)'
    app.canvas.emitBeforeChange()
    app.graph.clear()
    const subjects = add('MudiLoadSubjectSet', 100, 60, {name: 'drawn'})
    const checkpoint = add('MudiMiniCheckpoint', 100, 500)
    const dataset = add('MudiSegMixDataset', 420, 60), picture = add('EmptyImage', 420, 700, {width: 192, height: 192})
    const train = add('MudiTrainLora', 800, 60, {name: 'said', steps: 1})
    const score = add('MudiCompare', 1200, 60, {detector: mini, embedder: mini})
    wire(subjects, 0, dataset, 'subjects')
    wire(dataset, 0, train, 'dataset')
    for (const [slot, name] of ['model', 'clip', 'vae'].entries()) wire(checkpoint, slot, train, name)
    wire(picture, 0, score, 'images')
    wire(subjects, 0, score, 'subjects')
    app.canvas.emitAfterChange()
    app.canvas.ds.scale = 0.8
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 50
    app.canvas.setDirty(true, true)
}"""
RANK = "app.graph.nodes.find(node => node.type === 'MudiTrainLora')?.widgets.find(one => one.name === 'rank').value"
SAID = ("said_00001.safetensors: 1 steps of segmix", "all themselves in 0 of 1 picture, mean score 0.00")
"""By Train LoRA and D&C Score."""


@pytest.fixture
def said(drawn_dataset: Path, comfyui_server: Server, either_page: Page) -> Page:
    """A page in which both have run."""
    shutil.copytree(drawn_dataset, comfyui_server.base / "input" / "drawn", dirs_exist_ok=True)
    for old in (comfyui_server.base / "models" / "loras").glob("said*"):
        old.unlink()
    comfyui_server.post("/free", {"free_memory": True})
    either_page.evaluate(GRAPH)
    Hand(either_page).run()
    return either_page


def is_shown(page: Page) -> None:
    """Wait until the page shows what was said, in as much room as its lines need."""
    for words in SAID:
        text = page.get_by_text(words).locator("visible=true").first
        text.wait_for()
        box = text.bounding_box()
        assert box is not None and box["height"] > 20, words


def test_what_training_and_the_card_say_survives_undo_redo_and_the_cache(said: Page) -> None:
    is_shown(said)
    said.evaluate(f"""() => {{
        app.canvas.emitBeforeChange()
        {RANK.replace("?.widgets", ".widgets")} = 8
        app.canvas.emitAfterChange()
    }}""")
    said.wait_for_timeout(500)
    for what, rank in (("Undo", 0), ("Redo", 8), ("Undo", 0)):
        command(said, f"Comfy.{what}")
        said.wait_for_function(f"rank => {RANK} === rank", arg=rank)
        is_shown(said)
        said.wait_for_timeout(3000)  # a graph that counts as changed would have nothing to redo
    Hand(said).run()  # from the cache, without a word while it runs
    is_shown(said)


def test_what_a_node_says_stays_when_the_frontend_takes_it_away_and_never_that_of_the_run_before(page: Page) -> None:
    """Newer frontends take the text away when a run ends, whether the node came to its end in it or not."""
    said = page.evaluate("""async () => {
        const node = LiteGraph.createNode('MudiSegMixDataset')
        app.graph.add(node)
        const run = async texts => {
            const widget = {name: '$$node-text-preview', type: 'progressText', options: {}, value: 'half way'}
            node.addCustomWidget(widget)
            for (const text of texts) node.onExecuted({text: [text]})
            node.widgets.splice(node.widgets.indexOf(widget), 1)
            widget.onRemove()
            await new Promise(resolve => setTimeout(resolve, 50))
            return node.widgets.filter(widget => widget.name === 'mudi_text').map(widget => widget.value)
        }
        const found = [await run(['one']), await run(['two']), await run([])]
        app.graph.remove(node)
        return found
    }""")
    assert said == [["one"], ["two"], []]
