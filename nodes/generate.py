"""Layout: the subjects get their places on a canvas of the picture's size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..mudi_core.types import BadLayout, Layout
from . import convert, drawing, editor, host
from .host import widgets
from .layer_editor import places_of
from .scene import fitted
from .sockets import LayersSocket, LayoutSocket, PlacedSubjects, Subjects, boxes_input

if TYPE_CHECKING:
    from torch import Tensor

    from ..mudi_core.jobs.generate import Arrangement
    from ..mudi_core.stage.layout_text import Place
    from ..mudi_core.types import SubjectSet

CATEGORY = "MuDI/3 generate"
MODES = RANDOM, GIVEN, TEXT, ROW, GRID = "random", "given boxes", "from text", "row", "grid"
ARRANGEMENTS: dict[str, Arrangement] = {ROW: "row", GRID: "grid"}


class MakeLayout(io.ComfyNode):  # type: ignore[misc]
    """Put the subjects on a canvas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiLayout",
            essentials_category="Characters",
            display_name="Layout (MuDI)",
            category=CATEGORY,
            description="Puts the subjects' cut-outs on a canvas of the picture's size. Init Latent makes a start of "
            "it: the picture will roughly follow these places, not copy the cut-outs.",
            search_aliases=["composition", "regional", "placement", "MuDI layout"],
            is_output_node=True,
            inputs=[
                Subjects.Input("subjects", tooltip="The subjects that are to be in the picture."),
                *widgets.size("Pixels of the picture; 192 for the mini model."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=RANDOM,
                    tooltip="random: places and sizes from the seed. given boxes: the boxes that are connected. from "
                    "text: the places that are written below, by you or a language model. row, grid: side by side in "
                    "the subjects' order.",
                ),
                widgets.seed("Decides the random places, and which photo of each subject is used."),
                io.String.Input(
                    "relative_sizes",
                    default="",
                    placeholder="olis:hta=1:2",
                    tooltip="Random places, row, grid: heights by token or class noun, 'olis:hta=1:2' or 'monster toy "
                    ": can = 1 : 2' when the second is twice as tall. Empty: about alike.",
                ),
                io.Float.Input(
                    "overlap",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Random places: largest share of a subject's box that others may cover, in pairs and all "
                    "together. 0 keeps them apart; 1 may hide one completely.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder='{"olis": [50, 200, 450, 1000], "hta": [500, 300, 950, 1000]}',
                    tooltip="From text: a box for each token as JSON, left, top, right, bottom, in 0..1 or 0..1000; "
                    'or {"box": [...], "photo": "#2", "mirror": true, "rotation": 15, "depth": 1}, each but the box if '
                    'you like. Photo "#1" is the first; a number without # counts from 0, as in older workflows. A '
                    "greater depth is further back.",
                ),
                boxes_input(
                    "Given boxes: one for each subject, in the subjects' order, in pixels of the canvas.", optional=True
                ),
                io.String.Input(
                    "photos",
                    default="random",
                    optional=True,
                    placeholder="random",
                    tooltip="Which photo of each subject: random (by the seed), best (whole, and the largest), or by "
                    "token, counted from 1: 'olis:hta=#1:#3'. A number without # counts from 0, as in older workflows.",
                ),
                io.Boolean.Input(
                    "mirror",
                    default=False,
                    optional=True,
                    tooltip="The seed decides whether each subject is mirrored. Not for writing and one-sided marks.",
                ),
                io.Float.Input(
                    "rotation",
                    default=0.0,
                    min=0.0,
                    max=180.0,
                    step=1.0,
                    optional=True,
                    tooltip="The seed turns each subject by up to this many degrees to either side.",
                ),
                io.Image.Input(
                    "scene",
                    optional=True,
                    tooltip="A picture that the subjects are put into, such as a photo of yours. It fills the canvas: "
                    "another shape is cut. Init Latent keeps it where no figure stands.",
                ),
                LayersSocket.Input(
                    "layers",
                    optional=True,
                    tooltip="Given boxes, instead of boxes: layers of newer ComfyUI, each named after its subject.",
                ),
            ],
            outputs=[LayoutSocket.Output("layout", display_name="layout", tooltip="For Init Latent.")],
        )

    @classmethod
    def execute(
        cls,
        subjects: SubjectSet,
        width: int,
        height: int,
        mode: str,
        seed: int,
        relative_sizes: str,
        overlap: float,
        text: str = "",
        boxes: Any = None,
        photos: str = "random",
        mirror: bool = False,
        rotation: float = 0.0,
        scene: Tensor | None = None,
        layers: Any = None,
    ) -> io.NodeOutput:
        from ..mudi_core.jobs.generate import GenerateConfig, default_prompt
        from ..mudi_core.stage.cutouts import Poses, cut_outs, old_numbers, parse_photos
        from ..mudi_core.stage.layout import remarks
        from ..mudi_core.stage.layout_config import LayoutConfig, parse_relative_scale
        from ..mudi_core.stage.layout_text import parse_places, photo_number

        host.check_choice("mode", mode, MODES)
        places = None
        if mode == TEXT:
            places = parse_places(text)
        elif mode == GIVEN:
            by_layers = boxes is None and layers is not None
            places = (places_of if by_layers else _given)(layers if by_layers else boxes, subjects, (width, height))
        heights = parse_relative_scale(relative_sizes) if relative_sizes.strip() else None
        config = GenerateConfig(
            default_prompt(subjects),
            size=(width, height),
            seed=seed,
            layout=LayoutConfig(max_overlap=overlap, min_visible=1 - overlap, relative_scale=heights),
            arrangement=ARRANGEMENTS.get(mode, "random"),
            places=places,
            poses=Poses(parse_photos(photos), mirror, rotation),
        )
        ground, about = (None, "") if scene is None else fitted(scene, (width, height))
        with host.progress()("cutting out") as update:
            placed = PlacedSubjects(cut_outs(subjects, max(width, height), update), config, ground)
        layout = drawn_layout(placed, seed, 0)
        said = [*filter(None, [old_numbers(photos), about]), *remarks(layout, subjects.tokens)]
        for remark in said:
            host.log.warning(remark)
        canvas = placed.canvas(layout)
        who = ", ".join(f"{subjects[one.token].name}: photo {photo_number(one.photo)}" for one in layout.placements)
        preview = host.preview([drawing.small(canvas.image)], cls, "\n".join([who, *said]))
        return io.NodeOutput(placed, ui={**preview, **editor.shown(placed, layout, mode)})


