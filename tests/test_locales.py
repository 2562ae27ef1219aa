"""Every other language is complete: each node with all its inputs and outputs, as ComfyUI's frontend reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comfyui import Comfy

LANGUAGES = sorted((Path(__file__).parent.parent / "locales").iterdir())


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda folder: folder.name)
def test_every_node_is_translated_wholly(comfy: Comfy, language: Path) -> None:
    told = json.loads((language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(told) == set(comfy.nodes)
    for node_id, node in comfy.nodes.items():
        schema, about = node.GET_SCHEMA(), told[node_id]
        assert about["display_name"].endswith(" (MuDI)") and about["description"], node_id
        assert list(about["inputs"]) == [one.id for one in schema.inputs], node_id
        assert list(about["outputs"]) == [str(number) for number in range(len(schema.outputs))], node_id
        for words in (*about["inputs"].values(), *about["outputs"].values()):
            assert words["name"].strip() and words["tooltip"].strip(), node_id
        assert about["description"] != schema.description, node_id
