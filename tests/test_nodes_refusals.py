"""What cannot be, through ComfyUI's own validation and executor: a sentence on the node, and nothing is left behind."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui import Comfy
from comfyui_server import Graph, Run, changed
from models import random_lora, random_residual

MINI = "mini (embedded)"
AT_ONCE = {
    *("MudiLayoutParts", "MudiSubject", "MudiSubjectPrompt", "MudiNoise", "MudiTrainSettings"),
    *("MudiSamplerSettings", "MudiSeeds"),
    *("MudiWatermark", "MudiFindWatermark", "MudiMiniLora"),
    *("MudiLoraSubject", "MudiSeparateLoras", "MudiRegionalPrompts", "MudiLayoutGuidance"),
    *("MudiReferenceAdapter", "MudiResidualToken"),
}
"""They hand on what is there: nothing to wait for and nothing to cancel."""
ELSEWHERE = {
    *("MudiAskLayout", "MudiDetail", "MudiFuseLoras", "MudiFindSeed", "MudiTrainPreview", "MudiMakePriors"),
    *("MudiSubjectsFromLoras", "MudiBestPictures", "MudiTrainResidual"),
}
"""One waits for a language model, the others sample: their own tests have what they need."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


EVERYTHING: Graph = {
    "checkpoint": node("MudiMiniCheckpoint"),
    "photos": node("MudiMiniPhotos", pair="?", count=2, side=192, seed=0),
    "folder": node("MudiLoadPhotos", folder="shots"),
    "find": node(
        "MudiDetectSubjects",
        photos=["photos", 0],
        query=["photos", 3],
        detector=MINI,
        threshold=0.03,
        which="best",
        download=False,
    ),
    "cut": node("MudiSamMask", photos=["photos", 0], boxes=["find", 0], segmenter=MINI, download=False),
    "subject": node("MudiSubject", photos=["photos", 0], masks=["cut", 0], token="olis", class_noun="cat", captions=""),
    "at_once": node(
        "MudiSubjectFromPhotos",
        **{"folder": "shots", "token": "olis", "class_noun": "cat", "query": "", "detector": MINI, "segmenter": MINI},
        **{"threshold": 0.03, "which": "best", "download": False},
    ),
    "parts": node("MudiLayoutParts", layout=["layout", 0], shape="figure", grow=0),
    "keep": node("MudiSaveSubjectSet", subjects=["subject", 0], name="kept"),
    "load": node("MudiLoadSubjectSet", name="both"),
    "dataset": node(
        "MudiSegMixDataset",
        subjects=["load", 0],
        probability=0.3,
        relative_sizes="",
        overlap=0.2,
        background_weight=1.0,
    ),
    "train": node(
        "MudiTrainLora",
        model=["checkpoint", 0],
        clip=["checkpoint", 1],
        vae=["checkpoint", 2],
        dataset=["dataset", 0],
        name="cancelled",
        method="segmix",
        preset="mini, 192 px",
        steps=1,
        rank=2,
        learning_rate=1e-3,
        batch_size=1,
        seed=0,
    ),
    "settings": node(
        "MudiTrainSettings",
        learning="as in Train LoRA",
        memory="as in Train LoRA",
        optimizer="adamw",
        schedule="constant",
        warm_up=0,
        accumulation=1,
        alpha=0.0,
        min_snr_gamma=0.0,
        noise_offset=0.0,
        kl_weight=0.0,
        buckets=False,
        save_every=0,
        resolution=0,
        start_from="none",
    ),
    "prompt": node(
        "MudiSubjectPrompt",
        lora_name="none",
        text="a photo of {subjects}",
        kind="",
        every_order=False,
        negative="",
        subjects=["load", 0],
    ),
    "layout": node(
        "MudiLayout",
        subjects=["load", 0],
        width=192,
        height=128,
        mode="random",
        seed=0,
        relative_sizes="",
        overlap=0.4,
    ),
    "latent": node("MudiInitLatent", layout=["layout", 0], vae=["checkpoint", 2], gamma=1.0, batch_size=2, seed=0),
    "score": node(
        "MudiCompare",
        images=["photos", 0],
        subjects=["load", 0],
        detector=MINI,
        embedder=MINI,
        threshold=0.03,
        query="",
        cut_out=True,
        download=False,
    ),
}
"""Every node of ours that does something."""
NODES = {about["class_type"]: name for name, about in EVERYTHING.items()}


