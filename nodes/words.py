"""Words about the subjects: what a language model is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management
from comfy_api.latest import io

from . import host
from .sockets import Subjects

if TYPE_CHECKING:
    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/3 generate"


class AskLayout(io.ComfyNode):  # type: ignore[misc]
    """A layout from the prompt, by a language model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiAskLayout",
            display_name="Layout from Prompt (MuDI)",
            category=CATEGORY,
            description="Asks a language model who should stand where, for Layout's text in its mode 'from text'. By "
            "default it is Ollama on this computer; MUDI_LLM_URL and MUDI_LLM_KEY in ComfyUI's environment name "
            "another OpenAI-compatible endpoint and its key.",
            search_aliases=["LLM", "language model", "composition", "ollama", "openai", "layout"],
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects that are to be in the picture."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the picture shows."),
                io.Int.Input("width", default=1024, min=64, max=4096, step=8, tooltip="Pixels, as in Layout."),
                io.Int.Input("height", default=1024, min=64, max=4096, step=8, tooltip="Pixels, as in Layout."),
                io.Boolean.Input(
                    "ask",
                    default=True,
                    tooltip="Off: nothing is asked here; give the question to a language-model node, and its answer to "
                    "Layout's text.",
                ),
                io.String.Input(
                    "endpoint",
                    default="",
                    placeholder="http://127.0.0.1:11434/v1",
                    tooltip="An OpenAI-compatible address. Empty: MUDI_LLM_URL, or else Ollama on this computer. The "
                    "key is only sent to MUDI_LLM_URL.",
                ),
                io.String.Input("model", default="", tooltip="Its name there. Empty: the first that it lists."),
                io.Float.Input("timeout", default=60.0, min=1.0, max=3600.0, step=1.0, tooltip="Seconds to wait."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Handed on to the language model: another one asks again.",
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="For Layout's text; empty if ask is off."),
                io.String.Output("question", display_name="question", tooltip="For another language model."),
            ],
        )

    @classmethod
    def execute(
        cls,
        subjects: SubjectSet,
        prompt: str,
        width: int,
        height: int,
        ask: bool,
        endpoint: str,
        model: str,
        timeout: float,
        seed: int,
    ) -> io.NodeOutput:
        from ..mudi_core.ask import Endpoint, ask_layout, question
        from ..mudi_core.layout_text import places_text

        names = [subject.name for subject in subjects]
        text = ""
        if ask:
            cancelled = comfy.model_management.throw_exception_if_processing_interrupted
            with host.progress()("asking for a layout"):
                asked = Endpoint(endpoint, model, timeout)
                text = places_text(ask_layout(names, prompt, (width, height), asked, seed, cancelled))
        return io.NodeOutput(text, question(names, prompt, (width, height)), ui=host.preview([], cls, text))
