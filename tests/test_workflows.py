"""The workflow files, as ComfyUI's frontend would send them: each through the real server, and then from its cache."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_server import ROOT, Graph, Run, Server
from models import random_lora
from PIL import Image
from safetensors.torch import load_file, save_file

from mudi_core.bases.embedded import WEIGHTS
from mudi_core.demo.settings import DemoSettings
from mudi_core.eyes import EYES
from mudi_core.eyes.pins import TABLE
from mudi_core.lora.reading import read_lora
from mudi_core.toy.world import PAIRS, photo

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
    assert [x for x, *_ in bounds] == sorted(x for x, *_ in bounds) and len({y for _, y, *_ in bounds}) == 1
    width = max(x + w for x, _, w, _ in bounds) - min(x for x, *_ in bounds)
    assert width <= 2 * max(height for *_, height in bounds)


@pytest.fixture(scope="module")
def server(comfyui_server: Server, mini_weights: None) -> Server:
    """With photos of two dogs in folders of its input folder."""
    for subject, name in zip(PAIRS[2], ("my_corgi", "my_poodle"), strict=True):
        folder = comfyui_server.base / "input" / name
        folder.mkdir()
        for number in range(3):
            drawn = photo(subject.character, random.Random(f"{subject.token}/{number}"), 192)
            Image.fromarray(drawn.image).save(folder / f"{number}.png")
    return comfyui_server


@pytest.fixture(scope="module")
def info(server: Server) -> Info:
    found: Info = server.get("/object_info")
    return found


def twice(server: Server, graph: Graph) -> Run:
    """What came of a graph, whose second run is served from the cache."""
    run = server.run(graph)
    again = server.run(graph)
    assert again.cached == set(graph)
    for node in graph:
        assert again.outputs.get(node) == run.outputs.get(node), graph[node]["class_type"]
    return run


def scores(run: Run, graph: Graph) -> list[float]:
    """The mean that each D&C Score tells."""
    texts = [run.outputs[node]["text"][0] for node in nodes(graph, "MudiCompare")]
    means = [re.match(r"mean of 2: (-?\d+\.\d\d)\npicture \d: ", text) for text in texts]
    return [float(mean[1]) for mean in means if mean]


def is_picture(path: Path, side: int = 192) -> bool:
    with Image.open(path) as image:
        return bool(image.size == (side, side) and image.convert("L").getextrema()[1] > 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_server_knows_every_node_and_offers_the_workflow(server: Server, info: Info, name: str) -> None:
    assert name in server.get("/api/workflow_templates")["mudi"]
    assert server.get(f"/api/workflow_templates/mudi/{name}.json") == workflow(name)
    graph = api_graph(name, info)
    if missing := {node["type"] for node in working(name)} - set(info):
        assert missing <= NEWER
        pytest.skip(f"this ComfyUI has no {', '.join(missing)}")
    for node in graph.values():
        about = info[node["class_type"]]["input"]
        known = {**about.get("required", {}), **about.get("optional", {})}
        assert set(about.get("required", {})) <= set(node["inputs"]) <= set(known), node["class_type"]
        for widget, value in node["inputs"].items():
            kind, *more = known[widget]
            if kind == "COMBO" and widget not in ("name", "lora_name", "folder") and not isinstance(value, list):
                assert value in more[0]["options"], (node["class_type"], widget)


def small_quickstart(info: Info, *, trains: bool) -> Graph:
    """With two pictures; the ready LoRA, or Train LoRA and its switch on."""
    return with_settings(
        api_graph("0_quickstart", info, awake=trains),
        {
            "MudiMiniPhotos": {"count": 2, "side": 192},
            "MudiMiniLora": {"train": trains},
            "MudiTrainLora": {"steps": 2, "batch_size": 1},
            "MudiInitLatent": {"batch_size": 2},
            "KSampler": {"steps": 2},
        },
    )


@pytest.mark.parametrize("trains", [False, True])
def test_the_quickstart_runs_in_one_go(server: Server, info: Info, trains: bool) -> None:
    graph = small_quickstart(info, trains=trains)
    run = twice(server, graph)
    for train in nodes(graph, "MudiTrainLora"):
        assert re.search(r"two_cats_\d+\.safetensors: 2 steps of segmix", run.outputs[train]["text"][0])
    assert bool(list((server.base / "models" / "loras").glob("two_cats_*.safetensors"))) == trains
    (lora,), (saved,) = nodes(graph, "MudiMiniLora"), nodes(graph, "SaveImage")
    pictures = server.files(run, saved)
    assert len(pictures) == 2 and all(map(is_picture, pictures))
    assert len(scores(run, graph)) == 1
    for kind, count in (("MudiSubjectFromPhotos", 2), ("MudiLayout", 1), ("MudiInitLatent", 2), ("MudiCompare", 2)):
        for node in nodes(graph, kind):
            assert len(server.files(run, node)) == count
    said = "the LoRA that was trained here" if trains else "the ready LoRA: olis cat and hta cat"
    assert run.outputs[lora]["text"] == [said]


def test_another_pair_needs_a_training_and_no_other_change(server: Server, info: Info) -> None:
    (pair,) = info["MudiMiniPhotos"]["input"]["required"]["pair"][1]["options"][2:3]
    graph = with_settings(small_quickstart(info, trains=False), {"MudiMiniPhotos": {"pair": pair}})
    refused = server.wait(server.queue(graph))
    assert "knows olis cat and hta cat, not ult dog and amg dog. Switch this node to 'train'" in refused.error
    graph = with_settings(small_quickstart(info, trains=True), {"MudiMiniPhotos": {"pair": pair}})
    run = server.run(graph)
    ((train,), (prompt,)) = nodes(graph, "MudiTrainLora"), nodes(graph, "MudiSubjectPrompt")
    assert "Prompt it with 'ult dog' and 'amg dog'." in run.outputs[train]["text"][0]
    assert run.outputs[prompt]["text"] == ["a photo of ult dog and amg dog"]


def test_gamma_0_is_empty_latent_image(server: Server, info: Info) -> None:
    """Init Latent's start is Empty Latent Image's where gamma is 0, and so must the pictures be."""
    graph = with_settings(small_quickstart(info, trains=False), {"MudiInitLatent": {"gamma": 0.0}})
    (sampler,) = nodes(graph, "KSampler")
    empty = {"class_type": "EmptyLatentImage", "inputs": {"width": 192, "height": 192, "batch_size": 2}}
    plain = {**copy.deepcopy(graph), "empty": empty}
    plain[sampler]["inputs"]["latent_image"] = ["empty", 0]
    (save,) = nodes(graph, "SaveImage")
    started, without = (
        [np.asarray(Image.open(file), dtype=np.int16) for file in server.files(server.run(one), save)]
        for one in (graph, plain)
    )
    for one, other in zip(without, started, strict=True):
        assert np.abs(one - other).max() <= 1
    assert np.abs(without[0] - without[1]).max() > 20


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


def test_the_workflows_find_what_the_one_before_them_wrote(server: Server, info: Info) -> None:
    graph = in_small("1_prepare", info)
    run = twice(server, graph)
    (keep,) = nodes(graph, "MudiSaveSubjectSet")
    assert run.outputs[keep]["text"] == ["olis corgi (3 photos), hta poodle (3 photos)"]
    assert len(server.files(run, keep)) == 6
    assert (server.base / "input" / "my_subjects" / "metadata.jsonl").is_file()

    graph = in_small("2_train", info)
    run = twice(server, graph)
    (train,) = nodes(graph, "MudiTrainLora")
    assert "Prompt it with 'olis corgi' and 'hta poodle'." in run.outputs[train]["text"][0]
    assert (server.base / "models" / "loras" / "my_subjects_00001.safetensors").is_file()

    graph = in_small("3_generate", info)
    run = twice(server, graph)
    (save,) = nodes(graph, "SaveImage")
    assert len(server.files(run, save)) == 2 and all(map(is_picture, server.files(run, save)))

    graph = in_small("4_compare", info)
    run = twice(server, graph)
    (best,) = nodes(graph, "SaveImage")
    (score,) = nodes(graph, "MudiCompare")
    assert len(server.files(run, best)) == len(server.files(run, score)) == 2
    assert len(scores(run, graph)) == 1

    graph = in_small("5_best_seed", info)
    run = twice(server, graph)
    ((best,), (find,)) = nodes(graph, "SaveImage"), nodes(graph, "MudiFindSeed")
    assert len(server.files(run, best)) == len(server.files(run, find)) == 2
    assert all(map(is_picture, server.files(run, best)))
    first = graph[find]["inputs"]["seed"]
    said = r"^seed (\d+): (\d) of \d themselves(?:, \d near)?, score (-?\d+\.\d\d)$"
    ranked = re.findall(said, run.outputs[find]["text"][0], re.MULTILINE)
    assert sorted(int(seed) for seed, *_ in ranked) == [first, first + 1, first + 2]
    themselves = [int(count) for _, count, _ in ranked]
    assert themselves == sorted(themselves, reverse=True)


def test_pictures_of_any_model_and_size_are_scored_and_kept_best_first(server: Server, info: Info) -> None:
    server.run(in_small("1_prepare", info))
    pictures = server.base / "input" / "my_pictures"
    pictures.mkdir()
    for number, side in enumerate((192, 160)):
        drawn = photo(PAIRS[2][number].character, random.Random(number), side)
        Image.fromarray(drawn.image).save(pictures / f"{number}.png")
    graph = in_small("9_score_any_picture", info)
    run = twice(server, graph)
    ((score,), (save,)) = nodes(graph, "MudiCompare"), nodes(graph, "SaveImage")
    assert run.outputs[score]["text"][0].count("1 figure, 2 expected") == 2
    kept = []
    for file in server.files(run, save):
        with Image.open(file) as picture:
            kept.append(picture.size)
    assert sorted(kept) == [(160, 160), (192, 192)]


def test_figures_of_finished_pictures_are_detailed_and_the_rest_stays(server: Server, info: Info) -> None:
    server.run(in_small("1_prepare", info))
    random_lora(server.base / "models" / "loras" / "my_subjects_00001.safetensors")
    pictures = server.base / "input" / "my_pictures"
    pictures.mkdir(exist_ok=True)
    for number, side in enumerate((192, 160)):
        drawn = photo(PAIRS[2][number].character, random.Random(number), side)
        Image.fromarray(drawn.image).save(pictures / f"{number}.png")
    graph = with_settings(in_small("14_detail", info), {"MudiDetail": {"only_better": False}})
    run = twice(server, graph)
    ((detail,), (save,)) = nodes(graph, "MudiDetail"), nodes(graph, "SaveImage")
    told = run.outputs[detail]["text"][0].split("\n")
    assert len(told) == 2 and all(re.search(r"before, -?\d\.\d\d now; .* is new", line) for line in told)
    for number, file in enumerate(server.files(run, save)):
        with Image.open(file) as new, Image.open(pictures / f"{number}.png") as old:
            assert new.size == old.size
            apart = np.abs(np.asarray(new.convert("RGB"), int) - np.asarray(old.convert("RGB"), int)).max(2)
        assert 0.02 < (apart > 0).mean() < 0.98 and not apart[0].any()


def test_each_figure_of_a_finished_picture_gets_its_own_lora(server: Server, info: Info) -> None:
    """With LoRAs for which two subjects were swapped, each figure is another."""
    server.run(in_small("1_prepare", info))
    pictures = server.base / "input" / "my_pictures"
    pictures.mkdir(exist_ok=True)
    sides = [Image.fromarray(photo(PAIRS[2][i].character, random.Random(i), 160).image) for i in (0, 1)]
    both = Image.new("RGB", (320, 160))
    for number, side in enumerate(sides):
        both.paste(side, (160 * number, 0))
    for old in pictures.iterdir():
        old.unlink()
    both.save(pictures / "both.png")
    drawn, told = [], []
    for names in (("olis", "hta"), ("hta", "olis")):
        graph = with_settings(in_small("14_detail", info), {"MudiDetail": {"only_better": False}})
        ((detail,), (save,)) = nodes(graph, "MudiDetail"), nodes(graph, "SaveImage")
        above: dict[str, Any] = {}
        for number, name in enumerate(names, start=1):
            random_lora(server.base / "models" / "loras" / f"own{number}.safetensors", number)
            widgets = {"lora_name": f"own{number}.safetensors", "subject": name, "strength": 1.0, "text_strength": 1.0}
            graph[f"own{number}"] = {"class_type": "MudiLoraSubject", "inputs": {**widgets, **above}}
            above = {"loras": [f"own{number}", 0]}
        graph[detail]["inputs"].update(above)
        (loader,) = nodes(graph, "MudiMiniCheckpoint")
        graph[detail]["inputs"]["model"] = [loader, 0]
        run = server.run(graph)
        (file,) = server.files(run, save)
        with Image.open(file) as picture:
            drawn.append(np.asarray(picture.convert("RGB"), int))
        told.append(run.outputs[detail]["text"][0].split("\n")[1:])
    assert told == [
        ["olis corgi: own1.safetensors", "hta poodle: own2.safetensors"],
        ["olis corgi: own2.safetensors", "hta poodle: own1.safetensors"],
    ]
    apart = np.abs(drawn[0] - drawn[1]).max(2)
    assert all((half > 8).mean() > 0.02 for half in (apart[:, :160], apart[:, 160:]))


def test_five_methods_stand_side_by_side_from_one_seed(server: Server, info: Info) -> None:
    small = {"MudiMiniPhotos": {"count": 2, "side": 192}, "KSampler": {"steps": 2}}
    graph = with_settings(api_graph("10_methods", info), small)
    samplers = [graph[node]["inputs"] for node in nodes(graph, "KSampler")]
    assert len(samplers) == 5 and {one["seed"] for one in samplers} == {0}
    assert len({json.dumps(one["model"]) for one in samplers}) == 5
    run = twice(server, graph)
    (row,) = nodes(graph, "SaveImage")
    (cards,) = server.files(run, row)
    shown = [Image.open(server.files(run, node)[0]) for node in nodes(graph, "MudiCompare")]
    with Image.open(cards) as picture:  # each card as high as the first: a longer verdict makes a card higher
        widths = [one.width * picture.height / one.height for one in shown]
        assert picture.height in {one.height for one in shown} and picture.width == pytest.approx(sum(widths), abs=99)
        assert picture.width > sum(widths)
    assert len({one.tobytes() for one in shown}) == 5
    assert all("mean of 1: " in run.outputs[node]["text"][0] for node in nodes(graph, "MudiCompare"))
    (guidance,), (reference,) = nodes(graph, "MudiLayoutGuidance"), nodes(graph, "MudiReferenceAdapter")
    assert run.outputs[guidance]["text"][0].count("2 tokens") == 2
    assert run.outputs[reference]["text"][0].startswith("MS-Diffusion at 0.60")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("6_flow_model", "a photo of olis corgi and hta poodle on a beach"),
        ("7_anime_tags", "2girls, olis, hta, sitting, beach, outdoors, smile"),
    ],
)
def test_one_graph_trains_and_draws(server: Server, info: Info, name: str, prompt: str) -> None:
    """With nothing there but a subject set: no LoRA is chosen, the model of Train LoRA goes through Init Latent."""
    graph = in_small("1_prepare", info)
    if name == "7_anime_tags":
        for node in nodes(graph, "MudiSubject"):
            graph[node]["inputs"]["class_noun"] = "girl"
    server.run(graph)
    graph = in_small(name, info)
    run = twice(server, graph)
    ((train,), (start,), (save,)) = (nodes(graph, kind) for kind in ("MudiTrainLora", "MudiInitLatent", "SaveImage"))
    assert "2 steps of segmix" in run.outputs[train]["text"][0]
    assert run.outputs[start]["text"] == ["gamma 2"]
    assert len(server.files(run, save)) == 2 and all(map(is_picture, server.files(run, save)))
    for sampler in nodes(graph, "KSampler"):
        inputs = graph[sampler]["inputs"]
        assert (inputs["model"], inputs["latent_image"], inputs["denoise"]) == ([start, 1], [start, 0], 1)
    told = [run.outputs[node]["text"] for node in nodes(graph, "MudiSubjectPrompt")]
    typed = [graph[node]["inputs"]["text"] for node in nodes(graph, "CLIPTextEncode")]
    assert prompt in (told[0][0].split("\n") if told else typed)


SINGLES = (("olis", "corgi"), ("hta", "poodle"))


@pytest.fixture
def single_loras(server: Server) -> None:
    """A LoRA of each character, without names in their files."""
    for seed, (_, name) in enumerate(SINGLES, start=1):
        random_lora(server.base / "models" / "loras" / f"my_{name}.safetensors", seed)


def test_two_loras_draw_one_picture_each_in_its_place(server: Server, info: Info, single_loras: None) -> None:
    server.run(in_small("1_prepare", info))
    graph = in_small("8_two_loras", info)
    run = twice(server, graph)
    ((apart,), (start,), (save,)) = (
        nodes(graph, kind) for kind in ("MudiSeparateLoras", "MudiInitLatent", "SaveImage")
    )
    said = run.outputs[apart]["text"][0].split("\n")
    assert said == [f"my_{name}.safetensors: 28 layers where {who} {name} stands" for who, name in SINGLES]
    assert len(server.files(run, save)) == 2 and all(map(is_picture, server.files(run, save)))
    (sampler,) = nodes(graph, "KSampler")
    inputs = graph[sampler]["inputs"]
    assert (inputs["model"], inputs["latent_image"], inputs["denoise"]) == ([apart, 0], [start, 0], 1)
    assert graph[apart]["inputs"]["latent"] == [start, 0]  # each picture of the batch has its own places
    assert graph[apart]["inputs"]["layout"] == graph[start]["inputs"]["layout"]


def test_masks_come_from_three_sides(server: Server, info: Info) -> None:
    """Core's SAM3 has no weights here: MASKs of its kind come from other nodes of a graph in its place."""
    for folder, drawn in (("my_cup", "image"), ("my_cup_masks", "mask")):
        (server.base / "input" / folder).mkdir()
        for number in range(2):
            rendered = photo(PAIRS[1][0].character, random.Random(number), 192)
            pixels = rendered.image if drawn == "image" else rendered.masks[0].view(np.uint8) * np.uint8(255)
            Image.fromarray(pixels).save(server.base / "input" / folder / f"{number}.png")
    graph = in_small("13_masks", info)
    for loader in nodes(graph, "MudiMiniCheckpoint") + nodes(graph, "SAM3_Detect") + nodes(graph, "CLIPTextEncode"):
        del graph[loader]
    for node in nodes(graph, "MudiSubjectFromPhotos"):
        graph[node]["inputs"].update(detector=MINI, segmenter=MINI, threshold=0.03, which="best")
    (first,) = [node for node in nodes(graph, "MudiSubject") if graph[node]["inputs"]["token"] == "olis"]
    photos = graph[first]["inputs"]["photos"]
    eyes = {"photos": photos, "download": False}
    graph["boxes"] = {
        "class_type": "MudiDetectSubjects",
        "inputs": {**eyes, "query": "dog", "detector": MINI, "threshold": 0.03, "which": "best"},
    }
    graph["sam"] = {"class_type": "MudiSamMask", "inputs": {**eyes, "boxes": ["boxes", 0], "segmenter": MINI}}
    graph[first]["inputs"]["masks"] = ["sam", 0]
    run = twice(server, graph)
    (keep,) = nodes(graph, "MudiSaveSubjectSet")
    assert run.outputs[keep]["text"] == ["olis corgi (3 photos), hta cup (2 photos), ult poodle (3 photos)"]
    with Image.open(server.base / "input" / "my_subjects" / "mask_hta_1.png") as kept:
        wanted = Image.open(server.base / "input" / "my_cup_masks" / "0.png")
        assert np.array_equal(np.asarray(kept.convert("L")) > 127, np.asarray(wanted) > 127)