@pytest.fixture(scope="module")
def graph(comfy: Comfy, mini_weights: None, drawn_dataset: Path) -> Graph:
    shutil.copytree(drawn_dataset, comfy.base / "input" / "both", dirs_exist_ok=True)
    photos = shutil.ignore_patterns("*.jsonl")
    shutil.copytree(drawn_dataset, comfy.base / "input" / "shots", ignore=photos, dirs_exist_ok=True)
    random_lora(comfy.base / "models" / "loras" / "taught.safetensors")
    random_residual(comfy.base / "models" / "residual_tokens" / "cat.safetensors", "cat")
    return changed(EVERYTHING, photos={"pair": comfy.module("mini").PAIR_CHOICES[0]})


@pytest.fixture
def cancel(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Presses Cancel when a node of this list is for the first time as far as to move its bar."""
    waiting: list[str] = []
    management, context = comfy.core("comfy.model_management"), comfy.core("comfy_execution.utils")

    def hook(done: int, total: int, preview: Any, node_id: Any = None) -> None:
        if context.get_executing_context().node_id in waiting:
            management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.core("comfy.utils"), "PROGRESS_BAR_HOOK", hook)
    yield waiting
    management.interrupt_current_processing(False)


def files(comfy: Comfy) -> dict[Path, bytes]:
    """Everything that is kept: previews and the trainer's cache are not."""
    kept = (comfy.base / folder for folder in ("input", "output", "models"))
    return {path: path.read_bytes() for folder in kept for path in folder.rglob("*") if path.is_file()}


def told(run: Run, name: str, words: str) -> None:
    """The node is red, with one line that holds these words and ends as a sentence does."""
    assert run.status in ("refused", "error")
    assert run.messages["execution_error"]["node_id"] == name
    assert re.search(words, run.error), run.error
    assert "\n" not in run.error and run.error.endswith("."), run.error


def test_the_graph_has_every_node(comfy: Comfy) -> None:
    assert set(NODES) | AT_ONCE | ELSEWHERE == set(comfy.nodes)


@pytest.mark.parametrize("node_id", sorted(set(NODES) - AT_ONCE))
def test_cancel_stops_every_node_and_leaves_nothing(
    comfy: Comfy, graph: Graph, cancel: list[str], node_id: str
) -> None:
    comfy.forget()
    name, before = NODES[node_id], files(comfy)
    cancel.append(name)
    run = comfy.queue(graph, name)
    assert run.messages["execution_interrupted"]["node_id"] == name
    assert files(comfy) == before
    cancel.clear()
    assert comfy.queue(graph, name).status == "success"


def test_cancel_while_a_set_is_replaced_leaves_the_old_one(comfy: Comfy, graph: Graph, cancel: list[str]) -> None:
    assert comfy.queue(graph, "keep").status == "success"
    before = files(comfy)
    other = changed(graph, subject={"token": "hta"})
    cancel.append("keep")
    assert "execution_interrupted" in comfy.queue(other, "keep").messages
    assert files(comfy) == before
    cancel.clear()
    assert comfy.queue(other, "keep").outputs["keep"]["text"] == ["hta cat (2 photos)"]


CHOICES = [
    ("photos", "pair", "no pair 'no-such'. Choose one of: 0: "),
    ("folder", "folder", "There is no folder .*no-such"),
    ("find", "detector", "no model 'no-such' in .*owlv2"),
    ("find", "which", "no way to choose 'no-such'. Choose one of: exactly one, best, all"),
    ("cut", "segmenter", "no model 'no-such' in .*sams"),
    ("at_once", "folder", "There is no folder .*no-such"),
    ("at_once", "detector", "no model 'no-such' in .*owlv2"),
    ("at_once", "segmenter", "no model 'no-such' in .*sams"),
    ("at_once", "which", "no way to choose 'no-such'. Choose one of: exactly one, best"),
    ("parts", "shape", "no shape 'no-such'. Choose one of: figure, box"),
    ("load", "name", "no-such is not a dataset"),
    ("train", "method", "no method 'no-such'. Choose one of: segmix, "),
    ("train", "preset", "no preset 'no-such'. Choose one of: .*mini, 192 px"),
    ("train", "loss", "no loss 'no-such'. Choose one of: as the preset, paper, DCO"),
    ("settings", "learning", "no learning 'no-such'. Choose one of: .*quick look, standard, paper"),
    ("settings", "memory", "no memory 'no-such'. Choose one of: .*12 GB, 8 GB, 6 GB"),
    ("settings", "optimizer", "no optimizer 'no-such'. Choose one of: adamw, "),
    ("settings", "schedule", "no schedule 'no-such'. Choose one of: constant, "),
    ("settings", "start_from", "There is no LoRA.*no-such"),
    ("subject", "describe", "no way to describe 'no-such'. Choose one of: offer, take, "),
    ("dataset", "captions", "no style of captions 'no-such'. Choose one of: auto, sentence, tags, "),
    ("prompt", "lora_name", "There is no LoRA.*no-such"),
    ("prompt", "captions", "no style of captions 'no-such'. Choose one of: auto, sentence, tags, "),
    ("layout", "mode", "no mode 'no-such'. Choose one of: random, given boxes, from text, row, grid"),
    ("score", "detector", "no model 'no-such' in .*owlv2"),
    ("score", "embedder", "no model 'no-such' in .*dinov2 or .*dreamsim"),
]


def test_no_choice_of_ours_is_forgotten_here(comfy: Comfy) -> None:
    io = comfy.core("comfy_api.latest").io
    schemas = {name: comfy.node(about["class_type"]).GET_SCHEMA() for name, about in EVERYTHING.items()}
    combos = {
        (name, one.id) for name, schema in schemas.items() for one in schema.inputs if isinstance(one, io.Combo.Input)
    }
    assert combos == {(name, widget) for name, widget, _ in CHOICES}


@pytest.mark.parametrize(("name", "widget", "words"), CHOICES)
def test_a_choice_that_is_none_is_refused(comfy: Comfy, graph: Graph, name: str, widget: str, words: str) -> None:
    before = files(comfy)
    run = comfy.queue(changed(graph, **{name: {widget: "no-such"}}), name)
    if run.status == "refused":  # newer versions of ComfyUI look for themselves
        assert run.messages["execution_error"]["node_id"] == name
        assert f"{widget}: 'no-such' not in" in run.error
    else:
        told(run, name, words)
    assert files(comfy) == before


@pytest.mark.parametrize(
    ("name", "widget", "number", "words"),
    [
        ("photos", "side", -8, "side is -8; it must be 96 to 1024"),
        ("photos", "count", 0, "count is 0; it must be 1 to 32"),
        ("find", "threshold", 2.0, "threshold is 2.0; it must be 0.0 to 1.0"),
        ("dataset", "probability", float("nan"), "probability is nan; it must be 0.0 to 1.0"),
        ("train", "seed", 2**64, "seed is 18446744073709551616; it must be 0 to 18446744073709551615"),
        ("latent", "batch_size", 0, "batch_size is 0; it must be 1 to 64"),
    ],
)
def test_a_number_out_of_range_is_told_where_it_comes_by_a_link(
    comfy: Comfy, graph: Graph, monkeypatch: pytest.MonkeyPatch, name: str, widget: str, number: float, words: str
) -> None:
    """Typed into the widget it is refused by ComfyUI before anything runs."""
    before = files(comfy)
    linked = changed(graph, **{name: {widget: ["number", 0]}})
    linked["number"] = node("Number", value=number)
    monkeypatch.setitem(comfy.stock, "Number", given(type(number).__name__.upper()))
    told(comfy.queue(linked, name), name, words)
    assert files(comfy) == before
    assert comfy.queue(changed(graph, **{name: {widget: -1000}}), name).status == "refused"


def given(kind: str) -> type:
    """A stock node of the older API that gives a number of any size."""
    return type(
        "Number",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": {"value": (kind, {})}}),
            "RETURN_TYPES": (kind,),
            "FUNCTION": "give",
            "give": lambda self, value: (value,),
        },
    )


