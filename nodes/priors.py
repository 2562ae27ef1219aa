"""Make Priors: pictures of other members of each class by the user's own model, for prior preservation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.sample
import comfy.samplers
from comfy_api.latest import io

from ..mudi_core.subjects.priors import NEGATIVE_PROMPT, PROMPT, THRESHOLD
from . import convert, drawing, host
from .host import widgets
from .sockets import Subjects

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.types import SubjectSet

COLUMNS = 8


class MakePriors(io.ComfyNode):  # type: ignore[misc]
    """Other corgis than yours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMakePriors",
            display_name="Make Priors (MuDI)",
            category="MuDI/2 train",
            description="Samples pictures of other members of each subject's class with the model that will be trained "
            "and cuts them out. Training on them too keeps the model from making every corgi yours. Only pictures in "
            "which exactly one is found are kept.",
            search_aliases=["prior preservation", "regularization images", "class images", "dreambooth"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that will be trained, without the LoRA."),
                io.Clip.Input("clip", tooltip="Reads the prompt."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                Subjects.Input("subjects", tooltip="Their class nouns are what the pictures show."),
                io.Int.Input("count", default=50, min=1, max=1000, tooltip="Pictures of each class."),
                *widgets.size("Pixels of a picture; 192 for the mini."),
                widgets.seed("Of the pictures."),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="As in KSampler."),
                io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="As in KSampler."),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip="As in KSampler."
                ),
                io.String.Input(
                    "prompt", default=PROMPT, multiline=True, tooltip="Has {} where the class noun belongs."
                ),
                io.String.Input(
                    "negative", default=NEGATIVE_PROMPT, multiline=True, tooltip="What the pictures should not be."
                ),
                widgets.model("detector", "The model that finds the class in a picture."),
                widgets.model("segmenter", "The model that cuts it out."),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Least confidence of the detector; 0.03 for the mini.",
                ),
                widgets.download(),
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
    ) -> io.NodeOutput:
        import torch

        from ..mudi_core.subjects.priors import make_priors

        host.check_choice("sampler", sampler_name, comfy.samplers.KSampler.SAMPLERS)
        host.check_choice("scheduler", scheduler, comfy.samplers.KSampler.SCHEDULERS)
        detect, segment = host.detector(detector, download), host.segmenter(segmenter, download)
        conditionings: dict[str, Any] = {}

        def said(text: str) -> Any:
            if text not in conditionings:
                conditionings[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
            return conditionings[text]

        latest: list[Tensor] = [torch.ones(8, 8, 3)]
        with host.progress(lambda: latest[-1])("making priors") as update:
            kept = 0

            def heard(done: int, total: int) -> None:
                nonlocal kept
                kept = done
                update(done, total)

            def sample(text: str, noise_seed: int) -> Tensor:
                latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, height // 8, width // 8))
                update(kept, count * len(subjects))  # hears Cancel, also where picture after picture is no good
                samples = comfy.sample.sample(
                    model, comfy.sample.prepare_noise(latent, noise_seed), steps, cfg, sampler_name, scheduler,
                    said(text), said(negative), latent, denoise=1.0, disable_pbar=True, seed=noise_seed,
                )  # fmt: skip
                latest[:] = convert.decoded(vae, samples)
                return latest[-1]

            made = make_priors(
                subjects, sample, detect, segment, count=count, seed=seed, threshold=threshold, prompt=prompt,
                on_step=heard,
            )  # fmt: skip
        sheet = drawing.grid([drawing.small(photo.image) for one in made for photo in one.photos], COLUMNS)
        return io.NodeOutput(made, ui=host.preview([drawing.small(sheet)], cls, f"{count} pictures of each class"))
