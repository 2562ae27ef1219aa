"""Workflows that anybody saved still open: what earlier versions of our own wrote down of each node is taken today.

A new set of widgets in ``workflows/`` is added to ``old_workflows.json`` when it is published; none is ever taken out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfyui import Comfy
from test_interface import OF_THIS_COMPUTER

SAVED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "old_workflows.json").read_text(encoding="utf-8"))
"""Each node that ever stood in a workflow of ours, as often as its widgets or sockets differed."""
CONTROLS = ("fixed", "randomize", "increment", "decrement")


def widgets(comfy: Comfy, saved: dict[str, Any]) -> dict[str, Any]:
    """Give a node's saved values to today's widgets, in their order as the frontend does; later ones have defaults."""
    given, values = iter(saved["widgets"]), {}
    for one in comfy.node(saved["type"]).GET_SCHEMA().inputs:
        if one.get_io_type() in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not getattr(
            one, "force_input", None
        ):
            left = list(given)
            assert left or one.default is not None or one.options, f"{one.id} has neither a value nor a default"
            if not left:
                break
            values[one.id], given = left[0], iter(left[1:])
            if getattr(one, "control_after_generate", None):
                assert next(given) in CONTROLS, one.id
    assert list(given) == [], "more values than widgets"
    return values


@pytest.mark.parametrize("saved", SAVED, ids=lambda saved: f"{saved['type']}-{len(saved['widgets'])}")
def test_each_value_and_socket_of_a_saved_workflow_is_taken(comfy: Comfy, saved: dict[str, Any]) -> None:
    schema = comfy.node(saved["type"]).GET_SCHEMA()
    inputs = {one.id: one for one in schema.inputs}
    kinds = {"INT": (int,), "FLOAT": (int, float), "STRING": (str,), "BOOLEAN": (bool,), "COMBO": (str,)}
    for name, value in widgets(comfy, saved).items():
        one = inputs[name]
        assert isinstance(value, kinds[one.get_io_type()]), name
        if one.get_io_type() in ("INT", "FLOAT"):
            assert not isinstance(value, bool) and one.min <= value <= one.max, name
        if one.get_io_type() == "COMBO" and (name not in OF_THIS_COMPUTER or "(" in value):
            assert value in one.options, name
    for name, kind in saved["inputs"]:
        assert name in inputs and (inputs[name].get_io_type() == kind or kind == "*"), name
    given = [kind if isinstance(kind := one.get_io_type(), str) else "COMBO" for one in schema.outputs]
    assert given[: len(saved["outputs"])] == saved["outputs"]


def test_the_workflows_of_today_are_among_them() -> None:
    known = {json.dumps([one["type"], one["widgets"]]) for one in SAVED}
    for path in sorted((Path(__file__).parent.parent / "workflows").glob("*.json")):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"].startswith("Mudi"):
                now = json.dumps([node["type"], node.get("widgets_values") or []])
                assert now in known, f"{path.name}: add {now} to old_workflows.json"
