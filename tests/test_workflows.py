"""The workflow files: what stands in them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from comfyui_server import Server
from PIL import Image
from workflow_files import (
    FOLDER,
    LOADERS,
    MINI,
    NAMES,
    NEWER,
    NOTES,
    Info,
    api_graph,
    nodes,
    widgets,
    workflow,
    working,
)

from mudi_core.demo.settings import DemoSettings
from mudi_core.eyes import EYES
from mudi_core.eyes.pins import TABLE


@pytest.fixture(scope="module")
def info(comfyui_server: Server, mini_weights: None) -> Info:
    found: Info = comfyui_server.get("/object_info")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_from_outputs_to_inputs_of_their_type(name: str) -> None:
    graph = workflow(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    arrived = {}
    for number, origin, slot, target, socket, kind in graph["links"]:
        given, taken = by_id[origin]["outputs"][slot], by_id[target]["inputs"][socket]
        assert number in given["links"] and taken["link"] == number
        assert given["type"] == kind and taken["type"] in (kind, "*")
        arrived[number] = target
    for node in by_id.values():
        used = {link for one in node.get("outputs", []) for link in one["links"] or []}
        used |= {one["link"] for one in node.get("inputs", []) if one["link"] is not None}
        assert used <= set(arrived), node["type"]
    for reroute in graph["extra"].get("reroutes", []):
        assert set(reroute["linkIds"]) <= set(arrived)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_says_what_it_needs_and_has_a_picture(name: str) -> None:
    graph = workflow(name)
    assert graph["version"] == 0.4
    assert any(node["type"] == "MarkdownNote" for node in graph["nodes"])
    assert len(graph["groups"]) >= 2
    for node in working(name):
        ours = node["type"].startswith("Mudi")
        assert node["properties"]["cnr_id"] == ("mudi" if ours else "comfy-core")
        assert node["properties"]["ver"] and node["properties"]["Node name for S&R"] == node["type"]
        if node["type"] in LOADERS:
            models = node["properties"]["models"]
            assert [model["name"] for model in models] == [
                v for v in node["widgets_values"] if v.endswith("safetensors")
            ]
            for model in models:
                assert model["directory"] == LOADERS[node["type"]]
                assert model["url"].startswith("https://") and model["url"].endswith(model["name"])
    picture = FOLDER / f"{name}.jpg"
    assert picture.stat().st_size < 60_000
    with Image.open(picture) as thumbnail:
        assert thumbnail.format == "JPEG"


def test_there_are_no_other_workflows() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_lists_the_files_of_the_eyes_that_it_needs(name: str) -> None:
    """For the dialog of missing models, which looks for these names in these folders, and finds weights alone: anything
    else would be missing for ever."""
    wanted = []
    chosen = {value for node in working(name) for value in map(str, node.get("widgets_values") or [])}
    for eye, files in TABLE.items():
        if eye in chosen:
            folder = next(about.folder for _, about in EYES if about.weights == eye)
            for file in files.files:
                if file.name.endswith(".json"):
                    continue
                inside = file.name if files.folder == "." else f"{files.folder}/{file.name}"
                wanted.append({"name": inside, "url": file.url, "directory": folder})
    assert workflow(name).get("models", []) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another_and_each_stands_in_a_group(name: str) -> None:
    graph = workflow(name)
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in graph["nodes"]]
    title = 30
    for i, (kind, x, y, width, height) in enumerate(boxes):
        for other, x2, y2, width2, height2 in boxes[i + 1 :]:
            apart = x + width <= x2 or x2 + width2 <= x or y + height <= y2 - title or y2 + height2 <= y - title
            assert apart, (kind, other, x, y, x2, y2)
        if kind not in NOTES:
            assert any(
                gx <= x and gy <= y - title and x + width <= gx + gw and y + height <= gy + gh
                for gx, gy, gw, gh in (group["bounding"] for group in graph["groups"])
            ), (kind, x, y)


def test_the_quickstart_has_the_settings_of_the_demo(info: Info) -> None:
    graph, demo = api_graph("0_quickstart", info, awake=True), DemoSettings()
    train = demo.train_config("segmix", 0)
    picture = demo.generate_config("", True, 0)
    sizes = {"width": demo.size, "height": demo.size}
    expected: dict[str, dict[str, Any]] = {
        "MudiMiniPhotos": {"count": demo.photos, "side": demo.photo_side, "seed": 0},
        "MudiSubjectFromPhotos": {
            "threshold": demo.photo_threshold,
            "which": "best",
            "query": "",
            "detector": MINI,
            "segmenter": MINI,
        },
        "MudiSegMixDataset": {
            "probability": train.samples.segmix_prob,
            "overlap": train.samples.layout.max_overlap,
            "background_weight": train.learning.background_weight,
        },
        "MudiTrainLora": {
            "preset": "auto",  # what is usual for the embedded model is what the demo has
            "method": train.samples.method,
            **dict.fromkeys(("steps", "rank", "learning_rate", "batch_size"), 0),
            "seed": train.samples.seed,
        },
        "MudiLayout": {**sizes, "mode": "random", "overlap": picture.layout.max_overlap},
        "MudiInitLatent": {"gamma": picture.gamma},
        "KSampler": {
            "steps": picture.steps,
            "cfg": picture.guidance,
            "sampler_name": "euler",
            "scheduler": "ddim_uniform",
            "denoise": 1.0,
        },
        "MudiCompare": {
            "threshold": demo.threshold,
            "cut_out": demo.cut_out_references,
            "detector": MINI,
            "embedder": MINI,
        },
    }
    for kind, settings in expected.items():
        assert nodes(graph, kind), kind
        for node in nodes(graph, kind):
            inputs = graph[node]["inputs"]
            assert {name: inputs[name] for name in settings} == settings, kind
    (pair,), (prompt,) = nodes(graph, "MudiMiniPhotos"), nodes(graph, "MudiSubjectPrompt")
    wording = graph[prompt]["inputs"]
    assert (wording["text"], wording["kind"], wording["negative"]) == ("a photo of {subjects}", "", "")
    given = {node: graph[node]["inputs"] for node in graph if graph[node]["class_type"] != "MudiMiniPhotos"}
    names = [one[name] for one in given.values() for name in ("token", "class_noun") if name in one]
    assert names == [[pair, slot] for slot in (2, 3, 4, 5)]  # the pair is chosen in one place
    texts = [one["text"] for node, one in given.items() if graph[node]["class_type"] == "CLIPTextEncode"]
    assert texts == [[prompt, 0], [prompt, 1]]


@pytest.mark.parametrize("name", NAMES)
def test_widgets_have_their_values_by_name_too(info: Info, name: str) -> None:
    """Newer frontends find a value by its name where a node has got other widgets since."""
    for node in working(name):
        if not node.get("widgets_values"):
            continue
        named = node["widgets_values_named"]
        assert list(named.values()) == node["widgets_values"], node["type"]
        if node["type"] in info:
            assert widgets(node, info[node["type"]]).items() <= named.items(), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_no_workflow_has_a_deprecated_node(info: Info, name: str) -> None:
    at_work = [node["type"] for node in working(name) if node["type"] in info or node["type"] not in NEWER]
    assert not [kind for kind in at_work if info[kind].get("deprecated")]


def test_training_and_drawing_fit_every_family_of_models(info: Info) -> None:
    """What is usual for the model is taken wherever the workflows train, and the start is in the model that samples."""
    trains = [name for name in NAMES if nodes(api_graph(name, info), "MudiTrainLora")]
    assert {"2_train", "6_flow_model", "7_anime_tags"} <= set(trains)
    for name in trains:
        graph = api_graph(name, info)
        for train in nodes(graph, "MudiTrainLora"):
            inputs = graph[train]["inputs"]
            own = inputs["preset"] in ("mini, 192 px", "decouple")  # the quickstart's; a step of its own, for any model
            assert own or [inputs[n] for n in ("preset", "steps", "rank", "batch_size")] == ["auto", 0, 0, 0], name
    graph = api_graph("3_generate", info)
    ((start,), (sampler,)) = nodes(graph, "MudiInitLatent"), nodes(graph, "KSampler")
    assert graph[sampler]["inputs"]["model"] == [start, 1] and "model" in graph[start]["inputs"]


def test_app_mode_shows_widgets_and_results_that_exist() -> None:
    """In newer ComfyUI: a page of the few widgets that matter, in the place of the graph."""
    apps = {name: workflow(name)["extra"]["linearData"] for name in NAMES if "linearData" in workflow(name)["extra"]}
    assert set(apps) == {"0_quickstart", "3_generate"}
    for name, shown in apps.items():
        by_id = {node["id"]: node for node in workflow(name)["nodes"]}
        for node, widget in shown["inputs"]:
            assert widget in [one["name"] for one in by_id[node]["inputs"] if "widget" in one], (name, node)
        assert {by_id[node]["type"] for node in shown["outputs"]} <= {"SaveImage", "MudiCompare"}


def test_the_quickstart_is_at_most_twice_as_wide_as_high_and_reads_from_left_to_right() -> None:
    bounds = [group["bounding"] for group in workflow("0_quickstart")["groups"]]
    titles = [group["title"][:1] for group in workflow("0_quickstart")["groups"]]
    assert titles == ["1", "2", "3", "4"]
    assert "Drag the figures" in [
        node.get("title") for node in workflow("0_quickstart")["nodes"] if node["type"] in NOTES
    ]
    assert [x for x, *_ in bounds] == sorted(x for x, *_ in bounds) and len({y for _, y, *_ in bounds}) == 1
    width = max(x + w for x, _, w, _ in bounds) - min(x for x, *_ in bounds)
    assert width <= 2 * max(height for *_, height in bounds)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_that_names_a_numbered_lora_says_that_it_does_not_follow(name: str) -> None:
    numbered = [node for node in working(name) if re.search(r"_\d{5}\.safetensors", str(node.get("widgets_values")))]
    notes = str([node["widgets_values"] for node in workflow(name)["nodes"] if node["type"] in NOTES])
    assert ("choose the newest file in the **LoRA loader**" in notes) == bool(numbered)
