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
from test_nodes_refusals import ELSEWHERE, EVERYTHING, NODES, files, graph, node

__all__ = ["graph"]

MARK = {
    "mark": node("MudiWatermark", images=["photos", 0], key="words", strength=1.0),
    "marked": node("MudiFindWatermark", images=["photos", 0], key="words"),
}
LEFT = {"download"}
"""Widgets that stay as they are: nothing is fetched here."""
HOSTILE = (
    "",
    " ",
    "..",
    "../evil",
    "/etc/evil",
    "C:\\evil",
    "a/b",
    "%2e%2e",
    "\x00",
    "\n",
    "a=1:2",
    "{}",
    "[",
    "1e999",
)
numbers = itertools.count()


KINDS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


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


@pytest.mark.parametrize("name", sorted({**EVERYTHING, **MARK}.keys() - {"checkpoint"}))
def test_whatever_it_is_given_it_does_or_refuses_in_a_sentence(
    comfy: Comfy, graph: Graph, fed: dict[int, Any], name: str
) -> None:
    io = comfy.core("comfy_api.latest").io
    whole = changed({**graph, **MARK})
    node_id, now = whole[name]["class_type"], whole[name]["inputs"]
    # A preset may ask for a thousand steps.
    drawn = {
        widget.id: values(io, widget, now.get(widget.id), name != "train")
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
        if run.status != "success" or name not in ("keep", "train"):
            assert files(comfy) == kept
        assert set(comfy.base.parent.iterdir()) == around and not Path("/etc/evil").exists()

    law()


def test_every_node_with_widgets_is_tried_here_or_is_tested_elsewhere(comfy: Comfy) -> None:
    tried = set(NODES) | {about["class_type"] for about in MARK.values()}
    assert set(comfy.nodes) - tried == ELSEWHERE | {"MudiNoise"}
