"""The pack in the real server: a stock graph with our start, bad inputs, Cancel, the cache, and a quiet log."""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import ROOT, Graph, Server, changed

STOCK: Graph = {
    "checkpoint": {"class_type": "MudiMiniCheckpoint", "inputs": {}},
    "positive": {
        "class_type": "CLIPTextEncode",
        "inputs": {"clip": ["checkpoint", 1], "text": "a photo of olis cat and hta cat, in the meadow"},
    },
    "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["checkpoint", 1], "text": ""}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 192, "height": 192, "batch_size": 1}},
    "sampler": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["checkpoint", 0],
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "latent_image": ["latent", 0],
            "seed": 5,
            "steps": 3,
            "cfg": 4.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}},
    "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "stock"}},
}
"""SDXL's text-to-image graph as everybody has it; only its checkpoint is the embedded one."""

OURS: Graph = {
    "subjects": {"class_type": "MudiLoadSubjectSet", "inputs": {"name": "drawn"}},
    "layout": {
        "class_type": "MudiLayout",
        "inputs": {
            "subjects": ["subjects", 0],
            "width": 192,
            "height": 192,
            "mode": "random",
            "seed": 5,
            "relative_sizes": "",
            "overlap": 0.4,
        },
    },
    "latent": {
        "class_type": "MudiInitLatent",
        "inputs": {"layout": ["layout", 0], "vae": ["checkpoint", 2], "gamma": 1.0, "batch_size": 1, "seed": 5},
    },
}
"""What takes the place of Empty Latent Image."""

STARTED: Graph = {**STOCK, **OURS}

PREPARE: Graph = {
    "photos": {"class_type": "MudiMiniPhotos", "inputs": {"pair": "?", "count": 2, "side": 192, "seed": 0}},
    "find": {
        "class_type": "MudiDetectSubjects",
        "inputs": {
            "photos": ["photos", 0],
            "query": ["photos", 3],
            "detector": "mini (embedded)",
            "threshold": 0.03,
            "which": "best",
            "download": False,
        },
    },
    "cut": {
        "class_type": "MudiSamMask",
        "inputs": {
            "photos": ["photos", 0],
            "boxes": ["find", 0],
            "segmenter": "mini (embedded)",
            "download": False,
        },
    },
    "subject": {
        "class_type": "MudiSubject",
        "inputs": {
            "photos": ["photos", 0],
            "masks": ["cut", 0],
            "token": ["photos", 2],
            "class_noun": ["photos", 3],
            "captions": "",
        },
    },
    "keep": {"class_type": "MudiSaveSubjectSet", "inputs": {"subjects": ["subject", 0], "name": "prepared"}},
}
"""Photos into a dataset of one subject."""


@pytest.fixture(scope="module")
def server(comfyui_server: Server, drawn_dataset: Path, mini_weights: None) -> Server:
    shutil.copytree(drawn_dataset, comfyui_server.base / "input" / "drawn", dirs_exist_ok=True)
    return comfyui_server


@pytest.fixture(scope="module")
def prepare(server: Server) -> Graph:
    pairs = server.get("/object_info/MudiMiniPhotos")["MudiMiniPhotos"]["input"]["required"]["pair"][1]["options"]
    return changed(PREPARE, photos={"pair": pairs[0]})


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_every_node_is_there_and_explains_itself(server: Server) -> None:
    nodes = {name: info for name, info in server.get("/object_info").items() if name.startswith("Mudi")}
    assert len(nodes) >= 10
    for name, info in nodes.items():
        assert info["category"].startswith("MuDI/") and info["display_name"].endswith("(MuDI)"), name
        assert info["description"], name
        widgets = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [key for key, (_, about) in widgets.items() if not about.get("tooltip")] == [], name
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"]), name


def test_help_pages_are_where_the_frontend_looks_for_them(server: Server) -> None:
    for name in server.get("/object_info"):
        if name.startswith("Mudi"):
            for file in (f"{name}.md", f"{name}.webp"):
                with urllib.request.urlopen(f"{server.url}/extensions/mudi/docs/{file}", timeout=60) as page:
                    assert page.read() == (ROOT / "web" / "docs" / file).read_bytes()