def test_a_batch_does_where_a_list_is_expected(comfy: Comfy, graph: Graph) -> None:
    batch = {"photos": ["batch", 0]}
    together = changed(graph, photos={"count": 1}, find=batch, cut=batch, subject=batch)
    together["batch"] = node("ImageBatch", image1=["photos", 0], image2=["photos", 0])
    assert comfy.queue(together, "keep").outputs["keep"]["text"] == ["olis cat (2 photos)"]


def test_a_list_where_one_is_expected_is_told(comfy: Comfy, graph: Graph) -> None:
    boxes = changed(graph, layout={"mode": "given boxes", "boxes": ["find", 0]})
    told(
        comfy.queue(boxes, "layout"), "layout", "2 subjects but 1 boxes. Connect one box for each subject, in the order"
    )


def test_a_link_of_another_type_is_refused(comfy: Comfy, graph: Graph) -> None:
    run = comfy.queue(changed(graph, latent={"layout": ["load", 0]}), "latent")
    assert run.status == "refused" and "MUDI_SUBJECTS" in run.error and "MUDI_LAYOUT" in run.error


BAD = {
    "a photo without its subject": ("find", {"find": {"threshold": 1.0}}, "photo 1: no 'cat' was found .*Lower the"),
    "no detector": ("find", {"find": {"detector": "owlv2-base"}}, "https://huggingface.co/google/owlv2.*models.owlv2"),
    "no segmenter": ("cut", {"cut": {"segmenter": "sam-vit-h"}}, "https://.*sam_vit_h_4b8939.pth.*models.sams"),
    "no embedder": ("score", {"score": {"embedder": "dinov2-base"}}, "https://.*facebook/dinov2-base.*models.dinov2"),
    "one token twice": ("subject", {"subject": {"subjects": ["load", 0]}}, "'olis' is used by two subjects"),
    "a token of two words": ("subject", {"subject": {"token": "my cat"}}, "a token of one word"),
    "a LoRA with a path": ("train", {"train": {"name": "../../evil"}}, "cannot be the name of a LoRA.*without a path"),
    "a set with a path": ("keep", {"keep": {"name": "/etc/evil"}}, "cannot be the name of a dataset.*without a path"),
    "photos with a path": ("folder", {"folder": {"folder": ".."}}, "cannot be the name of a folder of photos"),
    "a size that is none": ("layout", {"layout": {"width": 100}}, "multiples of 8"),
    "sizes of nobody": ("dataset", {"dataset": {"relative_sizes": "rex:hta=1:2"}}, "'rex'.*olis, hta"),
}
"""The node, what is wrong with the graph, and what is said of it."""


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_told_on_the_node_and_leaves_nothing(comfy: Comfy, graph: Graph, case: str) -> None:
    name, inputs, words = BAD[case]
    before = files(comfy)
    told(comfy.queue(changed(graph, **inputs), name), name, words)
    assert files(comfy) == before
    assert comfy.queue(graph, "folder").status == "success"
