"""The layout editor in the real frontend: what is dragged is what the node renders, and what the workflow keeps.

Frontends that know the new node rendering (Vue) are tried with it too.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import READY, command
from comfyui_server import ROOT, Server
from PIL import Image

from mudi_core.stage.layout_text import Place, parse_places

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

NEW_NODES = "Comfy.VueNodes.Enabled"
GRAPH = """() => {
    app.canvas.emitBeforeChange()
    app.graph.clear()
    const add = (type, x, values) => {
        const node = LiteGraph.createNode(type)
        node.pos = [x, 40]
        app.graph.add(node)
        for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name]
        return node
    }
    const subjects = add('MudiLoadSubjectSet', 340, {name: 'drawn'})
    const layout = add('MudiLayout', 700, {width: 192, height: 192, seed: 3, control_after_generate: 'fixed'})
    subjects.connect(0, layout, 0)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
    app.canvas.emitAfterChange()
    app.canvas.setDirty(true, true)
}"""
NODE = "app.canvas.graph.nodes.find(node => node.type === 'MudiLayout')"


class Editor:
    """The Layout node of the graph that is open."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server

    @property
    def canvas(self) -> Locator:
        return self.page.get_by_role("listbox", name="Subjects on the canvas")

    def figure(self, token: str) -> Locator:
        return self.page.locator(f".mudi-figure[data-token={token}]")

    def press(self, name: str) -> None:
        self.page.get_by_role("toolbar", name="Layout").get_by_role("button", name=name).click()

    def value(self, widget: str) -> Any:
        return self.page.evaluate(f"name => {NODE}.widgets.find(widget => widget.name === name).value", widget)

    @property
    def places(self) -> dict[str, Place]:
        """As the node reads them."""
        assert self.value("mode") == "from text"
        return parse_places(self.value("text"))

    def box(self, token: str) -> tuple[float, float, float, float]:
        """Of the figure on the screen: fractions of the canvas."""
        canvas, figure = self.canvas.bounding_box(), self.figure(token).bounding_box()
        assert canvas is not None and figure is not None
        x0 = (figure["x"] - canvas["x"]) / canvas["width"]
        y0 = (figure["y"] - canvas["y"]) / canvas["height"]
        return x0, y0, x0 + figure["width"] / canvas["width"], y0 + figure["height"] / canvas["height"]

    def drag(self, token: str, right: float, down: float, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """By fractions of the canvas, holding the figure at these fractions of it; without snapping."""
        canvas, figure = self.canvas.bounding_box(), self.figure(token).bounding_box()
        assert canvas is not None and figure is not None
        x, y = figure["x"] + at[0] * figure["width"], figure["y"] + at[1] * figure["height"]
        mouse = self.page.mouse
        self.page.keyboard.down("Alt")
        mouse.move(x, y)
        mouse.down()
        mouse.move(x + right * canvas["width"] / 2, y + down * canvas["height"] / 2)
        mouse.move(x + right * canvas["width"], y + down * canvas["height"])
        mouse.up()
        self.page.keyboard.up("Alt")

    def keys(self, token: str, *keys: str) -> None:
        self.figure(token).focus()
        for key in keys:
            self.page.keyboard.press(key)

    def run(self) -> Image.Image:
        """Presses Run and gives the canvas that the node rendered."""
        self.page.evaluate("""() => {
            window.ended = null
            const end = event => { window.ended = event.detail }
            app.api.addEventListener('execution_success', end, {once: true})
            app.api.addEventListener('execution_error', end, {once: true})
        }""")
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.page.wait_for_function("() => window.ended")
        ended = self.page.evaluate("() => window.ended")
        assert "exception_message" not in ended, ended
        run = self.server.wait(ended["prompt_id"])
        (node,) = (name for name, shown in run.outputs.items() if "mudi_layout" in shown)
        (file,) = self.server.files(run, node)
        self.wait_for_pictures()
        return Image.open(file).convert("RGB")

    def wait_for_pictures(self) -> None:
        self.page.wait_for_function(
            "() => { const pictures = [...document.querySelectorAll('.mudi-figure:not(.mudi-blank) img')];"
            "return pictures.length === 2 && pictures.every(one => one.complete && one.naturalWidth > 0) }"
        )

    def picture(self) -> Image.Image:
        """The editor's canvas with nobody selected, as it looks."""
        self.page.evaluate("() => document.activeElement.blur()")
        self.canvas.click(position={"x": 1, "y": 1})
        self.page.mouse.move(5, 5)
        return Image.open(io.BytesIO(self.canvas.screenshot())).convert("RGB")


@pytest.fixture(scope="module")
def server(comfyui_server: Server, drawn_dataset: Path) -> Server:
    shutil.copytree(drawn_dataset, comfyui_server.base / "input" / "drawn", dirs_exist_ok=True)
    return comfyui_server


@pytest.fixture(params=["classic", "new"])
def editor(page: Page, server: Server, request: pytest.FixtureRequest) -> Iterator[Editor]:
    """A set of two and the Layout node, which has run once."""
    if request.param == "new":
        version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
        if tuple(int(number) for number in version.split(".")[:2]) < (1, 30):
            pytest.skip(f"frontend {version} has no other node rendering, or the beginnings of one")
        server.post(f"/api/settings/{NEW_NODES}", True)
        reload(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate(GRAPH)
    made = Editor(page, server)
    assert made.canvas.inner_text() == "Run once to see the cut-outs here."
    made.run()
    yield made
    server.post(f"/api/settings/{NEW_NODES}", False)


def reload(page: Page) -> None:
    page.reload()
    page.wait_for_function(READY)


def alike(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, 0..1, of which one is brought to the other's size."""
    scaled = one.resize(other.size, Image.Resampling.BOX if one.width > other.width else Image.Resampling.BILINEAR)
    return float(np.abs(np.asarray(scaled, float) - np.asarray(other, float)).mean() / 255)


def test_what_is_dragged_is_what_the_node_renders_and_stays_after_a_reload(editor: Editor) -> None:
    page = editor.page
    before, begun = editor.box("olis"), editor.picture()
    other = editor.box("hta")
    side = 0.25 if before[0] < 0.3 else -0.25
    editor.drag("olis", side, 0.1)
    after = editor.box("olis")
    assert after[0] - before[0] == pytest.approx(side, abs=0.02)
    assert after[1] - before[1] == pytest.approx(min(0.1, 1 - before[3]), abs=0.02)
    assert editor.places["olis"].box == pytest.approx(after, abs=0.01)
    assert editor.box("hta") == pytest.approx(other, abs=0.01)
    editor.keys("olis", ".", ".", ".", "m")
    shown = editor.picture()
    rendered = editor.run()
    if folder := os.environ.get("MUDI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"editor-{page.evaluate('() => LiteGraph.vueNodesMode')}.png")
    assert alike(shown, rendered) < 0.03 < alike(begun, rendered)
    assert editor.places["olis"].mirror is True and editor.places["olis"].rotation == 15

    text = editor.value("text")
    page.wait_for_timeout(1500)  # the frontend keeps drafts of what is open, after a while
    reload(page)
    page.wait_for_function(f"() => {NODE}")
    editor.wait_for_pictures()
    assert editor.value("text") == text
    assert alike(editor.picture(), rendered) < 0.03
    assert alike(editor.run(), rendered) == 0


def test_after_a_restart_boxes_stand_for_the_cut_outs_until_the_next_run(editor: Editor) -> None:
    """ComfyUI empties its temp folder when it starts."""
    page = editor.page
    editor.keys("olis", "m")
    box = editor.box("olis")
    page.wait_for_timeout(1500)
    page.route("**/view?*mudi_*", lambda route: route.fulfill(status=404))
    reload(page)
    page.wait_for_function("() => document.querySelectorAll('.mudi-figure.mudi-blank').length === 2")
    assert editor.box("olis") == pytest.approx(box, abs=0.01)
    assert editor.figure("olis").inner_text() == "olis cat"
    page.unroute("**/view?*mudi_*")
    editor.run()
    assert editor.figure("olis").get_attribute("class") == "mudi-figure"


def test_keys_and_buttons_pose_and_order(editor: Editor) -> None:
    start = editor.box("hta")
    editor.keys("hta", "ArrowDown", "Shift+ArrowDown")
    assert editor.places["hta"].box[1] == pytest.approx(min(start[1] + 0.06, 1 - start[3] + start[1]), abs=0.01)
    editor.keys("hta", "-", "-", "p")
    place = editor.places["hta"]
    assert place.box[2] - place.box[0] < start[2] - start[0] and place.photo in (0, 1)
    front = editor.places["hta"].depth < editor.places["olis"].depth
    editor.keys("hta", "[" if front else "]")
    assert (editor.places["hta"].depth < editor.places["olis"].depth) is not front
    editor.press("Mirror (M)")
    assert editor.places["hta"].mirror is True
    described = editor.figure("hta").get_attribute("aria-label") or ""
    assert described.startswith("hta cat · ") and "mirrored" in described
    assert editor.figure("hta").get_attribute("aria-selected") == "true"
    photo = editor.places["hta"].photo
    editor.press("Next photo (P)")
    assert editor.places["hta"].photo != photo
    number = json.loads(editor.value("text"))["hta"]["photo"]
    assert number in ("#1", "#2") and f"photo {number}" in (editor.figure("hta").get_attribute("aria-label") or "")
    assert f"photo {number}" in editor.page.locator(".mudi-status").inner_text()
    editor.keys("hta", "Delete")
    assert editor.places["hta"].box == pytest.approx(start, abs=0.01)
    count = editor.page.evaluate("() => app.graph.nodes.length")
    assert count == 2  # and the key did not reach the graph


def test_corners_resize_and_edges_snap(editor: Editor) -> None:
    page, start = editor.page, editor.box("olis")
    editor.figure("olis").focus()
    editor.drag("olis", 0.1, 0.1, at=(0, 0))
    smaller = editor.places["olis"].box
    assert smaller[2:] == pytest.approx(start[2:], abs=0.01)
    ratio, before = ((box[2] - box[0]) / (box[3] - box[1]) for box in (smaller, start))
    assert smaller[2] - smaller[0] < start[2] - start[0] and ratio == pytest.approx(before, rel=0.02)
    canvas, figure = editor.canvas.bounding_box(), editor.figure("olis").bounding_box()
    assert canvas is not None and figure is not None
    page.mouse.move(figure["x"] + figure["width"] / 2, figure["y"] + figure["height"] / 2)
    page.mouse.down()
    middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    page.mouse.move(middle[0] + 3, middle[1] - 3, steps=3)
    assert page.locator(".mudi-guides i").count() == 2
    page.mouse.up()
    x0, y0, x1, y1 = editor.places["olis"].box
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((0.5, 0.5), abs=0.001)


def test_undo_redo_and_reset(editor: Editor) -> None:
    page = editor.page
    start = editor.box("olis")

    def texts(expected: str) -> None:
        page.wait_for_function(f"text => {NODE}?.widgets.find(one => one.name === 'text').value === text", arg=expected)

    editor.keys("olis", "m")
    once = editor.value("text")
    editor.keys("olis", "Shift+ArrowDown", "Shift+ArrowUp", "Shift+ArrowRight", "Shift+ArrowLeft", "-")
    page.keyboard.press("m")
    twice = editor.value("text")
    editor.press("Undo (Ctrl+Z)")
    page.wait_for_function(f"text => {NODE}?.widgets.find(one => one.name === 'text').value !== text", arg=twice)
    editor.press("Redo (Ctrl+Y)")
    texts(twice)
    for _ in range(7):
        last = editor.value("text")
        page.wait_for_function("() => document.activeElement.dataset.token === 'olis'")
        page.keyboard.press("Control+z")
        page.wait_for_function(f"text => {NODE}?.widgets.find(one => one.name === 'text').value !== text", arg=last)
        if editor.value("text") == once:
            break
    texts(once)
    editor.press("Reset: places by the seed again")
    assert editor.value("mode") == "random" and editor.value("text") == ""
    assert editor.box("olis") == pytest.approx(start, abs=0.01)


def test_a_copy_and_a_subgraph_keep_the_places(editor: Editor) -> None:
    page = editor.page
    editor.keys("olis", "m", "Shift+ArrowDown")
    text, box = editor.value("text"), editor.box("olis")
    page.evaluate(f"""() => {{
        const node = {NODE}
        app.canvas.selectItems([node])
        app.canvas.copyToClipboard([node])
        app.canvas.pasteFromClipboard()
    }}""")
    page.wait_for_function("() => document.querySelectorAll('.mudi-figure:not(.mudi-blank)').length === 4")
    copies = page.evaluate(
        "() => app.graph.nodes.filter(node => node.type === 'MudiLayout').map(node => node.widgets"
        ".find(one => one.name === 'text').value)"
    )
    assert copies == [text, text]
    page.evaluate(f"""() => {{
        app.canvas.deleteSelected()
        app.canvas.selectItems([{NODE}])
    }}""")
    command(page, "Comfy.Graph.ConvertToSubgraph")
    page.wait_for_function("() => app.graph.nodes.some(node => node.isSubgraphNode?.())")
    page.evaluate("() => app.canvas.openSubgraph(app.graph.nodes.find(node => node.isSubgraphNode?.()).subgraph)")
    page.wait_for_function(f"() => {NODE}")
    editor.wait_for_pictures()
    assert editor.value("text") == text
    assert editor.box("olis") == pytest.approx(box, abs=0.01)
    editor.keys("olis", "m")
    assert editor.places["olis"].mirror is False
    rendered = editor.run()
    assert alike(editor.picture(), rendered) < 0.03


def test_a_finger_drags(editor: Editor) -> None:
    page, start = editor.page, editor.box("olis")
    canvas, figure = editor.canvas.bounding_box(), editor.figure("olis").bounding_box()
    assert canvas is not None and figure is not None
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    x, y = figure["x"] + figure["width"] / 2, figure["y"] + figure["height"] / 2
    by = 0.2 if start[3] < 0.75 else -0.2
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for part in (0.5, 1.0):
        down = y + part * by * canvas["height"]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": down}]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function(f"() => {NODE}.widgets.find(one => one.name === 'mode').value === 'from text'")
    assert editor.places["olis"].box[1] == pytest.approx(start[1] + by, abs=0.04)


def test_written_text_is_shown_and_connected_text_is_left_alone(editor: Editor) -> None:
    page = editor.page
    editor.keys("hta", "m")
    page.locator("textarea").first.fill('{"olis cat": [0, 0, 500, 1000]}')
    editor.figure("hta").wait_for(state="detached")
    x0, y0, x1, y1 = editor.box("olis")
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((0.25, 0.5), abs=0.01)
    for photo in ("1", '"#2"'):  # as older workflows have it, and counted from 1
        page.locator("textarea").first.fill(f'{{"olis": {{"box": [0, 0, 500, 1000], "photo": {photo}}}}}')
        page.wait_for_function("() => document.querySelector('.mudi-figure').ariaLabel.includes('photo #2')")
    for photo in ('"#0"', "-1", '"2"'):
        page.locator("textarea").first.fill(f'{{"olis": {{"box": [0, 0, 500, 1000], "photo": {photo}}}}}')
        page.get_by_text("The text is no layout: write places, or press reset.").first.wait_for()
    page.locator("textarea").first.fill("left, please")
    page.get_by_text("The text is no layout: write places, or press reset.").first.wait_for()
    page.evaluate(f"""() => {{
        const asked = LiteGraph.createNode('MudiAskLayout')
        app.graph.add(asked)
        const layout = {NODE}
        asked.connect(0, layout, layout.inputs.findIndex(input => input.name === 'text'))
        layout.widgets.find(widget => widget.name === 'mode').value = 'random'
        layout.widgets.find(widget => widget.name === 'mode').callback?.('random')
    }}""")
    page.get_by_text("Text or mode is connected: to look at only.").wait_for()
    editor.drag("olis", 0.1, 0.1)
    assert editor.value("text") == "left, please"


def test_without_javascript_the_node_still_has_its_text(page: Page, server: Server) -> None:
    page.route("**/extensions/mudi/**.js", lambda route: route.abort())
    reload(page)
    page.evaluate(GRAPH)
    assert page.locator(".mudi-layout").count() == 0
    page.evaluate(f"""() => {{
        const said = {{mode: 'from text', text: '{{"olis": [0, 0, 0.5, 1], "hta": [0.5, 0, 1, 1]}}'}}
        for (const widget of {NODE}.widgets) if (widget.name in said) widget.value = said[widget.name]
    }}""")
    page.evaluate("() => { app.api.addEventListener('execution_success', event => { window.ended = event.detail }) }")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("() => window.ended")
    page.wait_for_function(f"() => {NODE}.imgs?.length === 1")


def test_the_files_of_the_editor_are_served(server: Server) -> None:
    served = {path for path in server.get("/extensions") if path.startswith("/extensions/mudi/")}
    assert served == {
        f"/extensions/mudi/{path.relative_to(ROOT / 'web').as_posix()}" for path in (ROOT / "web").rglob("*.js")
    }


@pytest.mark.parametrize("editor", ["classic"], indirect=True)
def test_a_layout_that_names_what_every_object_has_opens(editor: Editor) -> None:
    text = '{"constructor": [0, 0, 0.5, 1], "__proto__": [0.5, 0, 1, 1], "toString": [0, 0, 1, 1]}'
    errors: list[str] = []
    editor.page.on("pageerror", lambda error: errors.append(str(error)))
    editor.page.evaluate(
        f"""text => {{
            const set = (name, value) => {{
                const widget = {NODE}.widgets.find(widget => widget.name === name)
                widget.value = value
                widget.callback?.(value)
            }}
            set('mode', 'from text')
            set('text', text)
        }}""",
        text,
    )
    tokens = "() => [...document.querySelectorAll('.mudi-figure')].map(one => one.dataset.token).sort()"
    named = ["__proto__", "constructor", "toString"]
    assert editor.page.evaluate(tokens) == named
    workflow = editor.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    editor.page.evaluate("async text => await app.loadGraphData(JSON.parse(text))", workflow)
    editor.page.wait_for_function(f"() => {NODE}")
    assert editor.page.evaluate(tokens) == named and errors == []
    for token in named:
        editor.keys(token, "p", "m")
    assert editor.places.keys() == set(named) and all(place.mirror for place in editor.places.values())


def test_the_turn_handle_turns_from_where_the_figure_is(editor: Editor) -> None:
    page = editor.page
    editor.keys("olis", *["."] * 6)
    assert editor.places["olis"].rotation == 30
    handle = editor.figure("olis").locator(".mudi-turn").bounding_box()
    assert handle is not None
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 1, y)
    page.mouse.move(x, y)
    page.mouse.up()
    assert editor.places["olis"].rotation == 30
    page.keyboard.down("Alt")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 20, y)
    page.mouse.up()
    page.keyboard.up("Alt")
    assert 35 < (editor.places["olis"].rotation or 0) < 100


def test_handle_and_name_stand_off_the_figure(editor: Editor) -> None:
    """Wherever it stands: nothing of the editor covers a face, and the handle can be seen and grabbed."""
    page = editor.page
    for top in (0, 300):
        text = f'{{"olis": [0, {top}, 500, {top + 700}], "hta": [500, 0, 1000, 1000]}}'
        page.locator("textarea").first.fill(text)
        page.wait_for_function("() => document.querySelector('.mudi-figure').ariaLabel.includes('olis')")
        for token in ("olis", "hta"):
            editor.figure(token).focus()
            figure = editor.figure(token).bounding_box()
            handle = editor.figure(token).locator(".mudi-turn").bounding_box()
            name = editor.figure(token).locator(".mudi-name").bounding_box()
            assert figure is not None and handle is not None and name is not None
            assert handle["y"] + handle["height"] <= figure["y"]
            assert name["y"] >= figure["y"] + figure["height"]
            x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
            reached = page.evaluate("([x, y]) => document.elementFromPoint(x, y).className", [x, y])
            assert "mudi-turn" in reached


def test_the_scene_stands_behind_the_figures(editor: Editor) -> None:
    """It is seen where it will be, stays after a reload, and goes with its wire."""
    page = editor.page
    on_white = editor.picture()
    across, down = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 200))
    meadow = np.stack([across, down, np.full_like(across, 40)], -1).astype(np.uint8)  # no part is like another
    Image.fromarray(meadow).save(editor.server.base / "input" / "meadow.png")
    page.evaluate(f"""async () => {{
        await app.refreshComboInNodes()
        const photo = LiteGraph.createNode('LoadImage'), layout = {NODE}
        photo.pos = [340, 300]
        app.graph.add(photo)
        photo.widgets.find(widget => widget.name === 'image').value = 'meadow.png'
        photo.connect(0, layout, layout.inputs.findIndex(input => input.name === 'scene'))
    }}""")
    rendered = editor.run()
    shown = editor.picture()
    assert alike(shown, rendered) < 0.03 and alike(on_white, rendered) > 0.2
    before = editor.box("olis")
    editor.drag("olis", 0.2 if before[0] < 0.4 else -0.2, 0)
    moved = editor.picture()
    rendered = editor.run()
    assert alike(moved, rendered) < 0.03
    if folder := os.environ.get("MUDI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"scene-{page.evaluate('() => LiteGraph.vueNodesMode')}.png")
    page.wait_for_timeout(1500)
    reload(page)
    page.wait_for_function(f"() => {NODE}")
    editor.wait_for_pictures()
    assert alike(editor.picture(), rendered) < 0.03
    page.evaluate(f"() => {NODE}.disconnectInput({NODE}.inputs.findIndex(input => input.name === 'scene'))")
    shown = editor.picture()
    assert shown.getpixel((3, 3)) == (255, 255, 255) and alike(shown, editor.run()) < 0.03
