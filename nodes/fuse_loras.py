"""Fuse LoRAs: LoRAs of single subjects become one LoRA, by the same job as the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

import comfy.sd
from comfy_api.latest import io

from ..mudi_core.jobs.fusion import Method
from ..mudi_core.names import plain_name
from ..mudi_core.types import MudiError
from . import host
from .denoiser import usual_of
from .fusing import ModelToFuse, concept_of
from .host import widgets, written
from .sockets import LorasSocket, SubjectLora
from .training import read_lora

if TYPE_CHECKING:
    from ..mudi_core.jobs.fusion import Fused
    from ..mudi_core.lora.concepts import Concept

METHODS: tuple[str, ...] = get_args(Method)
_WIDGETS = ("name", "method", "rank", "pictures", "steps", "width", "height", "seed")


class FuseLoras(io.ComfyNode):  # type: ignore[misc]
    """Make one LoRA of several, each of a subject of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiFuseLoras",
            display_name="Fuse LoRAs (MuDI)",
            category="MuDI/2 train",
            description="Makes one LoRA of several, each of a character of its own: every layer answers to each "
            "character as that character's LoRA does. Loaded one after the other they would disturb each other.",
            search_aliases=["merge loras", "lora merge", "gradient fusion", "combine loras", "mix-of-show"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs are for, without them: SDXL, SD, mini."),
                io.Clip.Input("clip", tooltip="Its CLIP, which reads the trigger words."),
                LorasSocket.Input(
                    "loras",
                    tooltip="From LoRA Subject, one for each. Its subject is trigger word and class noun, such as "
                    "olis corgi, where the file does not name them.",
                ),
                io.String.Input(
                    "name",
                    default="my_fusion",
                    tooltip="Name of the file in models/loras, with a number after it. A plain name without a path.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="fuse",
                    tooltip="fuse: every layer. text: only what reads the text, without pictures. sum: add up all, "
                    "exactly what LoRA loaders in a row do, as one file.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Most ranks of a layer, for a smaller file. 0: those of all LoRAs together, which loses "
                    "nothing.",
                ),
                io.Int.Input(
                    "pictures",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Pictures of each character, painted by its own LoRA, that the layers are listened to on.",
                ),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampler steps of each picture."),
                *widgets.size("Pixels of a picture; 192 for the mini model."),
                widgets.seed("Of the pictures: the same seed makes the same file."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the fused LoRA on it, at strength 1."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP with its part of the fused LoRA, if it has any."),
                io.String.Output(display_name="lora_name", tooltip="Name of the new file in models/loras."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        try:
            plain_name("linked" if name is None else name, "LoRA")
        except MudiError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> int:
        return written.times_gone("MudiFuseLoras", {name: values.get(name) for name in _WIDGETS})

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        loras: Sequence[SubjectLora],
        name: str,
        method: Method,
        rank: int,
        pictures: int,
        steps: int,
        width: int,
        height: int,
        seed: int,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.fuse import fuse
        from ..mudi_core.jobs.fusion import FuseConfig
        from ..mudi_core.lora.concepts import check_concepts, fused_metadata
        from ..mudi_core.lora.file import save_lora

        plain_name(name, "LoRA")
        host.check_choice("method", method, METHODS)
        config = FuseConfig(method, rank, pictures, steps, seed=seed)
        concepts = [concept_of(one) for one in loras]
        check_concepts(concepts)
        folder, base = host.loras_folder(), ModelToFuse(model, clip, (width, height))
        fused = fuse(concepts, base, config, host.progress())
        path = host.numbered(folder, name, ".safetensors")
        about = fused_metadata(concepts, config.described(), base=base.name, family=base.family, side=width)
        save_lora(path, fused.state(), about, style=usual_of(model).file_names)
        chosen = dict(zip(_WIDGETS, (name, method, rank, pictures, steps, width, height, seed), strict=True))
        written.remember("MudiFuseLoras", chosen, path)
        both = comfy.sd.load_lora_for_models(model, clip, read_lora(path), 1.0, 1.0)
        return io.NodeOutput(*both, path.name, ui=host.preview([], cls, _told(path.name, concepts, fused)))


def _told(name: str, concepts: Sequence[Concept], fused: Fused) -> str:
    """Return what came of it, a line for each LoRA."""
    prompt = " and ".join(concept.words for concept in concepts)
    lines = [f"{name}: {len(fused.changes)} layers. Prompt it with '{prompt}'."]
    if fused.added_up:
        lines.append(f"{fused.added_up} of them are added up as loaders do.")
    errors = fused.relative() or ((None,) * len(concepts),) * 2
    for concept, matched, plain, ours in zip(concepts, fused.matched, *errors, strict=True):
        error = "" if plain is None or ours is None else f" Error {plain:.2f} added up, {ours:.2f} fused."
        lines.append(f"{concept.lora.name} ({concept.words}): {matched.told()}{error}")
    return "\n".join(lines)
