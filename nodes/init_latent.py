"""Init Latent: a layout becomes the latent that KSampler starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..mudi_core.stage.regions import AROUND
from . import drawing, host, samplers, scene
from .generate import CATEGORY, drawn_layout
from .host import widgets
from .sockets import LAYOUTS, LayoutSocket, PlacedSubjects
from .start import sees_latents, start, with_start

if TYPE_CHECKING:
    from torch import Tensor

_NO_MODEL = "Init Latent gives a model only where it gets one: connect the model that samples to its model input."


class InitLatent(io.ComfyNode):  # type: ignore[misc]
    """Make the latent that shifts the first noise towards the subjects."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiInitLatent",
            essentials_category="Characters",
            display_name="Init Latent (MuDI)",
            category=CATEGORY,
            description="Replaces Empty Latent Image: the noise begins where the subjects are, so that each looks like "
            "itself. Leave KSampler's denoise at 1.0: the sampler adds the noise.",
            search_aliases=["empty latent", "mean-shifted noise", "initialization", "MuDI init"],
            is_output_node=True,
            inputs=[
                LayoutSocket.Input("layout", tooltip="From Layout; it has the picture's size."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that samples."),
                io.Float.Input(
                    "gamma",
                    default=-1.0,
                    min=-1.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Strength of the start. -1: by the number of subjects, 1 for one, 2 for two or three, 3 "
                    "for more. 0 is an empty latent; above 4 colours burn out.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Pictures, each with places of its own."),
                widgets.seed(
                    "The first picture has the places that Layout shows; this seed decides those of the others. "
                    "It does not change the noise, which KSampler makes."
                ),
                io.Boolean.Input(
                    "same_places",
                    default=False,
                    optional=True,
                    tooltip="All pictures of the batch have the places that Layout shows. Off: each has its own.",
                ),
                io.Latent.Input(
                    "below",
                    optional=True,
                    tooltip="Another start, of the picture's size, that is kept where no subject stands; the batch is "
                    "as large as it. A noise mask on it is dropped. Not together with a scene.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that samples. FLUX, Qwen-Image and other flow models, and anime models with "
                    "v-prediction, need it: sample with the model that comes out. SDXL and SD do not.",
                ),
                io.Float.Input(
                    "around",
                    default=AROUND,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="With a scene in the layout: how far around each figure it is drawn anew, as a share of "
                    "the figure's size, for shadow and edge. All else of the scene stays.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="For KSampler at denoise 1.0; any sampler works. With a scene all but the figures is "
                    "masked and stays; without one nothing is.",
                ),
                io.Model.Output(
                    "start_model",
                    display_name="model",
                    tooltip="The model that came in, which sees the start in the latent whatever its noise. For the "
                    "sampler that gets the latent.",
                ),
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="With a scene: where the pictures are new, with a soft edge. Inverted, it tells "
                    "ImageCompositeMasked where to put back the scene as it was. Without one all is new.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> int:
        """Return another value where other remarks are due: they hang on what is wired behind the node, too."""
        return hash(
            tuple(
                remark
                for graph in host.running()
                for name, node in graph.items()
                if node["class_type"] == "MudiInitLatent"
                for in_the_noise in (False, True)
                for remark in samplers.remarks(graph, name, in_the_noise)
            )
        )

    @classmethod
    def execute(
        cls,
        layout: PlacedSubjects,
        vae: Any,
        gamma: float,
        batch_size: int,
        seed: int,
        same_places: bool = False,
        below: dict[str, Any] | None = None,
        model: Any = None,
        around: float = AROUND,
    ) -> io.NodeOutput:
        import torch

        from ..mudi_core.start.init_latent import default_gamma

        if gamma < 0:
            gamma = default_gamma(len(layout.cutouts.subjects))
        grounds = _grounds(layout, vae, model, below, batch_size)
        starts, previews, layouts, changes = [], [], [], []
        with host.progress()("encoding the layout") as update:
            for number, ground in enumerate(grounds):
                if number and same_places:
                    drawn = drawn_layout(layout, layout.config.seed, 0)
                else:
                    drawn = drawn_layout(layout, seed if number else layout.config.seed, number)
                layouts.append(drawn)
                changes.append(scene.changed(layout, drawn, around))
                canvas = layout.canvas(drawn)
                starts.append(start(canvas, vae, gamma, model, ground))
                previews.append(drawing.small(canvas.image))
                update(number + 1, len(grounds))
        remarks = cls._remarks(gamma, below, model)
        for remark in remarks:
            host.log.warning(remark)
        samples = torch.cat(starts)
        latent = {"samples": samples, LAYOUTS: layouts}
        if layout.scene is not None:
            latent["noise_mask"] = torch.cat([mask for mask, _ in changes if mask is not None])
        return io.NodeOutput(
            latent,
            ExecutionBlocker(_NO_MODEL) if model is None else with_start(model, samples),
            torch.stack([new for _, new in changes]),
            ui=host.preview(previews, cls, "\n".join([f"gamma {gamma:g}", *remarks])),
        )

    @classmethod
    def _remarks(cls, gamma: float, below: dict[str, Any] | None, model: Any) -> list[str]:
        """Return a sentence for each setting that will spoil the pictures."""
        found = []
        if gamma > 4:
            found.append(f"Above a gamma of 4 colours burn out; it is {gamma:g}.")
        if below is not None and "noise_mask" in below:
            found.append("The noise mask of the latent below was dropped: it would pin everything outside of it.")
        if cls.hidden is not None and cls.hidden.prompt:
            in_the_noise = gamma > 0 and model is not None and not sees_latents(model)
            found += samplers.remarks(cls.hidden.prompt, cls.hidden.unique_id, in_the_noise)
        return found


def _grounds(
    layout: PlacedSubjects, vae: Any, model: Any, below: dict[str, Any] | None, batch_size: int
) -> list[Tensor] | list[None]:
    """Return for each picture the latent around its figures. Raise `BadLatent` where two want to be it."""
    from ..mudi_core.start.init_latent import BadLatent

    ground = scene.encoded(layout, vae, model)
    if below is None:
        return [None] * batch_size if ground is None else [ground] * batch_size
    if ground is not None:
        raise BadLatent(
            "Layout has a scene, and a latent is connected to below: both would be around the figures. Disconnect one."
        )
    return list(below["samples"].split(1))
