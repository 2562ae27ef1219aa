"""Best Pictures: pictures of all subjects from many prompts, of which a training goes on from the best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from ..mudi_core.names import plain_name
from ..mudi_core.subjects.prompt import MANY_SCENES
from . import convert, drawing, host
from .compare import Judge, Judging
from .host import widgets
from .identity import identity
from .painting import Painter
from .sockets import Dataset, LayoutSocket, PlacedSubjects, TrainingSet

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.best_pictures import Best
    from ..mudi_core.jobs.picture_shelf import FolderShelf

COLUMNS, SHOWN = 8, 32
KIND = "folder of pictures"
STOPPED = "stopped_pictures"
"""The folder in output/mudi for pictures of runs that have not ended."""


class BestPictures(io.ComfyNode):  # type: ignore[misc]
    """Paint pictures of all subjects and keep the best to train on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiBestPictures",
            display_name="Best Pictures (MuDI)",
            category="MuDI/2 train",
            description="Makes pictures of all subjects from many prompts with their LoRA, and keeps the best of those "
            "in which every subject is itself. Train LoRA goes on from them (preset iterate), to mix less.",
            search_aliases=["iterative training", "self-training", "best of n", "synthetic dataset", "iterate"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="With the LoRA of all subjects on it."),
                io.Clip.Input("clip", tooltip="Reads the prompts."),
                io.Vae.Input("vae", tooltip="The VAE of the checkpoint that samples."),
                LayoutSocket.Input("layout", tooltip="From Layout: which subjects to show, and the pictures' size."),
                io.String.Input(
                    "prompts",
                    default="\n".join(MANY_SCENES),
                    multiline=True,
                    tooltip="What the subjects do or where they are, a line each, in turn; or whole prompts with "
                    "{subjects} for the names. The prompt becomes the picture's caption.",
                ),
                io.String.Input(
                    "negative", default="sticker, collage", multiline=True, tooltip="What the pictures should not be."
                ),
                io.Int.Input("count", default=200, min=1, max=10_000, tooltip="Pictures that are made."),
                io.Int.Input("keep", default=50, min=1, max=10_000, tooltip="Pictures that are kept, the best ones."),
                io.Int.Input(
                    "per_prompt",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Most that are kept of one prompt. 0: twice an even share.",
                ),
                io.Int.Input(
                    "least",
                    default=10,
                    min=1,
                    max=10_000,
                    tooltip="With fewer pictures in which every subject is itself the node stops and says why.",
                ),
                widgets.seed("Of the pictures: each has a seed and places of its own."),
                *host.sampler_widgets(scheduler="ddim_uniform"),
                widgets.gamma(),
                *widgets.judging(),
                io.String.Input(
                    "name",
                    default="best",
                    tooltip="Of the folder in output/mudi with the pictures, their scores and seeds; a number is put "
                    "after it. A plain name without a path.",
                ),
            ],
            outputs=[
                Dataset.Output(
                    display_name="dataset", tooltip="For Train LoRA with the preset iterate, on this model."
                ),
                io.Image.Output("images", display_name="images", tooltip="The kept pictures."),
                io.String.Output("kept_prompts", display_name="prompts", is_output_list=True, tooltip="Their prompts."),
                io.Int.Output("seeds", display_name="seeds", is_output_list=True, tooltip="Their seeds."),
                io.Float.Output("scores", display_name="scores", is_output_list=True, tooltip="Their scores."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return host.is_plain_name(name, KIND)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        layout: PlacedSubjects,
        prompts: str,
        negative: str,
        count: int,
        keep: int,
        per_prompt: int,
        least: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        gamma: float,
        name: str,
        **judging: Any,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.best_pictures import BestConfig, NoneSound, best_pictures
        from ..mudi_core.jobs.unfinished import how_it_begins, unfinished
        from ..mudi_core.subjects.prompt import write_prompt

        host.check_sampler(sampler_name, scheduler)
        names = [one.name for one in layout.cutouts.subjects]
        whole = tuple(write_prompt(names, line) for line in filter(None, map(str.strip, prompts.splitlines())))
        config = BestConfig(whole, count, keep, per_prompt, least, seed)
        root = _folder(name).parent
        judge = Judge(layout.cutouts.subjects, Judging(**judging))
        said = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in {*whole, negative}}
        sampler = host.Sampler(model, None, said[negative], steps, cfg, sampler_name, scheduler)
        made_of = {"prompts": identity(whole, *map(said.get, whole)), "seed": seed}
        made_of |= _made_of(sampler, vae, layout, judge, gamma)

        def paint(prompt: str, one: int) -> Tensor:
            return Painter(replace(sampler, positive=said[prompt]), vae, layout, _hear_cancel, 1).paint(one, gamma)[1]

        with unfinished(root / STOPPED, made_of) as shelf:
            begins = how_it_begins(shelf, made_of)
            try:
                best = best_pictures(config, layout.cutouts.subjects, paint, judge, shelf, host.progress())
            except NoneSound as error:
                raise NoneSound(f"{error} A higher count goes on from these, which are in {shelf.folder}.") from error
            shelf.move(_folder(name))
            return cls._given(best, layout, shelf, begins)

    @classmethod
    def _given(cls, best: Best, layout: PlacedSubjects, shelf: FolderShelf, begins: str) -> io.NodeOutput:
        from ..mudi_core.jobs.best_pictures import as_subjects

        subjects = as_subjects(best, layout.cutouts.subjects, shelf)
        images = [shelf.image(one) for one in best.kept]
        sheet = drawing.small(drawing.grid([drawing.small(image) for image in images[:SHOWN]], COLUMNS))
        text = f"{best.words} They are in {shelf.folder}.{f' ({begins})' if begins else ''}"
        return io.NodeOutput(
            TrainingSet(subjects, segmix_prob=0.0),
            convert.image_batch(images),
            [one.prompt for one in best.kept],
            [one.seed for one in best.kept],
            [one.score for one in best.kept],
            ui=host.preview([sheet], cls, text),
        )


def _hear_cancel(done: int, total: int, words: str = "") -> None:
    """Obey Cancel between two steps, and say nothing of them: the bar counts pictures."""
    host.hear_cancel()


def _folder(name: str) -> Path:
    """Return a new folder of this name in ComfyUI's output folder, which is not made yet."""
    return host.numbered(Path(folder_paths.get_output_directory()) / "mudi", plain_name(name, KIND), "")


def _made_of(sampler: host.Sampler, vae: Any, layout: PlacedSubjects, judge: Judge, gamma: float) -> dict[str, Any]:
    """Return everything that pictures and scores depend on but prompts and seed, by name."""
    from ..mudi_core import __version__

    settings = (sampler.steps, sampler.cfg, sampler.sampler_name, sampler.scheduler, gamma)
    return {
        "version of MuDI": __version__,
        "model": identity(sampler.model),
        "vae": identity(vae),
        "layout": identity(layout.cutouts, replace(layout.config, seed=0)),
        "negative prompt": identity(sampler.negative),
        "sampler settings": [repr(one) for one in settings],
        "eyes": [repr(judge.how), *(identity(getattr(eye, "model", eye)) for eye in judge.how.eyes())],
    }
