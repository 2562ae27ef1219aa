"""What no link should bring, into every socket of every node: it does its work, or says in a sentence what came."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfyui import Comfy
from comfyui_server import Graph, changed
from test_nodes_laws import MORE
from test_nodes_refusals import EVERYTHING, files, graph, node

from mudi_core.types import MudiError

__all__ = ["graph"]

ALL: Graph = {
    **EVERYTHING,
    **MORE,
    "sigmas": node("BasicScheduler", model=["checkpoint", 0], scheduler="normal", steps=2, denoise=1.0),
    "noise": node("MudiNoise", model=["checkpoint", 0], sigmas=["sigmas", 0], seed=0),
    "residual_of": node(
        "MudiTrainResidual",
        **{"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "vae": ["checkpoint", 2], "subjects": ["load", 0]},
        **{"name": "walked", "steps": 1, "learning_rate": 1e-3, "batch_size": 1, "resolution": 64, "seed": 0},
    ),
    "below": node("EmptyLatentImage", width=192, height=128, batch_size=1),
}
BOX = {"x": 8, "y": 8, "width": 80, "height": 90}
OPTIONAL: dict[str, dict[str, Any]] = {
    "latent": {"below": ["below", 0], "model": ["checkpoint", 0]},
    "layout": {
        "boxes": [dict(BOX), {**BOX, "x": 100}],
        "mode": "given boxes",
    },
    "subject": {"subjects": ["load", 0], "token": "lun"},
    "dataset": {"priors": ["load", 0]},
    "ready": {"trained": ["checkpoint", 0]},
    "separate": {"latent": ["latent", 0]},
    "regions": {"latent": ["latent", 0]},
    "guidance": {"latent": ["latent", 0]},
    "reference": {"latent": ["latent", 0]},
    "detail": {"loras": ["taught", 0]},
}
"""Sockets that the graph leaves open."""
NUMBERS = torch.full((1, 64, 64, 3), math.nan)


def layers(*, canvas: Any = (192, 128), **changes: Any) -> dict[str, Any]:
    """A document of core's Layer Editor with a layer for each of two subjects, the second one changed."""
    one = {"image": torch.rand(1, 40, 30, 3), "type": "raster", "x": 20, "y": 20, "z_index": 0, "name": ""}
    return {"version": 1, "canvas": canvas, "layers": [one, {**one, **changes}]}


BAD: dict[str, list[Any]] = {
    "IMAGE": [
        torch.zeros(0, 64, 64, 3),
        torch.zeros(1, 0, 64, 3),
        torch.rand(1, 1, 64, 3),
        torch.rand(1, 64, 3, 3),
        torch.rand(1, 2, 2, 1),
        torch.rand(1, 64, 64, 4),
        torch.rand(1, 64, 64, 2),
        torch.rand(1, 4, 64, 64, 3),
        torch.tensor(0.5),
        NUMBERS,
        NUMBERS * math.inf,
        torch.full((2, 64, 64, 3), 7.0),
        torch.full((1, 64, 64, 3), math.inf),
        torch.full((1, 64, 64, 3), 255, dtype=torch.uint8),
        torch.rand(5, 40, 72, 3),
        [torch.rand(1, 64, 64, 3)],
    ],
    "VAE": ["words"],
    "INT": [2.5, 100.5, math.inf, math.nan, "4"],
    "FLOAT": [math.nan, -math.inf, "1"],
    "MASK": [
        *(torch.zeros(0, 64, 64), torch.zeros(1, 0, 0), torch.rand(1, 3, 64), torch.rand(4), NUMBERS[..., 0]),
        *(torch.rand(64, 64), torch.rand(5, 64, 48), torch.rand(1, 1, 64, 64), torch.rand(2, 1, 1)),
        *(torch.full((1, 64, 64), 7.0), torch.ones(1, 64, 64, dtype=torch.bool), [torch.rand(1, 64, 64)]),
    ],
    "LAYERS": [
        *({}, [], "words", {"layers": None}, {"layers": []}, {"layers": [None]}, {"layers": ["sky"]}),
        *(layers()["layers"], [layers()], {**layers(), "layers": layers()["layers"][:1]}),
        *(layers(canvas=canvas) for canvas in (None, (), (0, 0), (192,), "large", (math.nan, 9), (-4, 9), ("a", 1), 5)),
        *(layers(image=image) for image in (None, torch.rand(40, 30, 3), torch.rand(0, 4, 3, 3), torch.tensor(1.0))),
        *(layers(**{key: bad}) for key in ("x", "y", "w", "h") for bad in (None, "1", math.nan, math.inf, -9e9)),
        *(layers(rotation=bad) for bad in (None, "left", math.nan, math.inf)),
        *(layers(z_index=bad) for bad in (None, "front", math.nan)),
        *(layers(name=bad) for bad in (None, 5, "sky")),
        *(layers(visible=bad) for bad in (None, False)),
        layers(flip_h="yes", flip_v=None),
    ],
    "LATENT": [
        {},
        {"samples": torch.zeros(0, 4, 16, 24)},
        {"samples": torch.zeros(1, 16, 16, 24)},
        {"samples": torch.zeros(1, 4, 3, 16, 24)},
        {"samples": torch.zeros(1, 4, 1, 1)},
        {"samples": torch.full((1, 4, 16, 24), math.nan)},
        {"samples": torch.zeros(4, 16)},
    ],
    "BOUNDING_BOX": [
        [],
        [[]],
        {},
        [{"x": 1.0}],
        [{"x": math.nan, "y": 0.0, "width": 9.0, "height": 9.0}],
        [{"x": "1", "y": 0, "width": 9, "height": 9}],
        {"x": 900, "y": 900, "width": 90, "height": 90},
        {"x": 1, "y": 1, "width": -9, "height": 0},
        [[1, 2, 3, 4]],
        torch.rand(2, 4),
        *(BOX, [BOX], [[BOX]], [[BOX], [BOX], [BOX]], [[[BOX]]], [[BOX], []], [None, BOX], {"boxes": [BOX]}),
        *({**BOX, "width": math.inf}, {**BOX, "height": None}, {**BOX, "score": "high"}, {**BOX, "score": math.nan}),
    ],
    "SIGMAS": [torch.zeros(0), torch.zeros(2, 2), torch.full((3,), math.nan), torch.full((3,), -1.0)],
    "CONDITIONING": [[], [[]], [[torch.zeros(0, 77, 8), {}]], [["words", {}]]],
}
"""By the type of a socket, what other nodes hand on. None and a value of no known type come to each."""
ANYTHING = (None, object())
BEFORE = {"layers": "boxes"}
"""Sockets that count only where nothing comes by another one."""


