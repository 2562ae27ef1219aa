"""The real frontend in a real browser: a workflow from the template browser, Run, the pictures and the score.

`MUDI_PICTURES=1` samples in full and then writes docs/graph.png and the workflows' thumbnails.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import SIZE, browse_templates, command, open_template
from comfyui_server import ROOT, Server
from hand import Hand
from models import random_lora
from PIL import Image, ImageOps
from wires import crossings, drawn, passes
from workflow_files import MUTED, NAMES, NEWER
from workflow_files import nodes as of_type

if TYPE_CHECKING:
    from playwright.sync_api import Page

IN_FULL = bool(os.environ.get("MUDI_PICTURES"))
SECONDS = 3600 if IN_FULL else 300
WIDTH, HEIGHT, ROOM = SIZE["width"], SIZE["height"], 16
"""Of the picture, and around the graph in it."""
FIT = """([width, height, room]) => {
    const canvas = app.canvas, boxes = app.graph.groups.map(group => group._bounding)
    const x = Math.min(...boxes.map(box => box[0])), y = Math.min(...boxes.map(box => box[1]))
    const right = Math.max(...boxes.map(box => box[0] + box[2])), low = Math.max(...boxes.map(box => box[1] + box[3]))
    const scale = Math.min((width - 2 * room) / (right - x), (height - 2 * room) / (low - y))
    canvas.ds.scale = scale
    canvas.ds.offset[0] = room / scale - x
    canvas.ds.offset[1] = room / scale - y
    canvas.setDirty(true, true)
    return Math.round((right - x) * scale + 2 * room)
}"""


PASSES = {
    "1_prepare": {
        ("MudiLoadPhotos 2.captions", "MudiDetectSubjects 3"),
        ("MudiLoadPhotos 2.captions", "MudiSamMask 4"),
        ("MudiLoadPhotos 6.captions", "MudiDetectSubjects 7"),
        ("MudiLoadPhotos 6.captions", "MudiSamMask 8"),
    },
    "0_quickstart": {("MudiSubjectPrompt 13.negative", "CLIPTextEncode 14")},
    "15_controlnet": {
        ("ControlNetLoader 10.CONTROL_NET", "MudiRegionalPrompts 12"),
        ("CheckpointLoaderSimple 2.CLIP", "LoraLoaderModelOnly 3"),
        ("MudiLayout 7.layout", "MudiLayoutParts 8"),
    },
    "11_into_my_photo": {
        ("CheckpointLoaderSimple 2.CLIP", "LoraLoaderModelOnly 3"),
        ("ImageScale 7.IMAGE", "InvertMask 15"),
    },
    **{
        name: {
            ("CheckpointLoaderSimple 2.VAE", "MudiLayout 7"),
            *(
                ("LoraLoaderModelOnly 3.MODEL", behind)
                for behind in ("CLIPTextEncode 4", "CLIPTextEncode 5", "MudiLayout 7")
            ),
        }
        for name in ("3_generate", "4_compare")
    },
    "6_flow_model": {
        ("DualCLIPLoader 3.CLIP", "MudiTrainLora 7"),
        *(("VAELoader 4.VAE", behind) for behind in ("MudiTrainLora 7", "MudiLayout 8")),
    },
    "7_anime_tags": {
        ("CheckpointLoaderSimple 2.CLIP", "MudiTrainLora 5"),
        *(("CheckpointLoaderSimple 2.VAE", behind) for behind in ("MudiTrainLora 5", "MudiLayout 6")),
        ("MudiLoadSubjectSet 3.subjects", "MudiTrainLora 5"),
    },
}
"""The wires that pass behind a node, of each workflow: without them these could not be drawn without a crossing."""
CROSS = {
    "1_prepare": {
        "MudiLoadPhotos 6.captions -> MudiSubject 9.captions crosses MudiSubject 5.subjects -> MudiSubject 9.subjects"
    },
    "14_detail": {
        f"CheckpointLoaderSimple 2.{given} -> MudiDetail 6.{given.lower()} "
        "crosses LoraLoaderModelOnly 3.MODEL -> MudiDetail 6.model"
        for given in ("CLIP", "VAE")
    },
}
"""The wires that must cross, since sockets of two nodes stand in other orders."""
CROSS_AT_MOST = {
    "0_quickstart": 47,
    "10_methods": 215,
    "11_into_my_photo": 15,
    "12_fuse_and_decouple": 30,
    "13_masks": 5,
    "15_controlnet": 26,
    "3_generate": 18,
}
"""How many cross in a graph of many rows: in the gaps between its columns, hardly behind a node."""


def test_templates_are_listed_in_the_order_of_their_numbers(page: Page) -> None:
    """Whatever the file system's order is, the page's is ours; of the cards that are in sight at first."""
    listed = page.evaluate("async () => (await app.api.getWorkflowTemplates()).mudi")
    assert listed == list(NAMES)
    cards = browse_templates(page).locator("[data-testid^=template-workflow-]").all()
    shown = [(card.get_attribute("data-testid") or "").removeprefix("template-workflow-") for card in cards]
    assert len(shown) >= 6 and shown == list(NAMES[: len(shown)])


@pytest.mark.parametrize("name", NAMES)
def test_workflows_open_from_the_template_browser_as_they_were_saved(
    page: Page, comfyui_server: Server, name: str
) -> None:
    saved = comfyui_server.get(f"/api/workflow_templates/mudi/{name}.json")
    if missing := {node["type"] for node in saved["nodes"]} & NEWER - set(comfyui_server.get("/object_info")):
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")
    open_template(page, name)
    shown = {
        node["id"]: node for node in page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize())).nodes")
    }
    for node in saved["nodes"]:
        opened = shown[node["id"]]
        assert opened.get("widgets_values", []) == node["widgets_values"], node["type"]
        assert opened["size"] == node["size"], f"{node['type']} needs {opened['size']}"
        assert not opened.get("has_errors")
    assert page.evaluate("() => app.graph.nodes.filter(node => !node.comfyClass && !node.isVirtualNode).length") == 0
    assert page.get_by_text("Missing Node").count() == 0
    page.evaluate(FIT, [WIDTH, HEIGHT, ROOM])
    shown_wires = drawn(page)
    if name in CROSS_AT_MOST:
        assert len(crossings(*shown_wires)) <= CROSS_AT_MOST[name]
    else:
        assert set(crossings(*shown_wires)) == CROSS.get(name, set())
    assert passes(*shown_wires) == PASSES.get(name, set())


def test_a_wire_that_crosses_another_is_found(page: Page) -> None:
    open_template(page, "2_train")
    page.evaluate("() => app.graph.nodes.find(node => node.type === 'MudiSegMixDataset').pos[1] -= 700")
    page.evaluate(FIT, [WIDTH, HEIGHT, ROOM])
    wires, bodies = drawn(page)
    model = "CheckpointLoaderSimple 2.MODEL -> MudiTrainLora 5.model"
    dataset = "MudiSegMixDataset 4.dataset -> MudiTrainLora 5.dataset"
    assert f"{model} crosses {dataset}" in crossings(wires, bodies)


def test_the_quickstart_opens_whole_and_readable(page: Page) -> None:
    """On a usual screen: 8 px of letters are the least that the frontend draws."""
    page.set_viewport_size({"width": 1920, "height": 1080})
    open_template(page, "0_quickstart")
    page.wait_for_timeout(2000)
    scale, left, top, right, low, width, height = page.evaluate("""() => {
        const {scale, offset} = app.canvas.ds, boxes = app.graph.groups.map(group => group._bounding)
        const area = app.canvas.canvas.getBoundingClientRect()
        const x = value => (value + offset[0]) * scale, y = value => (value + offset[1]) * scale
        return [scale, x(Math.min(...boxes.map(b => b[0]))), y(Math.min(...boxes.map(b => b[1]))),
            x(Math.max(...boxes.map(b => b[0] + b[2]))), y(Math.max(...boxes.map(b => b[1] + b[3]))),
            area.width, area.height]
    }""")
    assert 14 * scale >= 8
    assert 0 <= left and right <= width and 0 <= top and low <= height


def test_the_switch_of_mini_lora_switches_training_on_and_off(either_page: Page) -> None:
    page = either_page
    open_template(page, "0_quickstart")
    mode = "() => app.graph.nodes.find(node => node.type === 'MudiTrainLora').mode"
    flip = """value => {
        const widget = app.graph.nodes.find(node => node.type === 'MudiMiniLora').widgets.find(w => w.name === 'train')
        widget.value = value
        widget.callback(value)
    }"""
    sent = "async () => Object.values((await app.graphToPrompt()).output).map(node => node.class_type)"
    assert page.evaluate(mode) == MUTED and "MudiTrainLora" not in page.evaluate(sent)
    page.evaluate(flip, True)
    assert page.evaluate(mode) == 0 and "MudiTrainLora" in page.evaluate(sent)
    page.evaluate(flip, False)
    assert page.evaluate(mode) == MUTED


HAS_PICTURES = """([kind, count]) => app.graph.nodes.filter(node => node.type === kind).every(node => {
    if (!LiteGraph.vueNodesMode) return node.imgs?.length === count
    const first = document.querySelector(`[data-node-id="${node.id}"] img[src*="/view?"]`)
    return app.nodeOutputs[node.id]?.images?.length === count && first?.naturalWidth > 0
})"""
"""Vue nodes show one of the pictures at a time."""


def test_the_quickstart_shows_its_pictures_and_the_score(either_page: Page, comfyui_server: Server) -> None:
    page = either_page
    open_template(page, "0_quickstart")
    page.evaluate(FIT, [WIDTH, HEIGHT, ROOM])  # the frontend fetches the pictures of nodes in sight
    if not IN_FULL:
        page.evaluate("""() => {
            for (const node of app.graph.nodes.filter(node => node.type === 'KSampler'))
                node.widgets.find(widget => widget.name === 'steps').value = 2
        }""")
    prompt_id = Hand(page).run(SECONDS)
    shown = {"SaveImage": 4, "MudiSubjectFromPhotos": 5, "MudiInitLatent": 4, "MudiCompare": 4}
    for kind, pictures in shown.items():
        page.wait_for_function(HAS_PICTURES, arg=[kind, pictures])  # fetched after the run has ended

    def texts(kind: str) -> list[str]:
        found: list[str] = page.evaluate(
            "kind => app.graph.nodes.filter(n => n.type === kind).flatMap(n => n.widgets.map(w => String(w.value)))",
            kind,
        )
        return found

    assert sum(" of 4 pictures, mean score " in text for text in texts("MudiCompare")) == 1
    assert any("the ready LoRA: olis cat and hta cat" in text for text in texts("MudiMiniLora"))
    picture = graph_picture(page)
    assert len(picture.getcolors(1 << 24) or []) > 1000
    if IN_FULL:
        (ROOT / "docs").mkdir(exist_ok=True)
        picture.quantize(256, dither=Image.Dither.NONE).save(ROOT / "docs" / "graph.png", optimize=True)
        _thumbnails(comfyui_server, prompt_id)


def open_as_app(page: Page, name: str, prepare: str, widgets: Sequence[str]) -> None:
    """A template in app mode, in which these widgets stand; ``prepare``: JavaScript on the graph of before."""
    if not page.evaluate("() => app.extensionManager.command.commands.some(one => one.id === 'Comfy.ToggleLinear')"):
        pytest.skip("this frontend has no app mode")
    open_template(page, name)
    page.evaluate(prepare)
    command(page, "Comfy.ToggleLinear")
    welcome = page.get_by_role("button", name="Skip", exact=True)  # only at the first time
    shown = [page.get_by_text(widget, exact=True).locator("visible=true").first for widget in widgets]
    welcome.or_(shown[0]).first.wait_for()
    page.wait_for_timeout(500)
    if welcome.count():
        welcome.click()
    for widget in shown:
        widget.wait_for()


def results(page: Page, count: int) -> None:
    """Wait until so many pictures at least are shown."""
    shown = "[...document.images].filter(image => image.src.includes('/view?') && image.naturalWidth > 0).length"
    page.wait_for_function(f"count => {shown} >= count", arg=count)


def test_the_quickstart_runs_as_an_app(page: Page) -> None:
    few = "() => { app.graph.nodes.find(n => n.type === 'KSampler').widgets.find(w => w.name === 'steps').value = 2 }"
    open_as_app(page, "0_quickstart", few, ("pair", "train", "text", "gamma", "batch_size", "seed"))
    Hand(page).run()
    results(page, 8)  # four pictures and their cards


WITH_MINI = """() => {
    const graph = app.graph, loader = graph.nodes.find(node => node.type === 'CheckpointLoaderSimple')
    const mini = LiteGraph.createNode('MudiMiniCheckpoint')
    graph.add(mini)
    for (const [slot, {links}] of loader.outputs.entries())
        for (const id of [...links ?? []]) {
            const {target_id, target_slot} = graph.links.get(id)
            mini.connect(slot, graph.getNodeById(target_id), target_slot)
        }
    graph.remove(loader)
}"""
"""The embedded model in the place of a checkpoint."""


@pytest.fixture
def trained(comfyui_server: Server, drawn_dataset: Path) -> None:
    """What 1_prepare and 2_train leave, before the page asks what there is."""
    shutil.copytree(drawn_dataset, comfyui_server.base / "input" / "my_subjects", dirs_exist_ok=True)
    random_lora(comfyui_server.base / "models" / "loras" / "my_subjects_00001.safetensors")


def test_3_generate_runs_as_an_app(trained: None, page: Page, comfyui_server: Server) -> None:
    open_as_app(page, "3_generate", WITH_MINI, ("lora_name", "name", "text", "gamma", "batch_size", "seed"))
    page.locator("textarea:visible").first.fill("olis cat and hta cat in the meadow")
    run = comfyui_server.wait(prompt := Hand(page).run())
    (pictures,) = (
        some for shown in run.outputs.values() if (some := shown.get("images", ())) and some[0]["type"] == "output"
    )
    assert len(pictures) == 4
    graph = comfyui_server.get(f"/history/{prompt}")[prompt]["prompt"][2]
    assert "olis cat and hta cat in the meadow" in [
        graph[node]["inputs"]["text"] for node in of_type(graph, "CLIPTextEncode")
    ]
    results(page, 4)
    if folder := os.environ.get("MUDI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "3_generate_app.png")


def test_the_dialog_of_missing_models_lists_the_eyes_that_are_not_there(page: Page, comfyui_server: Server) -> None:
    """Where its files are, an eye is not listed. The dialog of newer frontends knows only files that widgets name."""
    there = comfyui_server.base / "models" / "dinov2" / "dinov2-base"
    there.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (there / name).touch()
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Workflow.ShowMissingModelsWarning', true)")
    open_template(page, "4_compare")
    if page.evaluate("() => app.extensionManager.command.commands.some(one => one.id === 'Comfy.ToggleLinear')"):
        found = page.get_by_text(re.compile("errors? found|is missing")).first
        found.wait_for()
        if "found" in found.inner_text():
            page.get_by_role("button", name="View details").click()
        page.get_by_text(re.compile("sd_xl_base_1.0.safetensors")).first.wait_for()
    else:
        page.get_by_text("owlv2-base-patch16-ensemble/model.safetensors").first.wait_for()
        listed = page.locator("body").inner_text()
        assert "sd_xl_base_1.0.safetensors" in listed and "dinov2-base/" not in listed and "config.json\n" not in listed
    if folder := os.environ.get("MUDI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "missing_models.png")
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Workflow.ShowMissingModelsWarning', false)")
    shutil.rmtree(there)


def graph_picture(page: Page) -> Image.Image:
    """The whole graph without the frontend's panels."""
    command(page, "Workspace.ToggleFocusMode")
    page.wait_for_timeout(2000)
    width = page.evaluate(FIT, [WIDTH, HEIGHT, ROOM])
    page.wait_for_timeout(2000)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop((0, 0, width, HEIGHT))


