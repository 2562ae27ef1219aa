"""Subjects from LoRAs: pictures of each subject by its own LoRA, for a training that has no photos of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..mudi_core.subjects.prompt import SCENES
from . import convert, drawing, host
from .fusing import concept_of
from .host import widgets
from .own_loras import wearing
from .sockets import LorasSocket, SubjectLora, Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.one_figure import Sample
    from ..mudi_core.lora.concepts import Concept

COLUMNS = 8


class SubjectsFromLoras(io.ComfyNode):  # type: ignore[misc]
    """Paint the subjects of LoRAs whose photos nobody has."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiSubjectsFromLoras",
            display_name="Subjects from LoRAs (MuDI)",
            category="MuDI/2 train",
            description="Paints each character by its own LoRA and keeps the pictures that show it once and are most "
            "like each other. With them Train LoRA keeps the characters of a fusion apart (decouple), without the "
            "photos that the LoRAs were trained on.",
            search_aliases=["lora", "synthetic dataset", "decouple", "character lora", "training images"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs are for, without them."),
                io.Clip.Input("clip", tooltip="Its CLIP, without them."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                LorasSocket.Input(
                    "loras",
                    tooltip="From LoRA Subject, one for each. Its subject is trigger word and class noun, such as "
                    "olis corgi, where the file does not name them.",
                ),
                io.Int.Input("count", default=8, min=1, max=1000, tooltip="Pictures to keep of each character."),
                io.Int.Input(
                    "spare",
                    default=4,
                    min=0,
                    max=1000,
                    tooltip="Pictures beyond these. Of all, those that are least like the others are left out.",
                ),
                *widgets.size("Pixels of a picture; 192 for the mini model."),
                widgets.seed("Of the pictures."),
                *host.sampler_widgets(scheduler="normal"),
                io.String.Input(
                    "scenes",
                    default="\n".join(SCENES),
                    multiline=True,
                    tooltip="Where the character is, a line each, in turn: in the snow. Or a whole prompt with "
                    "{subjects} for the name. The prompt becomes the picture's caption.",
                ),
                io.String.Input("negative", default="", multiline=True, tooltip="What the pictures should not be."),
                widgets.model("detector", "The model that finds the character in a picture."),
                widgets.model("segmenter", "The model that cuts it out."),
                widgets.model("embedder", "The model that says how alike pictures are."),
                widgets.threshold("Least confidence of the detector; 0.03 for the mini model."),
                widgets.download(),
            ],
            outputs=[
                Subjects.Output(
                    display_name="subjects",
                    tooltip="For Seg-Mix Dataset, Layout and D&C Score; Save Subject Set keeps them for another time.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        loras: Sequence[SubjectLora],
        count: int,
        spare: int,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        scenes: str,
        negative: str,
        detector: str,
        segmenter: str,
        embedder: str,
        threshold: float,
        download: bool,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.from_loras import PicturesConfig, paint_subjects

        host.check_sampler(sampler_name, scheduler)
        asked = tuple(filter(None, map(str.strip, scenes.splitlines())))
        config = PicturesConfig(count, spare, asked, seed, threshold)
        eyes = host.detector(detector, download), host.segmenter(segmenter, download), host.embedder(embedder, download)
        concepts = [concept_of(one) for one in loras]
        files = {id(concept): one for concept, one in zip(concepts, loras, strict=True)}
        latest: list[Tensor] = [torch.ones(8, 8, 3)]
        fits: dict[str, None] = {}  # a line for each LoRA, which is worn once for each of its subjects

        @contextmanager
        def painting(concept: Concept) -> Iterator[Sample]:
            worn, reads, told = wearing(model, clip, files[id(concept)])
            fits.update(dict.fromkeys(told))
            read = cache(lambda text: reads.encode_from_tokens_scheduled(reads.tokenize(text)))

            def sample(text: str, noise_seed: int) -> Tensor:
                host.hear_cancel()  # also where picture after picture is no good
                sampler = host.Sampler(worn, read(text), read(negative), steps, cfg, sampler_name, scheduler)
                latest[:] = convert.decoded(vae, sampler.sample(sampler.empty(width, height), noise_seed))
                return latest[-1]

            yield sample

        painted = paint_subjects(concepts, painting, *eyes, config, host.progress(lambda: latest[-1]))
        pictures = [drawing.small(photo.image) for one in painted.subjects for photo in one.photos]
        sheet = drawing.small(drawing.grid(pictures, COLUMNS))
        return io.NodeOutput(painted.subjects, ui=host.preview([sheet], cls, "\n".join([*painted.told(), *fits])))