class Given:
    """What each node of the graph gives, made when it is first asked for."""

    def __init__(self, comfy: Comfy, graph: Graph) -> None:
        self.comfy, self.graph = comfy, graph
        self.made: dict[str, Any] = {}

    def inputs(self, name: str) -> dict[str, Any]:
        """A node's inputs with what comes by its links, as ComfyUI's executor gives them."""
        about = self.graph[name]
        ours = self.comfy.nodes.get(about["class_type"])
        as_list = ours is not None and ours.GET_SCHEMA().is_input_list
        found = {}
        for key, value in about["inputs"].items():
            linked = isinstance(value, list) and isinstance(value[0], str)
            several = self.output(*value) if linked else [value]
            found[key] = several if as_list else several[0]
        return found

    def output(self, name: str, slot: int) -> list[Any]:
        if name not in self.made:
            kind, inputs = self.graph[name]["class_type"], self.inputs(name)
            if kind in self.comfy.nodes:
                results = self.comfy.run(kind, **inputs).result
                lists = [one.is_output_list for one in self.comfy.node(kind).GET_SCHEMA().outputs]
                self.made[name] = [v if is_list else [v] for v, is_list in zip(results, lists, strict=True)]
            elif kind == "BasicScheduler":
                custom = self.comfy.core("comfy_extras.nodes_custom_sampler")
                self.made[name] = [[custom.BasicScheduler().get_sigmas(*inputs.values())[0]]]
            else:
                self.made[name] = [[value] for value in self.comfy.run_stock(kind, **inputs)]
        found: list[Any] = self.made[name][slot]
        return found


