"""Mini LoRA: a LoRA that comes with MuDI, or the one that was just trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.bases.embedded.ready_lora import READY_LORA
from ..mudi_core.bases.families import EMBEDDED, FAMILIES
from ..mudi_core.lora.metadata import read_lora_subjects
from ..mudi_core.types import MudiError, listed
from . import host
from .denoiser import usual_of
from .sockets import Subjects
from .training import read_lora, with_lora

if TYPE_CHECKING:
    from ..mudi_core.types import SubjectSet


class NotTheirs(MudiError):
    """The ready LoRA for another model, or for other subjects."""


class NotTrained(MudiError):
    """The switch asks for a trained model, and there is none."""


class MiniLora(io.ComfyNode):  # type: ignore[misc]
    """Give the mini model with the ready LoRA on it, or the model that was trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMiniLora",
            display_name="Mini LoRA (MuDI)",
            category="MuDI/mini",
            has_intermediate_output=True,
            description="Puts a LoRA that comes with MuDI on the mini model, so that there are pictures before "
            "anything is trained. Its switch takes the model of Train LoRA instead, and switches that node on and off.",
            search_aliases=["lora", "load lora", "mini", "demo", "ready lora"],
            inputs=[
                io.Model.Input("model", tooltip="From Mini Checkpoint."),
                io.Boolean.Input(
                    "train",
                    default=False,
                    label_on="train",
                    label_off="ready LoRA",
                    tooltip="Off: the LoRA that comes with MuDI, for the first pair of Mini Photos. On: the model from "
                    "Train LoRA, which is then trained.",
                ),
                io.Model.Input("trained", optional=True, lazy=True, tooltip="From Train LoRA, where the switch is on."),
                Subjects.Input(
                    "subjects", optional=True, tooltip="Who is to be drawn: the ready LoRA must know them all."
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The model with the LoRA on it.")],
        )

    @classmethod
    def check_lazy_status(cls, train: bool, **sockets: Any) -> list[str]:
        # What is not connected is not among the sockets, and must not be asked for.
        return ["trained"] if train and sockets.get("trained", False) is None else []

    @classmethod
    def execute(cls, model: Any, train: bool, trained: Any = None, subjects: SubjectSet | None = None) -> io.NodeOutput:
        if train:
            if trained is None:
                raise NotTrained(
                    "The switch is on 'train', but no model comes from Train LoRA. Connect its model to trained, and "
                    "see that the node is not muted; or switch to 'ready LoRA'."
                )
            return io.NodeOutput(trained, ui=host.preview([], cls, "the LoRA that was trained here"))
        if usual_of(model) is not FAMILIES[EMBEDDED]:
            raise NotTheirs("The ready LoRA is for the mini model alone. Connect Mini Checkpoint's model.")
        known = read_lora_subjects(READY_LORA)
        if subjects is not None and known.disagreements([subject.name for subject in subjects]):
            raise NotTheirs(
                f"The ready LoRA knows {listed(known.names)}, not {listed([subject.name for subject in subjects])}. "
                "Switch this node to 'train', or choose the first pair in Mini Photos."
            )
        wearing = with_lora(model, read_lora(READY_LORA), "The ready LoRA")
        return io.NodeOutput(wearing, ui=host.preview([], cls, f"the ready LoRA: {listed(known.names)}"))