def test_subjects_are_put_into_a_photo_and_the_rest_of_it_stays(server: Server, info: Info) -> None:
    server.run(in_small("1_prepare", info))
    random_lora(server.base / "models" / "loras" / "my_subjects_00001.safetensors")
    shot = np.asarray(photo(PAIRS[0][0].character, random.Random(9), (320, 240)).image)
    Image.fromarray(shot).save(server.base / "input" / "my_photo.jpg", quality=95)
    boxes = '{"olis": [0.05, 0.5, 0.4, 0.95], "hta": [0.6, 0.5, 0.95, 0.95]}'
    small = {"ImageScale": {"width": 192, "height": 192}, "MudiLayout": {"mode": "from text", "text": boxes}}
    graph = with_settings(in_small("11_into_my_photo", info), {**small, "KSampler": {"steps": 2}})
    for node in nodes(graph, "MudiLayout"):
        graph[node]["inputs"].update(width=192, height=192)
    run = twice(server, graph)
    ((save,), (start,), (layout,)) = (nodes(graph, kind) for kind in ("SaveImage", "MudiInitLatent", "MudiLayout"))
    ((sampler,), (paste,)) = (nodes(graph, kind) for kind in ("KSampler", "ImageCompositeMasked"))
    inputs = graph[sampler]["inputs"]
    assert (inputs["model"], inputs["latent_image"], inputs["denoise"]) == ([start, 1], [start, 0], 1)
    (kept,) = nodes(graph, "InvertMask")
    assert graph[kept]["inputs"]["mask"] == [start, 2] and graph[paste]["inputs"]["mask"] == [kept, 0]
    assert graph[paste]["inputs"]["source"] == graph[layout]["inputs"]["scene"]  # the batch is the destination's
    (told,) = run.outputs[layout]["mudi_layout"]
    assert (server.base / "temp" / told["scene"]).is_file()
    first, second = (np.asarray(Image.open(file), dtype=int) for file in server.files(run, save))
    top = slice(0, 64)  # nobody stands there
    assert np.array_equal(first[top], second[top]) and len(np.unique(first[top])) > 20
    with Image.open(server.files(run, layout)[0]) as canvas:
        assert np.abs(np.asarray(canvas.convert("RGB"), dtype=int)[top] - first[top]).max() <= 2
    assert np.abs(first[120:] - second[120:]).max() > 10