def _thumbnails(server: Server, prompt_id: str) -> None:
    """The workflows' pictures, of what the quickstart's run made; those of 8_two_loras and 10_methods are their own."""
    entry = server.get(f"/history/{prompt_id}")[prompt_id]
    run, graph = server.wait(prompt_id), entry["prompt"][2]

    def shown(kind: str) -> list[Path]:
        return [file for node in of_type(graph, kind) for file in server.files(run, node)]

    cut_outs, saved = shown("MudiSubjectFromPhotos"), shown("SaveImage")
    sheets: dict[str, tuple[Sequence[Path], int]] = {
        "0_quickstart": (saved[:4], 2),
        "1_prepare": (cut_outs[:2] + cut_outs[5:7], 2),
        "2_train": (shown("MudiSegMixDataset"), 1),
        "3_generate": ((shown("MudiInitLatent")[0], saved[0]), 2),
        "4_compare": (shown("MudiCompare")[:1], 1),
        "5_best_seed": (shown("MudiCompare"), 2),
        "6_flow_model": ((shown("MudiInitLatent")[1], saved[1]), 2),
        "7_anime_tags": (saved[2:4], 2),
        "9_score_any_picture": (shown("MudiCompare")[1:2], 1),
    }
    for name, (files, columns) in sheets.items():
        _sheet(files, columns).save(ROOT / "workflows" / f"{name}.jpg", quality=85)


