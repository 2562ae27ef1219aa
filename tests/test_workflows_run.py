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
from comfyui_server import Graph, Run, Server
from models import random_lora
from PIL import Image
from safetensors.torch import load_file, save_file
from workflow_files import (
    MINI,
    NAMES,
    NEWER,
    Info,
    api_graph,
    in_small,
    nodes,
    with_settings,
    workflow,
    working,
)

from mudi_core.bases.embedded import WEIGHTS
from mudi_core.lora.reading import read_lora
from mudi_core.toy.world import PAIRS, photo


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
    means = [
        re.match(r"all themselves in \d of 2 pictures, mean score (-?\d+\.\d\d)\npicture \d: ", text) for text in texts
    ]
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
    said = r"^seed (\d+): (\d) of \d themselves"
    ranked = re.findall(said, run.outputs[find]["text"][0], re.MULTILINE)
    assert sorted(int(seed) for seed, *_ in ranked) == [first, first + 1, first + 2]
    themselves = [int(count) for _, count in ranked]
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
    fit = [f"own{number}.safetensors: 28 layers of the network are changed." for number in (1, 2)]
    assert told == [
        ["olis corgi: own1.safetensors", "hta poodle: own2.safetensors", *fit],
        ["olis corgi: own2.safetensors", "hta poodle: own1.safetensors", *fit[::-1]],
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
    assert all(" of 1 picture, mean score " in run.outputs[node]["text"][0] for node in nodes(graph, "MudiCompare"))
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
