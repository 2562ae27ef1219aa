"""What the nodes ask a language model."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from comfyui import Comfy

from mudi_core import ask
from mudi_core.layout_text import Place, parse_places
from mudi_core.types import SubjectSet

PLACES = {"olis": Place((0.0, 0.2, 0.45, 1.0)), "hta": Place((0.5, 0.2, 1.0, 1.0), mirror=True, depth=1.0)}
WHERE = {"endpoint": "http://127.0.0.1:1/v1", "model": "small", "timeout": 3.0, "seed": 4}


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