@pytest.fixture
def kept(comfy: Comfy) -> Iterator[None]:
    before = files(comfy)
    yield
    for file in files(comfy).keys() - before.keys():
        file.unlink()
    shutil.rmtree(comfy.base / "user" / "__mudi", ignore_errors=True)


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"sigmas", "below", "words", "checkpoint"}))
def test_whatever_comes_by_a_link_is_done_or_told(comfy: Comfy, graph: Graph, kept: None, name: str) -> None:
    whole = changed({**ALL, "photos": graph["photos"]}, **OPTIONAL)
    given = Given(comfy, whole)
    node_id, good = whole[name]["class_type"], given.inputs(name)
    schema = comfy.node(node_id).GET_SCHEMA()
    tried = 0
    for widget in schema.inputs:
        kind = widget.get_io_type()
        lists: list[Any] = [[], [None]] if schema.is_input_list else []
        if schema.is_input_list and kind in ("IMAGE", "MASK"):  # of several sizes; a batch where one is enough
            several = torch.rand(3, 64, 48, *([3] if kind == "IMAGE" else []))
            lists += [[several], [several, several[:1, :40]], list(several[:, None].movedim(1, 0).unbind(1))]
        values = [[bad] if schema.is_input_list else bad for bad in (*ANYTHING, *BAD.get(kind, ()))]
        without = {key: value for key, value in good.items() if key != BEFORE.get(widget.id)}
        for value in [*values, *lists]:
            if widget.id in ("download", "ask"):
                continue
            tried += 1
            try:
                comfy.run(node_id, **{**without, widget.id: value})
            except MudiError as error:
                words = str(error)
                assert words.endswith((".", '"')) and "\n" not in words and " at 0x" not in words, words
            except Exception as error:
                pytest.fail(f"{widget.id} = {value!r:.200}: {type(error).__name__}: {error}")
    assert tried == 0 or tried >= 2


def test_every_type_of_socket_is_known(comfy: Comfy) -> None:
    kinds = {one.get_io_type() for node in comfy.nodes.values() for one in node.GET_SCHEMA().inputs}
    assert kinds == comfy.module("ranges").KINDS.keys()


def test_a_whole_number_may_come_as_another_node_calculates_it(comfy: Comfy) -> None:
    photos = [comfy.run("MudiMiniPhotos", pair=pair(comfy), count=count, side=96, seed=0).result for count in (2, 2.0)]
    assert all(map(torch.equal, photos[0][0], photos[1][0])) and len(photos[0][0]) == 2
    with pytest.raises(MudiError, match="count must be a whole number; by its link comes something else .2.5.$|2.5"):
        comfy.run("MudiMiniPhotos", pair=pair(comfy), count=2.5, side=96, seed=0)


def pair(comfy: Comfy) -> str:
    options: list[str] = comfy.node("MudiMiniPhotos").GET_SCHEMA().inputs[0].options
    return options[0]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_value_that_is_no_number_is_told(comfy: Comfy, value: float) -> None:
    picture = torch.full((1, 64, 64, 3), 0.5)
    picture[0, 5, 6, 1] = value
    with pytest.raises(MudiError, match=r"Picture 1 holds values that are not numbers \(NaN or infinity\)"):
        comfy.run("MudiFindWatermark", images=picture, key="words")


def test_whole_numbers_up_to_255_are_no_picture(comfy: Comfy) -> None:
    with pytest.raises(MudiError, match="Picture 1 has whole numbers up to 255, where ComfyUI has 0 to 1"):
        comfy.run("MudiFindWatermark", images=torch.full((1, 64, 64, 3), 255, dtype=torch.uint8), key="words")


@pytest.mark.parametrize("size, fits", [((8, 8), False), ((3, 300), True), ((1, 300), False), ((16, 16), True)])
def test_a_picture_too_small_for_a_mark_is_told_and_not_called_unmarked(
    comfy: Comfy, size: tuple[int, int], fits: bool
) -> None:
    picture = torch.full((1, *size, 3), 0.5)
    if fits:
        picture = comfy.run("MudiWatermark", images=picture, key="words", strength=1.0).result[0]
    else:
        with pytest.raises(MudiError, match=f"Picture 1 is {size[1]}x{size[0]} px, too small to hold a mark"):
            comfy.run("MudiWatermark", images=picture, key="words", strength=1.0)
    found, verdicts = comfy.run("MudiFindWatermark", images=picture, key="words").result
    assert found is fits and verdicts.startswith("picture 1: marked" if fits else "picture 1: too small for a mark")


def test_no_picture_is_not_marked(comfy: Comfy) -> None:
    with pytest.raises(MudiError, match="There is no picture: the batch is empty"):
        comfy.run("MudiFindWatermark", images=torch.zeros(0, 64, 64, 3), key="words")


@pytest.mark.parametrize(
    "box", [(144, 168, 140, 200), (500, 500, 50, 60), (10, 10, 0, 0), (10, 10, -5, 60), (80, 80, 60, 60)]
)
def test_a_box_of_another_picture_is_told(comfy: Comfy, mini_weights: None, box: tuple[float, ...]) -> None:
    inputs = {"photos": [torch.rand(1, 96, 96, 3)], "segmenter": ["mini (embedded)"], "download": [False]}
    strange = dict(zip(("x", "y", "width", "height"), box, strict=True))
    with pytest.raises(
        MudiError, match="photo 1 is 96x96 px.*does not lie in it. Was it found in a picture of another"
    ):
        comfy.run("MudiSamMask", boxes=[[strange]], **inputs)