def _sheet(files: Sequence[Path], columns: int, width: int = 512) -> Image.Image:
    side = width // columns
    pictures: list[Any] = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(ImageOps.contain(picture.convert("RGB"), (side, side)))
    height = pictures[0].height
    sheet = Image.new("RGB", (width, height * -(-len(pictures) // columns)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * side, number // columns * height))
    return sheet


def test_seeds_of_what_takes_long_start_fixed_and_a_workflows_own_choice_stays(page: Page) -> None:
    found = page.evaluate(
        """() => {
        const control = node => node.widgets?.find(widget => widget.name === 'seed')?.linkedWidgets?.[0]
        const types = Object.keys(LiteGraph.registered_node_types).filter(type => type.startsWith('Mudi'))
        app.graph.clear()
        const found = {}
        for (const type of types) {
            const node = LiteGraph.createNode(type)
            app.graph.add(node)
            if (control(node)) found[type] = control(node).value
        }
        const saved = JSON.parse(JSON.stringify(app.graph.serialize()))
        const values = saved.nodes.find(node => node.type === 'MudiTrainLora').widgets_values
        values[values.indexOf('fixed')] = 'randomize'
        app.graph.configure(saved)
        found.opened = control(app.graph.nodes.find(node => node.comfyClass === 'MudiTrainLora')).value
        return found
    }"""
    )
    fixed = {
        *("MudiTrainLora", "MudiTrainPreview", "MudiMakePriors", "MudiMiniPhotos", "MudiInitLatent"),
        *("MudiSubjectsFromLoras", "MudiBestPictures", "MudiTrainResidual"),
    }
    assert found.pop("opened") == "randomize"
    assert {name for name, value in found.items() if value == "fixed"} == fixed
    assert set(found.values()) == {"fixed", "randomize"}
