"""Subgraph blueprints: parts of a graph that newer ComfyUI offers as one node, and which older ones open as a graph."""

from __future__ import annotations

import json
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest
from comfyui_server import ROOT, Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "subgraphs"
NAMES = ("MuDI Prepare", "MuDI Train", "MuDI Generate", "MuDI Compare")
INPUT, OUTPUT = -10, -20
"""The ids of a subgraph's own ends."""


BESIDE = ("control_after_generate", "upload")
"""Values that the frontend keeps beside those of a node's widgets."""


def _is_widget(about: dict[str, dict[str, Any]], name: str) -> bool:
    kind, *more = {**about.get("required", {}), **about.get("optional", {})}[name]
    plain = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return plain and not (more and more[0].get("forceInput"))


def blueprint(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one node of a file, and the subgraph behind it."""
    whole = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    (node,), (inside,) = whole["nodes"], whole["definitions"]["subgraphs"]
    return node, inside


def test_there_are_no_others() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_blueprint_is_one_node_whose_wires_and_widgets_exist(comfyui_server: Server, name: str) -> None:
    node, inside = blueprint(name)
    assert node["type"] == inside["id"] and node["title"] == inside["name"] == name
    assert inside["category"] == "MuDI" and inside["description"].endswith(".")
    nodes = {one["id"]: one for one in inside["nodes"]}
    for link in inside["links"]:
        origin = inside["inputs"] if link["origin_id"] == INPUT else nodes[link["origin_id"]]["outputs"]
        target = inside["outputs"] if link["target_id"] == OUTPUT else nodes[link["target_id"]]["inputs"]
        given, taken = origin[link["origin_slot"]], target[link["target_slot"]]
        assert given["type"] == link["type"] and taken["type"] == given["type"]
        assert link["target_id"] == OUTPUT or taken["link"] == link["id"]
    for ends, ours in ((inside["inputs"], node["inputs"]), (inside["outputs"], node["outputs"])):
        assert [(one["name"], one["type"]) for one in ends] == [(one["name"], one["type"]) for one in ours]
    known = comfyui_server.get("/object_info")
    for one in nodes.values():
        about = known[one["type"]]["input"]
        wanted = [*about.get("required", {}), *about.get("optional", {})]
        # All of them, as frontends order them: older ones look for a widget at its number, before they add what lacks.
        assert [socket["name"] for socket in one["inputs"]] == sorted(wanted, key=lambda name: _is_widget(about, name))
        named, values = one.get("widgets_values_named"), one.get("widgets_values", [])
        if named is not None and one["type"].startswith("Mudi"):
            widgets = [name for name in named if name not in BESIDE]
            assert set(widgets) == {name for name in wanted if _is_widget(about, name)} and len(named) == len(values)
    shown = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    # Wired to the widgets inside, not only named by their nodes: newer frontends show no others.
    assert [["-1", name] for name in shown] == node["properties"]["proxyWidgets"]
    assert len(node["widgets_values"]) == len(shown) > 0
    # Frontends stop drawing the graph at a choice that is nothing.
    assert None not in [value for one in (node, *nodes.values()) for value in one.get("widgets_values") or []]
    assert not [one for one in nodes.values() if None in (one.get("widgets_values_named") or {}).values()]
    for link in inside["links"]:
        if link["origin_id"] == INPUT and inside["inputs"][link["origin_slot"]]["name"] in shown:
            assert "widget" in nodes[link["target_id"]]["inputs"][link["target_slot"]]


def test_newer_comfyui_offers_them(comfyui_server: Server) -> None:
    try:
        offered = comfyui_server.get("/global_subgraphs").values()
    except urllib.error.HTTPError as error:
        assert error.code == 404
        pytest.skip("this ComfyUI knows no blueprints: it starts as if there were none")
    assert {one["name"] for one in offered if one["source"] == "custom_node"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_opens_as_a_workflow_where_blueprints_are_unknown_too(page: Page, name: str) -> None:
    """As an artist drops it into the page: one node with its widgets and their values, which a run would have."""
    node, inside = blueprint(name)
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    page.evaluate(
        "async ([name, text]) => app.handleFile(new File([text], name, {type: 'application/json'}))",
        [f"{name}.json", text],
    )
    page.wait_for_function("title => app.graph.nodes.length === 1 && app.graph.nodes[0].title === title", arg=name)
    shown = [socket["name"] for socket in node["inputs"] if "widget" in socket]
    widgets = page.evaluate("() => app.graph.nodes[0].widgets.map(widget => [widget.name, widget.value])")
    assert widgets == [list(one) for one in zip(shown, node["widgets_values"], strict=True)]
    sent = page.evaluate("async () => Object.values((await app.graphToPrompt()).output)")
    assert [one["class_type"] for one in sent] == [one["type"] for one in inside["nodes"]]
    for one, saved in zip(sent, inside["nodes"], strict=True):
        for key, value in (saved.get("widgets_values_named") or {}).items():
            assert key in BESIDE or one["inputs"][key] == value, (saved["type"], key)