def drawn_layout(placed: PlacedSubjects, seed: int, number: int) -> Layout:
    """Draw the layout of picture ``number``, counted from 0, as the library's `generate` does from this seed."""
    from ..mudi_core.jobs.generate import draw_layout

    config = placed.config
    assert config.size is not None
    return draw_layout(placed.cutouts, replace(config, seed=seed), number, config.size)


def _given(boxes: Any, subjects: SubjectSet, size: tuple[int, int]) -> dict[str, Place]:
    """Return a box for each token, in fractions of the canvas, cut at its borders. Raise `BadLayout`."""
    from ..mudi_core.boxes import area, clip
    from ..mudi_core.stage.layout_text import Place

    found = [box for one in convert.boxes_per_image([] if boxes is None else boxes) for box in one]
    if len(found) != len(subjects):
        raise BadLayout(
            f"There are {len(subjects)} subjects but {len(found)} boxes. Connect one box for each subject, in the "
            f"order {', '.join(subjects.tokens)}, or choose another mode."
        )
    inside = clip(convert.xyxy(found), size)
    for token, box, seen in zip(subjects.tokens, found, area(inside).tolist(), strict=True):
        if not seen > 0:
            raise BadLayout(
                f"The box of '{token}' ({box['width']:g}x{box['height']:g} px at {box['x']:g}, {box['y']:g}) has no "
                f"part of the canvas of {size[0]}x{size[1]} px. Was it found in a picture of another size?"
            )
    fractions = inside / inside.new_tensor((*size, *size))
    return {
        token: Place((x0, y0, x1, y1))
        for token, (x0, y0, x1, y1) in zip(subjects.tokens, fractions.tolist(), strict=True)
    }
