"""Nothing that a node shows is live in ComfyUI's page, whatever stands in files, names and answers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from safetensors.torch import save_file

from mudi_core.lora.metadata import lora_metadata
from mudi_core.train.config import TrainConfig
from mudi_core.types import MudiError, SubjectSet

MARKUP = "<img/src=x/onerror=alert(1)>"
LINK = "[[free|https://evil.example/x]]"
HOSTILE = [MARKUP, LINK, "&lt;img&gt;", "https://evil.example", "www.evil.example", "__LNK7__", "\x1b[2J", "a\u202etxt"]
LIVE = re.compile(r"[<>\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINKED = re.compile(r"(https?|ftp|file)://|www\.|\[\[|__LNK", re.IGNORECASE)
"""What the frontends of ComfyUI 0.3.64 and 0.33.0 make links of."""


def is_live(text: str, links: bool = False) -> bool:
    return bool(LIVE.search(text) or unescape(text) != text or (not links and LINKED.search(text)))


@pytest.fixture
def shown(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every line that goes to the page beside the nodes' own outputs."""
    lines: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, node_id: lines.append(text))
    host = comfy.module("host")
    monkeypatch.setattr(host, "get_executing_context", lambda: SimpleNamespace(node_id="1"))
    monkeypatch.setitem(host.sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    yield lines


def run(comfy: Comfy, node_id: str, shown: list[str], **inputs: Any) -> Any:
    """A node's output, or None where it refuses; nothing that it shows or tells is live."""
    shown.clear()
    try:
        output = comfy.run(node_id, **inputs)
    except MudiError as error:
        assert not is_live(str(error), links=True), error
        output = None
    texts = list((output.ui or {}).get("text", ())) if output is not None else []
    assert not any(is_live(text) for text in [*shown, *texts]), [*shown, *texts]
    return output


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_plain_and_still_read(comfy: Comfy, text: str) -> None:
    plain = comfy.module("host").plain
    assert is_live(text) and not is_live(plain(text)) and len(plain(text)) == len(text)
    assert plain("2 cats: olis cat\n41 % (0.5)") == "2 cats: olis cat\n41 % (0.5)"
    assert plain(plain(text)) == plain(text)


@pytest.fixture
def hostile_set(comfy: Comfy, drawn_dataset: Path) -> Iterator[str]:
    """A dataset whose names are markup."""
    folder = comfy.base / "input" / "hostile"
    shutil.copytree(drawn_dataset, folder, dirs_exist_ok=True)
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("olis cat", f"olis {MARKUP}"), encoding="utf-8")
    yield folder.name
    shutil.rmtree(folder)


def test_a_set_with_markup_for_names_is_shown_plainly_by_every_node_after_it(
    comfy: Comfy,
    shown: list[str],
    hostile_set: str,
    drawn_subjects: SubjectSet,
    mini_weights: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(comfy, "MudiLoadSubjectSet", shown, name=hostile_set) is None  # and if a name came by another way:
    for subject in drawn_subjects.subjects:
        monkeypatch.setitem(vars(subject), "class_noun", MARKUP)
    subjects = drawn_subjects
    everybody = {"subjects": subjects, "width": 192, "height": 128}
    prompt = {"kind": MARKUP, "every_order": False, "negative": MARKUP, "text": LINK + " {subjects}"}
    output = run(comfy, "MudiSubjectPrompt", shown, lora_name="none", subjects=subjects, **prompt)
    assert MARKUP in output.result[0][0]  # the prompt itself is what the user wrote
    layout = {"mode": "random", "seed": 0, "relative_sizes": "", "overlap": 0.4}
    assert run(comfy, "MudiLayout", shown, **everybody, **layout) is not None
    for text in (MARKUP, f'{{"a{MARKUP}": [0, 0, 1, 1]}}'):
        assert run(comfy, "MudiLayout", shown, **everybody, **{**layout, "mode": "from text", "text": text}) is None
    where = {"endpoint": f"http://127.0.0.1:9/{MARKUP}", "model": MARKUP, "timeout": 3.0, "seed": 0}
    run(comfy, "MudiAskLayout", shown, **everybody, prompt=MARKUP, ask=True, **where)
    run(comfy, "MudiAskLayout", shown, **everybody, prompt=MARKUP, ask=False, **where)
    options = {"detector": "mini (embedded)", "embedder": "mini (embedded)", "threshold": 0.03, "cut_out": True}
    lists = {"images": torch.rand(1, 128, 192, 3), "subjects": subjects, "query": MARKUP, "download": False, **options}
    assert run(comfy, "MudiCompare", shown, **{name: [value] for name, value in lists.items()}) is not None
    settings = {"probability": 0.3, "relative_sizes": "", "overlap": 0.2, "background_weight": 1.0}
    assert run(comfy, "MudiSegMixDataset", shown, subjects=subjects, **settings) is not None
    assert run(comfy, "MudiSegMixDataset", shown, subjects=subjects, **{**settings, "relative_sizes": MARKUP}) is None


def test_names_of_files_and_folders_are_refused_plainly(comfy: Comfy, shown: list[str]) -> None:
    assert run(comfy, "MudiLoadSubjectSet", shown, name=MARKUP) is None
    assert run(comfy, "MudiLoadPhotos", shown, folder=MARKUP) is None
    prompt = {"text": "", "kind": "", "every_order": False, "negative": ""}
    assert run(comfy, "MudiSubjectPrompt", shown, lora_name=MARKUP, **prompt) is None
    assert run(comfy, "MudiMiniPhotos", shown, pair=MARKUP, count=1, side=96, seed=0) is None
    assert comfy.node("MudiTrainLora").validate_inputs(name=MARKUP) is not True
    assert not is_live(comfy.node("MudiTrainLora").validate_inputs(name=MARKUP), links=True)


@pytest.mark.parametrize("base", [MARKUP, "x" * 300, "a\x1b[2Jb", "two\nlines"])
def test_a_lora_whose_base_is_no_name_is_refused(
    comfy: Comfy, shown: list[str], drawn_subjects: SubjectSet, base: str
) -> None:
    about = lora_metadata(TrainConfig(resolution=192).described(), drawn_subjects, base=base, plan_hash="")
    path = comfy.base / "models" / "loras" / "hostile.safetensors"
    save_file({"x": torch.zeros(1)}, path, about)
    prompt = {"text": "", "kind": "", "every_order": False, "negative": ""}
    assert run(comfy, "MudiSubjectPrompt", shown, lora_name=path.name, **prompt) is None
    path.unlink()


def test_no_progress_is_left_as_a_result(comfy: Comfy, shown: list[str], random_mini: None) -> None:
    pair = comfy.module("mini").PAIR_CHOICES[0]
    for node_id, inputs in (("MudiMiniCheckpoint", {}), ("MudiMiniPhotos", {"pair": pair, "count": 1, "side": 96})):
        run(comfy, node_id, shown, **inputs, **({"seed": 0} if inputs else {}))
        assert any(re.search(r"\d+ / \d+", line) for line in shown)
        assert not re.search(r"\d+ / \d+", shown[-1]), shown[-1]
