"""The face that saved workflows know: a change of it is a decision.

What is there may get more inputs at its end that are optional or have a default, and more outputs at its end; anything
else needs a NodeReplace, or it breaks graphs. Once decided, `MUDI_FREEZE=1 bash quickstart.sh test
tests/test_interface.py` writes the file anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from comfyui import Comfy

FROZEN = Path(__file__).parent / "interface.json"
OF_THIS_COMPUTER = {
    *("folder", "name", "lora_name", "start_from", "pair", "detector", "segmenter", "embedder"),
    *("adapter", "residual"),
    *("sampler_name", "scheduler"),
}
"""Choices that are made of folders, that ComfyUI has, or that a toy world grows: not their names are the interface."""


def face(node: Any) -> dict[str, Any]:
    """Of a node: its inputs and outputs in their order, with what a saved workflow depends on."""
    schema = node.GET_SCHEMA()
    inputs = []
    for one in schema.inputs:
        about = {"id": one.id, "type": one.get_io_type(), "optional": one.optional}
        for key in ("default", "options", "min", "max"):
            value = getattr(one, key, None)
            if value is not None and not (key == "options" and one.id in OF_THIS_COMPUTER):
                about[key] = value
        inputs.append(about)
    # The kind of an output for a widget of choices is the list of them.
    kinds = [one.get_io_type() for one in schema.outputs]
    kinds = ["COMBO" if isinstance(kind, list) else kind for kind in kinds]
    outputs = [[one.display_name, kind, one.is_output_list] for one, kind in zip(schema.outputs, kinds, strict=True)]
    return {"category": schema.category, "name": schema.display_name, "inputs": inputs, "outputs": outputs}


def test_no_node_has_another_face_than_workflows_know(comfy: Comfy) -> None:
    now = json.loads(json.dumps({node_id: face(node) for node_id, node in sorted(comfy.nodes.items())}))
    if os.environ.get("MUDI_FREEZE"):
        FROZEN.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    then = json.loads(FROZEN.read_text(encoding="utf-8"))
    assert list(now) == list(then), "a node came, went or has another id"
    for node_id, frozen in then.items():
        assert now[node_id] == frozen, f"{node_id} has another face"
