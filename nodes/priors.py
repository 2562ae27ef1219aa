"""Make Priors: pictures of other members of each class, made by the user's own model for prior preservation."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..mudi_core.jobs.priors import NEGATIVE_PROMPT, PROMPT, THRESHOLD
from . import convert, drawing, host
from .host import widgets
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

COLUMNS = 8


class MakePriors(io.ComfyNode):  # type: ignore[misc]
    """Make pictures of other corgis than yours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMakePriors",
            display_name="Make Priors (MuDI)",
            category="MuDI/2 train",
            description="Samples pictures of other members of each subject's class with the model that will be trained "
            "and cuts them out. With them, training does not turn every corgi into yours. Only pictures in "
            "which exactly one is found are kept.",
            search_aliases=["prior preservation", "regularization images", "class images", "dreambooth"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be trained, without the LoRA."),
                io.Clip.Input("clip", tooltip="Reads the prompt."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                Subjects.Input("subjects", tooltip="Their class nouns are what the pictures show."),
                io.Int.Input("count", default=50, min=1, max=1000, tooltip="Pictures of each class."),
                *widgets.size("Pixels of a picture; 192 for the mini model."),
                widgets.seed("Seed of the pictures."),
                *host.sampler_widgets(scheduler="normal"),
                io.String.Input(
                    "prompt", default=PROMPT, multiline=True, tooltip="Write {} where the class noun belongs."
                ),
                io.String.Input(
                    "negative", default=NEGATIVE_PROMPT, multiline=True, tooltip="What the pictures should not be."
                ),
                widgets.model("detector", "The model that finds the class in a picture."),
                widgets.model("segmenter", "The model that cuts it out."),
                widgets.threshold("Least confidence of the detector; 0.03 for the mini model.", THRESHOLD),
                widgets.download(),
                io.String.Input(
                    "also",
                    default="",
                    optional=True,
                    placeholder="dog, robot",
                    tooltip="Further class nouns, separated by commas, for compose_with_others of Seg-Mix Dataset: "
                    "strangers of the subject's own class and of these.",
                ),
            ],
            outputs=[
                Subjects.Output(
                    display_name="priors", tooltip="For Seg-Mix Dataset; Save Subject Set keeps them for another time."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subjects: SubjectSet,
        count: int,
        width: int,
        height: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        prompt: str,
        negative: str,
        detector: str,
        segmenter: str,
        threshold: float,
        download: bool,
        also: str = "",
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.priors import PriorsConfig, make_priors

        host.check_sampler(sampler_name, scheduler)
        detect, segment = host.detector(detector, download), host.segmenter(segmenter, download)
        reads = cache(lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        latest: list[Tensor] = []
        with host.progress(lambda: latest[-1] if latest else torch.ones(8, 8, 3))("making priors") as update:

            def sample(text: str, noise_seed: int) -> Tensor:
                host.hear_cancel()  # also where picture after picture is no good
                sampler = host.Sampler(model, reads(text), reads(negative), steps, cfg, sampler_name, scheduler)
                latest[:] = convert.decoded(vae, sampler.sample(sampler.empty(width, height), noise_seed))
                return latest[-1]

            nouns = tuple(filter(None, map(str.strip, also.split(","))))
            wanted = PriorsConfig(count, seed, threshold, prompt, nouns)
            made = make_priors(subjects, sample, detect, segment, wanted, update)
        sheet = drawing.grid([drawing.small(photo.image) for one in made for photo in one.photos], COLUMNS)
        return io.NodeOutput(made, ui=host.preview([drawing.small(sheet)], cls, f"{count} pictures of each class"))
