"""Whatever a node's widgets are given, typed or by a link, it does its work or refuses in a sentence.

Ten cases a node; `bash quickstart.sh test tests/test_nodes_laws.py --hypothesis-profile=long` tries five hundred.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui import Comfy
from comfyui_server import Graph, changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_nodes_refusals import EVERYTHING, MINI, files, graph, node

__all__ = ["graph"]

JUDGES = {"detector": MINI, "embedder": MINI, "threshold": 0.03, "cut_out": True, "download": False}
SAMPLED = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "seed": 0}
WORDS = {"positive": ["words", 0], "negative": ["words", 0]}
MODELS = {"model": ["checkpoint", 0], "vae": ["checkpoint", 2]}
PLACED = {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "strength": 0.5, "layout": ["layout", 0]}
MORE: Graph = {
    "taught": node("MudiLoraSubject", lora_name="taught.safetensors", subject="", strength=1.0, text_strength=1.0),
    "fuse": node(
        "MudiFuseLoras",
        **{"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "loras": ["taught", 0], "name": "fused"},
        **{"method": "sum", "rank": 0, "pictures": 1, "steps": 1, "width": 64, "height": 64, "seed": 0},
    ),
    "from_loras": node(
        "MudiSubjectsFromLoras",
        **{"clip": ["checkpoint", 1], "loras": ["taught", 0], "count": 2, "spare": 0, "width": 64, "height": 64},
        **{"scenes": "at sea", "negative": "", "segmenter": MINI, **MODELS, **SAMPLED},
        **{name: value for name, value in JUDGES.items() if name != "cut_out"},
    ),
    "separate": node("MudiSeparateLoras", loras=["taught", 0], rest=0.0, **PLACED),
    "regions": node("MudiRegionalPrompts", prompts="a photo of {}", **PLACED),
    "guidance": node(
        "MudiLayoutGuidance", prompt="a photo of olis cat and hta cat", pull=2.5, push=2.5, words="", **PLACED
    ),
    "token": node(
        "MudiResidualToken",
        **{"conditioning": ["words", 0], "clip": ["checkpoint", 1], "prompt": "a photo of olis cat and hta cat"},
        **{"residual": "cat.safetensors", "strength": 1.0, "occurrence": 1},
    ),
    "ready": node("MudiMiniLora", model=["checkpoint", 0], train=False, subjects=["load", 0]),
    "reference": node(
        "MudiReferenceAdapter", adapter="embedded (drawn toys only)", where="places and words", photos=1, **PLACED
    ),
    "sampler": node("MudiSamplerSettings", model=["checkpoint", 0]),
    "seeds": node("MudiSeeds", seed=0, count=2),
    "mark": node("MudiWatermark", images=["photos", 0], key="words", strength=1.0),
    "marked": node("MudiFindWatermark", images=["photos", 0], key="words"),
    "words": node("CLIPTextEncode", clip=["checkpoint", 1], text="a photo of olis cat and hta cat"),
    "ask": node(
        "MudiAskLayout",
        **{"subjects": ["load", 0], "prompt": "at sea", "width": 192, "height": 192, "ask": False},
        **{"endpoint": "", "model": "", "timeout": 1.0, "seed": 0},
    ),
    "watch": node("MudiTrainPreview", layout=["layout", 0], every=1, count=1, **WORDS, **{**SAMPLED, **JUDGES}),
    "best": node(
        "MudiFindSeed",
        **{"layout": ["layout", 0], "count": 1, "keep": 1, "vary_places": True, "gamma": 1.0, "query": ""},
        **{**MODELS, **WORDS, **SAMPLED, **JUDGES},
    ),
    "pictures": node(
        "MudiBestPictures",
        **{"layout": ["layout", 0], "clip": ["checkpoint", 1], "prompts": "at sea", "negative": "", "count": 1},
        **{"keep": 1, "per_prompt": 0, "least": 1, "gamma": 1.0, "query": "", "name": "best"},
        **{**MODELS, **SAMPLED, **JUDGES},
    ),
    "detail": node(
        "MudiDetail",
        **{"images": ["photos", 0], "subjects": ["load", 0], "clip": ["checkpoint", 1], "prompt": "{name}"},
        **{"negative": "", "denoise": 0.5, "side": 64, "margin": 0.2, "feather": 0.0, "only_better": True},
        **{"segmenter": MINI, "query": "", **MODELS, **SAMPLED, **JUDGES},
    ),
    "priors": node(
        "MudiMakePriors",
        **{"clip": ["checkpoint", 1], "subjects": ["load", 0], "count": 1, "width": 64, "height": 64},
        **{"prompt": "a photo of a {}", "negative": "", "detector": MINI, "segmenter": MINI, "threshold": 0.0},
        **{**MODELS, **SAMPLED, "download": False},
    ),
}
TRIED = {**EVERYTHING, **MORE}.keys() - {"checkpoint", "words"}
"""Mini Checkpoint has no widgets, and the words are a stock node's."""
LEFT = {"download", "ask"}
"""Widgets that stay as they are: nothing is fetched here, and nobody asked."""
HOSTILE = ("", " ", "..", "../evil", "/etc/evil", "C:\\evil", "a/b", "%2e%2e", "\x00", "\n", "a=1:2", "{}", "1e999")
KINDS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
numbers = itertools.count()


