"""Subject Prompt and Layout from Prompt: name all subjects, and ask a language model for their places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.stage.captions import SENTENCE, STYLES, TAGS
from ..mudi_core.subjects.prompt import NEGATIVE
from ..mudi_core.types import MudiError
from . import host
from .host import widgets, written
from .sockets import Subjects

if TYPE_CHECKING:
    from ..mudi_core.lora.metadata import LoraSubjects
    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/3 generate"
CAPTIONS = ("auto", *STYLES)


class NobodyToName(MudiError):
    """A prompt that would name nobody."""


class SubjectPrompt(io.ComfyNode):  # type: ignore[misc]
    """Write a prompt that names the subjects, so that nobody has to remember the names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSubjectPrompt",
            display_name="Subject Prompt (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Writes a prompt that names every subject by its token and class noun, as the LoRA was taught: "
            "'2 dogs: a photo of olis corgi and hta chow chow playing in the snow'. It reads the names from the "
            "LoRA's file.",
            search_aliases=["trigger words", "tokens", "lora metadata", "text", "prompt builder"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=host.loras(),
                    tooltip="A LoRA of Train LoRA: it knows its subjects, and the size it was trained at.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a photo of {subjects}",
                    tooltip="What the picture shows. The names stand where {subjects} is; without it this is what "
                    "they do: 'playing in the snow'.",
                ),
                io.String.Input(
                    "kind",
                    default="",
                    placeholder="dogs",
                    tooltip="What they are together: 'dogs' begins the prompt with '2 dogs:', which helps with more "
                    "than two subjects.",
                ),
                io.Boolean.Input(
                    "every_order",
                    default=False,
                    tooltip="A prompt for every order of the subjects, as a list: everything behind it runs for each. "
                    "Up to five subjects.",
                ),
                io.String.Input(
                    "negative",
                    default=NEGATIVE,
                    tooltip="Comes out unchanged. Seg-Mix's training images are collages, and pictures should not be.",
                ),
                Subjects.Input(
                    "subjects",
                    optional=True,
                    tooltip="Whom to name, and in which order. Not connected: everybody whom the LoRA knows.",
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default=CAPTIONS[0],
                    optional=True,
                    tooltip="How the subjects are named. auto: as the LoRA was taught, which its file says. tags: "
                    "'2girls, olis, hta'. sentence and FLUX (official): 'a photo of olis corgi and hta chow chow'.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "positive", display_name="positive", is_output_list=True, tooltip="For CLIP Text Encode."
                ),
                io.String.Output(
                    "negative_prompt", display_name="negative", tooltip="For the negative CLIP Text Encode."
                ),
                io.String.Output("names", display_name="names", tooltip="The subjects: 'olis corgi, hta chow chow'."),
                io.Int.Output(
                    "width", display_name="width", tooltip="Of the LoRA's training images, for Layout; else 1024."
                ),
                io.Int.Output(
                    "height", display_name="height", tooltip="Of the LoRA's training images, for Layout; else 1024."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others: Any) -> Any:
        return written.state_of([host.find_lora(lora_name)]), host.newer_lora(lora_name)

    @classmethod
    def execute(
        cls,
        lora_name: str,
        text: str,
        kind: str,
        every_order: bool,
        negative: str,
        subjects: SubjectSet | None = None,
        captions: str = CAPTIONS[0],
    ) -> io.NodeOutput:
        from ..mudi_core.subjects.find import name_doubts
        from ..mudi_core.subjects.prompt import write_prompts

        host.check_choice("style of captions", captions, CAPTIONS)
        known, remarks = _read(lora_name, subjects)
        whom = _whom(known, subjects)
        names = [f"{token} {noun}" for token, noun in whom]
        usual = SENTENCE if known is None else known.captions
        style = usual if captions == "auto" else captions
        prompts = write_prompts(names, text, kind, every_order, style)
        lines, (width, height) = list(prompts), (1024, 1024)
        if known is not None:
            width, height = known.size
            lines.append(f"trained on {known.base} at {width}x{height} px")
            remarks += known.disagreements(names)
            if (style == TAGS) != (usual == TAGS):
                remarks.append(f"The LoRA was taught in the style '{usual}'; this prompt is in '{style}'.")
        remarks += name_doubts(whom)
        if newer := host.newer_lora(lora_name):
            remarks.append(f"{newer} is newer than {lora_name}: choose it here and in the LoRA loader to use it.")
        for remark in remarks:
            host.log.warning(remark)
        shown = host.preview([], cls, "\n".join(lines + remarks))
        return io.NodeOutput(prompts, negative, ", ".join(names), width, height, ui=shown)