def test_models_are_found_by_extra_model_paths_too(server: Server) -> None:
    info = server.get("/object_info/MudiDetectSubjects")["MudiDetectSubjects"]
    choices = info["input"]["required"]["detector"][1]["options"]
    assert choices[-1] == "embedded (drawn toys only)" and "my-owl" in choices


def test_the_stock_graph_runs_with_our_start_in_the_place_of_the_empty_latent(server: Server) -> None:
    assert [name for name in STOCK if STARTED[name] != STOCK[name]] == ["latent"]
    (plain,) = server.files(server.run(STOCK), "save")
    run = server.run(STARTED)
    (started,) = server.files(run, "save")
    (canvas,) = server.files(run, "layout")
    assert canvas.is_file()
    assert len(pixels(started)) == len(pixels(plain)) == 192 * 192 * 3
    assert pixels(started) != pixels(plain)
    without = server.run(changed(STARTED, latent={"gamma": 0.0}, save={"filename_prefix": "without"}))
    (same,) = server.files(without, "save")
    assert pixels(same) == pixels(plain)


def test_a_sampler_that_spoils_the_start_is_told_on_the_node(server: Server) -> None:
    run = server.run(changed(STARTED, latent={"seed": 71}, sampler={"denoise": 0.5}))
    (text,) = run.outputs["latent"]["text"]
    assert "KSampler (node sampler) has a denoise of 0.5" in text
    run = server.run(changed(STARTED, latent={"seed": 72, "gamma": -1.0}))
    assert run.outputs["latent"]["text"] == ["gamma 2"]


def test_a_second_run_is_served_from_the_cache(server: Server) -> None:
    first, second = server.run(STARTED), server.run(STARTED)
    assert second.cached == set(STARTED)
    assert server.files(second, "save") == server.files(first, "save")


def test_a_changed_dataset_is_read_anew(server: Server) -> None:
    server.run(STARTED)
    metadata = server.base / "input" / "drawn" / "metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "subjects" not in server.run(STARTED).cached


def test_photos_become_a_dataset_that_the_score_knows(server: Server, prepare: Graph) -> None:
    graph = {
        **prepare,
        "score": {
            "class_type": "MudiCompare",
            "inputs": {
                "images": ["photos", 0],
                "subjects": ["keep", 0],
                "detector": "mini (embedded)",
                "embedder": "mini (embedded)",
                "threshold": 0.03,
                "query": "",
                "cut_out": True,
                "download": False,
            },
        },
    }
    run = server.run(graph)
    assert (server.base / "input" / "prepared" / "metadata.jsonl").is_file()
    assert len(server.files(run, "find")) == len(server.files(run, "cut")) == len(server.files(run, "keep")) == 2
    (verdict,) = run.outputs["score"]["text"]
    assert re.match(r"all themselves in \d of 2 pictures, mean score -?\d\.\d\d\npicture \d: ", verdict)


def joined(**nodes: dict[str, Any]) -> Graph:
    """Nodes by id, as ``class_type`` with its inputs."""
    return {
        name: {"class_type": node["class_type"], "inputs": {k: v for k, v in node.items() if k != "class_type"}}
        for name, node in nodes.items()
    }


WHITE = {"class_type": "SolidMask", "value": 1.0, "width": 192, "height": 192}
BLACK = {"class_type": "SolidMask", "value": 0.0, "width": 192, "height": 192}
OTHER = {"class_type": "SolidMask", "value": 1.0, "width": 64, "height": 64}