@pytest.fixture
def fed(comfy: Comfy) -> Iterator[dict[int, Any]]:
    """Stock nodes of the older API that give one of these values, whatever its kind: ``Fed INT`` and so on.

    What was saved meanwhile is removed, the trainer's cache too: other tests train and save the same.
    """
    held: dict[int, Any] = {}
    before = files(comfy)
    for kind in KINDS:
        comfy.stock[f"Fed {kind}"] = type(
            "Fed",
            (),
            {
                "INPUT_TYPES": classmethod(lambda cls: {"required": {"number": ("INT", {})}}),
                "RETURN_TYPES": (kind,),
                "FUNCTION": "give",
                "give": lambda self, number: (held[number],),
            },
        )
    yield held
    for kind in KINDS:
        del comfy.stock[f"Fed {kind}"]
    comfy.forget()
    for file in files(comfy).keys() - before.keys():
        file.unlink()
    shutil.rmtree(comfy.base / "user" / "__mudi", ignore_errors=True)


def values(io: Any, widget: Any, now: Any, choices: bool) -> st.SearchStrategy[Any] | None:
    """What a widget may be given: in its range near what it is now, or out of it. None where it has no widget."""
    words = st.text(max_size=40) | st.sampled_from(HOSTILE)
    if widget.id in LEFT:
        return None
    if isinstance(widget, io.Int.Input):
        near = [now, now + 1] if isinstance(now, int) else []
        return st.sampled_from([*near, widget.min, widget.min - 1, widget.max + 1, -(2**70), 2**70])
    if isinstance(widget, io.Float.Input):
        return st.floats() | st.floats(widget.min, widget.max) | st.sampled_from([widget.min, widget.max])
    if isinstance(widget, io.Combo.Input):
        return st.sampled_from(widget.options) | words if choices else words
    if isinstance(widget, io.Boolean.Input):
        return st.booleans()
    return words if isinstance(widget, io.String.Input) else None


@pytest.mark.parametrize("name", sorted(TRIED))
def test_whatever_it_is_given_it_does_or_refuses_in_a_sentence(
    comfy: Comfy, graph: Graph, fed: dict[int, Any], name: str
) -> None:
    io = comfy.core("comfy_api.latest").io
    whole = changed({**graph, **MORE})
    node_id, now = whole[name]["class_type"], whole[name]["inputs"]
    # A preset may ask for a thousand steps, and not every stock sampler can do with one.
    drawn = {
        widget.id: values(io, widget, now.get(widget.id), name not in ("train", "best", "priors", "pictures"))
        for widget in comfy.node(node_id).GET_SCHEMA().inputs
    }
    drawn = {widget: value for widget, value in drawn.items() if value is not None}
    kinds = {widget.id: widget.get_io_type() for widget in comfy.node(node_id).GET_SCHEMA().inputs}

    @settings(
        max_examples=settings.default.max_examples // 10,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(st.fixed_dictionaries({}, optional=drawn), st.sampled_from([None, *drawn]), st.data())
    def law(given: dict[str, Any], linked: str | None, data: st.DataObject) -> None:
        asked = changed(whole, **{name: given})
        if linked:
            number = next(numbers)
            fed[number] = data.draw(drawn[linked])
            asked[name]["inputs"][linked] = ["fed", 0]
            asked["fed"] = node(f"Fed {kinds[linked]}", number=number)
        kept, around = files(comfy), set(comfy.base.parent.iterdir())
        run = comfy.queue(asked, name)
        if run.status != "success":
            error = run.messages["execution_error"]
            assert error["node_id"] == name, error
            assert run.error, error
            if run.status == "error":  # Python's own say nothing to whoever reads them
                assert error["exception_type"].startswith(("mudi_core.", "mudi_pack.")), error
        if name == "pictures":  # too few that are sound is a refusal, after which one may want to see them
            mine = comfy.base / "output" / "mudi"
            assert all(mine in file.parents for file in files(comfy).keys() ^ kept.keys())
        elif run.status != "success" or name not in ("keep", "train"):
            assert files(comfy) == kept
        assert set(comfy.base.parent.iterdir()) == around and not Path("/etc/evil").exists()

    law()


def test_every_node_is_tried(comfy: Comfy) -> None:
    """But for one without widgets, Noise, which has a seed alone, and one that trains at any number of steps."""
    tried = {about["class_type"] for name, about in {**EVERYTHING, **MORE}.items() if name in TRIED}
    assert set(comfy.nodes) - tried == {"MudiMiniCheckpoint", "MudiNoise", "MudiTrainResidual"}
