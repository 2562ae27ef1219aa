"""The subjects' prompt, from a LoRA's metadata or from the set, and what a language model is asked of their places."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from comfyui import Comfy
from safetensors.torch import save_file

from mudi_core.lora.metadata import lora_metadata
from mudi_core.stage import ask
from mudi_core.stage.layout_text import Place, parse_places
from mudi_core.train.config import TrainConfig
from mudi_core.types import MudiError, SubjectSet

PLACES = {"olis": Place((0.0, 0.2, 0.45, 1.0)), "hta": Place((0.5, 0.2, 1.0, 1.0), mirror=True, depth=1.0)}
WHERE = {"endpoint": "http://127.0.0.1:1/v1", "model": "small", "timeout": 3.0, "seed": 4}


def written(comfy: Comfy, **more: Any) -> Any:
    settings = {"lora_name": "none", "text": "{subjects} at sea", "kind": "", "every_order": False, **more}
    return comfy.run("MudiSubjectPrompt", negative="sticker, collage", **settings)


@pytest.fixture
def lora(comfy: Comfy, drawn_subjects: SubjectSet) -> Iterator[str]:
    """A LoRA of the drawn subjects, by its name in models/loras."""
    about = lora_metadata(TrainConfig.of(resolution=192).described(), drawn_subjects, base="SDXL", plan_hash="")
    path = comfy.base / "models" / "loras" / "cats.safetensors"
    save_file({"x": torch.zeros(1)}, path, about)
    yield path.name
    path.unlink()


def test_a_lora_knows_its_subjects(comfy: Comfy, lora: str, drawn_subjects: SubjectSet) -> None:
    output = written(comfy, lora_name=lora, kind="cats")
    names = "olis cat, hta cat"
    assert output.result == (["2 cats: olis cat and hta cat at sea"], "sticker, collage", names, 192, 192)
    assert output.ui["text"] == ("2 cats: olis cat and hta cat at sea\ntrained on SDXL at 192x192 px",)
    both = written(comfy, lora_name=lora, subjects=drawn_subjects, every_order=True)
    assert both.result[0] == ["olis cat and hta cat at sea", "hta cat and olis cat at sea"]
    options = comfy.node("MudiSubjectPrompt").define_schema().inputs[0].options
    assert options[0] == "none" and lora in options


def test_connected_subjects_are_named_in_their_order_and_strangers_told(
    comfy: Comfy, lora: str, drawn_subjects: SubjectSet
) -> None:
    olis, hta = drawn_subjects.subjects
    some = SubjectSet((hta, replace(olis, token="rex")))
    positive, _, names, width, _ = written(comfy, subjects=some).result
    assert positive == ["hta cat and rex cat at sea"] and names == "hta cat, rex cat" and width == 1024
    output = written(comfy, subjects=some, lora_name=lora)
    assert "was not trained on 'rex cat'; it knows olis cat and hta cat" in output.ui["text"][0]


def test_a_changed_lora_is_read_anew(comfy: Comfy, lora: str) -> None:
    node = comfy.node("MudiSubjectPrompt")
    before = node.fingerprint_inputs(lora_name=lora, text="", kind="")
    os.utime(comfy.base / "models" / "loras" / lora, (1, 1))
    assert node.fingerprint_inputs(lora_name=lora, text="", kind="") != before
    assert node.fingerprint_inputs(lora_name="none", text="", kind="") == ([()], None)


def test_a_foreign_lora_leaves_the_connected_subjects_their_names(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    path = comfy.base / "models" / "loras" / "theirs.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"mudi_tokens": "[" * 9})
    try:
        output = written(comfy, lora_name=path.name, subjects=drawn_subjects)
        assert output.result[0] == ["olis cat and hta cat at sea"] and output.result[3:] == (1024, 1024)
        assert "theirs.safetensors does not name its subjects" in output.ui["text"][0]
        assert "connected subjects are named" in output.ui["text"][0]
        with pytest.raises(MudiError, match="does not name its subjects.*Connect the subjects"):
            written(comfy, lora_name=path.name)
    finally:
        path.unlink()


def test_tokens_that_call_something_else_are_told(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    olis, hta = drawn_subjects.subjects
    output = written(comfy, subjects=SubjectSet((replace(olis, token="cat"), hta)))
    assert "'cat' is a word of its own class noun 'cat'" in output.ui["text"][0]
    assert "'cat' is also in the name 'hta cat'" in output.ui["text"][0]


@pytest.mark.parametrize("widget", ["text", "kind"])
def test_half_a_letter_is_told(comfy: Comfy, drawn_subjects: SubjectSet, widget: str) -> None:
    with pytest.raises(comfy.module("ranges").HalfLetter, match=f"{widget} holds half of a letter"):
        written(comfy, subjects=drawn_subjects, **{widget: "a \ud800"})


def test_nobody_to_name_is_told(comfy: Comfy) -> None:
    with pytest.raises(comfy.module("words").NobodyToName, match="Choose a LoRA .* or connect subjects"):
        written(comfy)


def asked(comfy: Comfy, subjects: SubjectSet, **more: Any) -> Any:
    settings = {"prompt": "at sea", "width": 192, "height": 128, "ask": True, **WHERE, **more}
    return comfy.run("MudiAskLayout", subjects=subjects, **settings)


def test_the_answer_is_a_text_for_layout(
    comfy: Comfy, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def answer(*about: Any) -> dict[str, Place]:
        calls.append(about)
        return PLACES

    monkeypatch.setattr(ask, "ask_layout", answer)
    output = asked(comfy, drawn_subjects)
    text, question = output.result
    assert parse_places(text) == PLACES and output.ui["text"] == (text,)
    names = [subject.name for subject in drawn_subjects]
    assert calls[0][:5] == (names, "at sea", (192, 128), ask.Endpoint(WHERE["endpoint"], "small", 3.0), 4)
    assert question == ask.question(names, "at sea", (192, 128))
    (placed,) = comfy.run(
        "MudiLayout", subjects=drawn_subjects, width=192, height=128, mode="from text", seed=0, relative_sizes="",
        overlap=0.4, text=text,
    ).result  # fmt: skip
    assert set(placed.config.places) == {"olis", "hta"}


def test_a_workflow_of_somebody_elses_sends_the_prompt_nowhere(
    comfy: Comfy, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUDI_LLM_URL", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(ask, "ask_layout", lambda *about: pytest.fail("asked"))
        with pytest.raises(MudiError, match="wants to send your prompt to https://evil.example/v1"):
            asked(comfy, drawn_subjects, endpoint="https://evil.example/v1")
    monkeypatch.setenv("MUDI_LLM_URL", "https://mine.example/v1 https://evil.example/v1")
    monkeypatch.setattr(ask, "ask_layout", lambda *about: PLACES)
    for named in ("", "https://evil.example/v1", "http://localhost:1234/v1"):
        assert parse_places(asked(comfy, drawn_subjects, endpoint=named).result[0]) == PLACES


def test_nothing_is_asked_where_another_node_asks(
    comfy: Comfy, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "ask_layout", lambda *about: pytest.fail("asked"))
    text, question = asked(comfy, drawn_subjects, ask=False).result
    assert text == "" and "at sea" in question


def test_cancel_ends_the_waiting(comfy: Comfy, drawn_subjects: SubjectSet, monkeypatch: pytest.MonkeyPatch) -> None:
    management = importlib.import_module("comfy.model_management")

    def think(names: Any, prompt: Any, size: Any, endpoint: Any, seed: Any, on_wait: Any) -> dict[str, Place]:
        management.interrupt_current_processing(True)
        on_wait()
        return PLACES

    monkeypatch.setattr(ask, "ask_layout", think)
    with pytest.raises(management.InterruptProcessingException):
        asked(comfy, drawn_subjects)
    management.interrupt_current_processing(False)


def test_an_empty_prompt_is_told(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    for ask_here in (True, False):
        with pytest.raises(ask.NoPrompt, match="prompt is empty"):
            asked(comfy, drawn_subjects, prompt="  ", ask=ask_here)
