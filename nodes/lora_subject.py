"""LoRA Subject: a LoRA of one subject, for nodes that take several."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..mudi_core.types import MudiError
from . import host
from .generate import CATEGORY
from .host import written
from .sockets import LorasSocket, SubjectLora


class NoLora(MudiError):
    """A LoRA Subject without a LoRA."""


class LoraSubject(io.ComfyNode):  # type: ignore[misc]
    """Say which subject a LoRA was taught."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLoraSubject",
            display_name="LoRA Subject (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="A LoRA of one character, from anywhere, and whom it was taught. One for each; connect them in "
            "a row, and the last one to Separate LoRAs.",
            search_aliases=["lora", "character lora", "lora stack", "multiple loras", "load lora"],
            inputs=[
                io.Combo.Input("lora_name", options=host.loras(), tooltip="A LoRA of the model's own kind."),
                io.String.Input(
                    "subject",
                    default="",
                    placeholder="olis",
                    tooltip="Whom it was taught: token, name or class noun of a subject in the layout. Empty: as its "
                    "file says, else the first LoRA is the first subject's, and so on.",
                ),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="As in Load LoRA."),
                io.Float.Input(
                    "text_strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of its part for the text encoders, which acts in the whole text. LoRAs of Train LoRA have "
                    "none.",
                ),
                LorasSocket.Input("loras", optional=True, tooltip="The LoRAs of the other subjects."),
            ],
            outputs=[LorasSocket.Output(display_name="loras", tooltip="For Separate LoRAs.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **others: Any) -> Any:
        return written.state_of([host.find_lora(lora_name)])

    @classmethod
    def execute(
        cls,
        lora_name: str,
        subject: str,
        strength: float,
        text_strength: float,
        loras: tuple[SubjectLora, ...] = (),
    ) -> io.NodeOutput:
        path = host.lora(lora_name)
        if path is None:
            raise NoLora("No LoRA is chosen. Choose one, or take this node out of the row.")
        every = (*loras, SubjectLora(path, subject.strip(), strength, text_strength))
        text = "\n".join(f"{number}. {one.path.name}" for number, one in enumerate(every, start=1))
        return io.NodeOutput(every, ui=host.preview([], cls, text))