def _read(lora_name: str, subjects: SubjectSet | None) -> tuple[LoraSubjects | None, list[str]]:
    """Return what the chosen LoRA says of its subjects, if one is chosen, and remarks.

    Raise `UnknownLora` for a LoRA that says nothing, unless there are ``subjects``.
    """
    from ..mudi_core.lora.metadata import UnknownLora, read_lora_subjects

    path = host.lora(lora_name)
    if path is None:
        return None, []
    try:
        return read_lora_subjects(path), []
    except UnknownLora as error:
        if subjects is None:
            raise
        return None, [f"{error} Here the connected subjects are named."]


def _whom(known: LoraSubjects | None, subjects: SubjectSet | None) -> list[tuple[str, str]]:
    """Return token and class noun of everybody whom the prompt names. Raise `NobodyToName`."""
    if subjects is not None:
        return [(subject.token, subject.class_noun) for subject in subjects]
    if known is not None:
        return list(zip(known.tokens, known.class_nouns, strict=True))
    raise NobodyToName("There is nobody to name. Choose a LoRA that Train LoRA has made, or connect subjects.")


class AskLayout(io.ComfyNode):  # type: ignore[misc]
    """Ask a language model for a layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiAskLayout",
            display_name="Layout from Prompt (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Asks a language model who should stand where, for Layout's text in its mode 'from text'. By "
            "default it is Ollama on this computer; MUDI_LLM_URL and MUDI_LLM_KEY in ComfyUI's environment name "
            "other OpenAI-compatible endpoints, and the key of the first.",
            search_aliases=["LLM", "language model", "composition", "ollama", "openai", "layout"],
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects that are to be in the picture."),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the picture shows."),
                *widgets.size("Pixels, as in Layout."),
                io.Boolean.Input(
                    "ask",
                    default=True,
                    tooltip="Off: ask nothing here. Give the question to a language-model node, and its answer to "
                    "Layout's text.",
                ),
                io.String.Input(
                    "endpoint",
                    default="",
                    placeholder="http://127.0.0.1:11434/v1",
                    tooltip="An OpenAI-compatible address, on this computer or one of those in MUDI_LLM_URL: a "
                    "workflow may not send your prompt anywhere else. Empty: the first in MUDI_LLM_URL, which "
                    "alone gets the key, or else Ollama on this computer.",
                ),
                io.String.Input("model", default="", tooltip="Name of the model there. Empty: the first one listed."),
                io.Float.Input("timeout", default=60.0, min=1.0, max=3600.0, step=1.0, tooltip="Seconds to wait."),
                widgets.seed("Goes to the language model. Change it to ask again."),
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
        from ..mudi_core.stage.ask import ask_layout, question
        from ..mudi_core.stage.endpoint import Endpoint, check_named
        from ..mudi_core.stage.layout_text import places_text

        names = [subject.name for subject in subjects]
        text = ""
        if ask:
            asked = Endpoint(endpoint, model, timeout)
            check_named(asked)
            with host.progress()("asking for a layout"):
                text = places_text(ask_layout(names, prompt, (width, height), asked, seed, host.hear_cancel))
        return io.NodeOutput(text, question(names, prompt, (width, height)), ui=host.preview([], cls, text))