@pytest.fixture
def cat_loras(server: Server) -> None:
    """The embedded model's own LoRA of two cats, twice, as if each file were of one of them alone."""
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    state = load_file(WEIGHTS / "lora.safetensors")
    for share, (_, name) in zip((1.0, 0.95), SINGLES, strict=True):
        weaker = {key: value * (share if "lora_up" in key else 1.0) for key, value in state.items()}
        save_file(weaker, folder / f"my_{name}.safetensors")


def test_two_loras_are_fused_painted_decoupled_and_drawn_in_one_graph(
    server: Server, info: Info, cat_loras: None
) -> None:
    """The whole chain, from two files and no photo to pictures of a third file."""
    graph = in_small("12_fuse_and_decouple", info)
    eyes = {"detector": MINI, "segmenter": MINI, "embedder": MINI, "threshold": 0.03}
    sizes, prompt = {"width": 192, "height": 192}, "a photo of olis cat and hta cat"
    small = {
        "MudiFuseLoras": {**sizes, "steps": 1},
        "MudiSubjectsFromLoras": {**sizes, **eyes, "count": 2, "spare": 1, "steps": 15, "seed": 1},
        "MudiTrainLora": {"preset": "decouple"},
        "KSampler": {"steps": 15},
    }
    graph = with_settings(graph, small)
    for node, (token, _) in zip(nodes(graph, "MudiLoraSubject"), SINGLES, strict=True):
        graph[node]["inputs"]["subject"] = f"{token} cat"
    for node in nodes(graph, "CLIPTextEncode"):
        if "olis" in graph[node]["inputs"]["text"]:
            graph[node]["inputs"]["text"] = prompt
    ((fuse,), (paint,), (data,), (train,), (start,), (save,)) = (
        nodes(graph, kind)
        for kind in (
            *("MudiFuseLoras", "MudiSubjectsFromLoras", "MudiSegMixDataset", "MudiTrainLora", "MudiInitLatent"),
            "SaveImage",
        )
    )
    painted, learns = graph[paint]["inputs"], graph[train]["inputs"]
    assert painted["loras"] == graph[fuse]["inputs"]["loras"]
    assert (painted["model"], painted["clip"]) == (graph[fuse]["inputs"]["model"], graph[fuse]["inputs"]["clip"])
    assert graph[data]["inputs"]["subjects"] == [paint, 0] and learns["dataset"] == [data, 0]
    assert (learns["model"], learns["clip"], learns["on_lora"]) == ([fuse, 0], [fuse, 1], [fuse, 2])
    assert graph[nodes(graph, "KSampler")[0]]["inputs"]["model"] == [start, 1]
    run = twice(server, graph)
    assert "layers" in run.outputs[fuse]["text"][0]
    said = run.outputs[paint]["text"][0]
    assert re.search(r"olis cat: 2 pictures, likeness .*\nhta cat: 2 pictures, likeness ", said)
    assert len(server.files(run, paint)) >= 1
    (told,) = run.outputs[train]["text"]
    assert "2 steps of segmix" in told and "Prompt it with 'olis cat' and 'hta cat'" in told
    (name,) = re.findall(r"both as one file: (\S+\.safetensors)", told)
    whole, part = (read_lora(server.base / "models" / "loras" / one) for one in (name, name.replace("-whole", "")))
    parents = [one["file"] for one in json.loads(whole.about["mudi_parents"])]
    assert parents == [json.loads(part.about["mudi_on"])[0]["file"], part.name]
    config = json.loads(part.about["mudi_config"])
    assert (config["segmix_prob"], config["kl_weight"], config["dco_beta"]) == (1.0, 1.0, 0.0)
    assert len(server.files(run, save)) == 2 and all(map(is_picture, server.files(run, save)))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_that_names_a_numbered_lora_says_that_it_does_not_follow(name: str) -> None:
    numbered = [node for node in working(name) if re.search(r"_\d{5}\.safetensors", str(node.get("widgets_values")))]
    notes = str([node["widgets_values"] for node in workflow(name)["nodes"] if node["type"] in NOTES])
    assert ("choose the newest file in the **LoRA loader**" in notes) == bool(numbered)