REFUSED = {
    "a query without words": ({"find": {"query": " "}}, "ext to look for is empty"),
    "a name with a path": ({"keep": {"name": "../outside"}}, "without a path"),
    "a threshold above 1": ({"find": {"threshold": 2.0}}, "bigger than max"),
    "a token of two words": ({"subject": {"token": "my dog", "class_noun": "dog"}}, "token of one word"),
}
RED = {
    "no subject": ({"find": {"query": "cat", "threshold": 1.0}}, {}, "find", r"photo 1: no 'cat' was found \(best"),
    "a missing model": ({"find": {"detector": "owlv2-base"}}, {}, "find", r"owlv2"),
    "too few masks": ({"subject": {"masks": ["m", 0]}}, {"m": BLACK}, "subject", "2 photos but 1 mask"),
    "a black mask": (
        {"photos": {"count": 1}, "subject": {"masks": ["m", 0]}},
        {"m": BLACK},
        "subject",
        "olis_1.png: the mask is empty",
    ),
    "a white mask": (
        {"photos": {"count": 1}, "subject": {"masks": ["m", 0]}},
        {"m": WHITE},
        "subject",
        "olis_1.png: the mask covers the whole photo",
    ),
    "a mask of another size": (
        {"photos": {"count": 1}, "subject": {"masks": ["m", 0]}},
        {"m": OTHER},
        "subject",
        "the mask is 64x64 px, the photo 192x192 px",
    ),
    "boxes of other photos": ({"cut": {"photos": ["photos", 0], "boxes": ["two", 0]}}, {}, "cut", "2 photos but boxes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_once(server: Server, prepare: Graph, case: str) -> None:
    inputs, words = REFUSED[case]
    assert words in server.refusal(changed(prepare, **inputs))
    assert not (server.base / "outside").exists()


@pytest.mark.parametrize("case", RED)
def test_what_goes_wrong_is_told_in_a_sentence_and_the_server_goes_on(
    server: Server, prepare: Graph, case: str
) -> None:
    inputs, more, node, words = RED[case]
    graph = {**prepare, **joined(**more)}
    if case == "boxes of other photos":
        graph["one"] = changed(prepare, photos={"count": 1})["photos"]
        graph["two"] = changed(prepare, find={"photos": ["one", 0]})["find"]
    run = server.wait(server.queue(changed(graph, **inputs)))
    assert run.status == "error" and run.messages["execution_error"]["node_id"] == node
    assert re.search(words, run.error), run.error
    assert "\n" not in run.error and run.error.endswith((".", "...")), run.error
    server.run(joined(photos={"class_type": "EmptyImage", "width": 8, "height": 8, "batch_size": 1, "color": 0},
                      show={"class_type": "PreviewImage", "images": ["photos", 0]}))  # fmt: skip


def test_a_model_that_is_none_is_told_by_comfyui_or_by_the_node(server: Server, prepare: Graph) -> None:
    """Versions of ComfyUI differ in whether they look up a choice before anything runs."""
    status, answer = server.post("/prompt", {"prompt": changed(prepare, find={"detector": "no-such"})})
    told = answer["error"]["details"] if status == 400 else server.wait(answer["prompt_id"]).error
    assert re.search("no model 'no-such' in .*owlv2|detector: 'no-such' not in .*my-owl", told), answer


def test_a_token_twice_and_a_layout_that_cannot_be_are_told(server: Server, prepare: Graph) -> None:
    graph = changed(prepare, subject={"subjects": ["again", 0]})
    graph["again"] = prepare["subject"]
    assert "The token 'olis' is used by two subjects" in server.wait(server.queue(graph)).error
    for inputs, words in (
        ({"width": 100}, "multiples of 8"),
        ({"mode": "from text", "text": "left and right"}, "not valid JSON"),
        ({"mode": "given boxes"}, "2 subjects but 0 boxes"),
        ({"relative_sizes": "rex:olis=1:2"}, "'rex', but the subjects are: olis, hta"),
    ):
        assert words in server.wait(server.queue(changed(STARTED, layout=inputs))).error


def test_cancel_stops_a_node_of_ours_and_the_server_goes_on(server: Server) -> None:
    graph = changed(STARTED, layout={"width": 512, "height": 512}, latent={"batch_size": 64})
    run = server.cancel(graph, "latent", total=64)
    assert run.messages["execution_interrupted"]["node_id"] == "latent"
    server.run(STARTED)


def test_the_log_has_no_warning_of_ours(server: Server) -> None:
    start = server.log().split("To see the GUI go to", 1)[0]
    ours = [line for line in start.splitlines() if re.search("mudi", line, re.IGNORECASE)]
    allowed = re.compile(
        r"(\[INFO\])?(\s*[\d.]+ seconds: .*custom_nodes.mudi$|.*extra search path .*|.*(directory|path): .*)"
    )
    assert [line for line in ours if not allowed.fullmatch(line)] == []
    assert "IMPORT FAILED): " + str(server.base / "custom_nodes" / "mudi") not in start
