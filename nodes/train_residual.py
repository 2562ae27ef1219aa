"""Train Residual Token: photos become what is added to the text at a subject's class word (Cones 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.names import plain_name
from . import drawing, host
from .base import ComfyBase, computes_in_bf16, make_room
from .denoiser import usual_of
from .host import widgets, written
from .sockets import ResidualsSocket, Subjects
from .text import ComfyText

if TYPE_CHECKING:
    from ..mudi_core.types import SubjectSet

_WIDGETS = ("name", "steps", "learning_rate", "batch_size", "resolution", "seed")
_ID = "MudiTrainResidual"


class TrainResidual(io.ComfyNode):  # type: ignore[misc]
    """Train a residual token for each subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id=_ID,
            display_name="Train Residual Token (MuDI)",
            category="MuDI/2 train",
            description="Trains for each subject what is added to the text at its class noun (Cones 2): a few KB, no "
            "LoRA. The text encoders are tuned on its photos, and thrown away; model and CLIP stay as they are. "
            "Subjects are trained one by one and meet in a prompt later. For SD and SDXL.",
            search_aliases=["cones 2", "residual embedding", "textual inversion", "train", "embedding", "token"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="An SD or SDXL model, or the mini model."),
                io.Clip.Input("clip", tooltip="Its CLIP. A copy of it is tuned."),
                io.Vae.Input("vae", tooltip="Encodes the photos."),
                Subjects.Input("subjects", tooltip="Their photos are learned, and their class nouns are the words."),
                io.String.Input(
                    "name",
                    default="my_residual",
                    tooltip="Name of the files in models/residual_tokens; the subject's token and a number follow. A "
                    "plain name without a path.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="For each subject. 0: what is usual (4000, as the authors; 200 for the mini model).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=False,
                    tooltip="0: what is usual (5e-6, as the authors; 1e-3 for the mini model).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Photos in a step. 0: what is usual (1; 4 for the mini model).",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side of the photos in pixels. 0: what is usual for your model.",
                ),
                widgets.seed("Decides everything that is random: the same seed makes the same files."),
            ],
            outputs=[ResidualsSocket.Output(display_name="residuals", tooltip="For Residual Token.")],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return host.is_plain_name(name, "residual token")

    @classmethod
    def fingerprint_inputs(cls, **values: Any) -> int:
        return written.times_gone(_ID, {name: values.get(name) for name in _WIDGETS})

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subjects: SubjectSet,
        name: str,
        steps: int,
        learning_rate: float,
        batch_size: int,
        resolution: int,
        seed: int,
    ) -> io.NodeOutput:
        from ..mudi_core.bases.residual import save_residual
        from ..mudi_core.jobs.residual import residual_config, train_residual

        plain_name(name, "residual token")
        folder, text, usual = host.residuals_folder(), ComfyText(clip), usual_of(model)
        given = (name, steps, learning_rate, batch_size, resolution, seed)
        chosen = dict(zip(_WIDGETS, given, strict=True))
        own = {key: value for key, value in chosen.items() if value and key != "name"}
        precision = "bf16" if computes_in_bf16(usual) else "fp32"
        config = residual_config(usual, **{**own, "seed": seed, "precision": precision})
        base = ComfyBase(model, clip, vae)
        base.check(precision == "bf16")
        make_room()
        made, curves, lines = [], [], []
        for subject in subjects:
            text.freeze()
            done = train_residual(base, text, subject, config, progress=host.progress())
            path = host.numbered(folder, f"{name}_{subject.token}", ".safetensors")
            save_residual(path, done.residual)
            written.remember(_ID, chosen, path)
            made.append(done.residual)
            curves.append(drawing.loss_curve(list(done.losses), config.samples.steps))
            share = float(done.residual.shift.norm() / done.residual.own.norm())
            lines.append(f"{path.name}: 'a {subject.class_noun}' is {subject.name}; it moves the word by {share:.0%}.")
        return io.NodeOutput(tuple(made), ui=host.preview(curves, cls, "\n".join(lines)))
