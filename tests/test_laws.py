"""Laws that no input breaks: what is pure keeps them, and what reads text or files reads it or says a sentence.

A hundred cases each; `bash quickstart.sh test tests/test_laws.py --hypothesis-profile=long` tries thousands.
"""

from __future__ import annotations

import json
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured import coloured
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from mudi_core import boxes, masks
from mudi_core.benchmark.spec_file import read_spec
from mudi_core.lora.file import load_lora
from mudi_core.lora.metadata import read_lora_subjects
from mudi_core.score.compare import score_matrices
from mudi_core.stage.cutouts import cut_outs, parse_photos
from mudi_core.stage.layout import Figure, given_layout, ordered_layout, random_layout
from mudi_core.stage.layout_config import LayoutConfig, parse_relative_scale
from mudi_core.stage.layout_text import Place, parse_places, places_text
from mudi_core.stage.segmix import SegMixConfig, compose, segmix
from mudi_core.subjects.picture_file import read_photo
from mudi_core.subjects.prompt import write_prompts
from mudi_core.subjects.storage import read_subjects
from mudi_core.train.config import TrainConfig
from mudi_core.train.optimizer import learning_rate
from mudi_core.train.parts import Fit, Learning, Samples
from mudi_core.train.resume import losses_so_far
from mudi_core.types import Layout, MudiError, Placement

SLACK = 1e-6
numbers = st.floats(-1e4, 1e4, width=32)
any_number = st.floats() | st.integers() | st.sampled_from([0, 1, -1, 1e-300, 1e300, 10**400])
fractions = st.floats(0, 1)
seeds = st.integers(0, 2**32)
canvases = st.tuples(st.integers(8, 200), st.integers(8, 200))


def box(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[boxes.Box]:
    """With an area."""
    corners = st.tuples(numbers, numbers, numbers, numbers).map(
        lambda n: (min(n[0], n[2]), min(n[1], n[3]), max(n[0], n[2]), max(n[1], n[3]))
    )
    return corners.filter(lambda b: b[2] - b[0] > 1e-3 and b[3] - b[1] > 1e-3)


def told(attempt: Callable[[], Any]) -> Any:
    """What an attempt gives, or None if it is refused in a sentence."""
    try:
        return attempt()
    except MudiError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return None


def in_file(data: bytes | str, name: str, read: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
        return told(lambda: read(path))


# Boxes and masks


@given(st.lists(box(numbers), max_size=6), st.lists(box(numbers), max_size=6))
def test_iou_is_symmetric_and_1_with_itself(a: list[boxes.Box], b: list[boxes.Box]) -> None:
    one, other = torch.tensor(a).reshape(-1, 4), torch.tensor(b).reshape(-1, 4)
    iou = boxes.iou(one, other)
    assert torch.equal(iou, boxes.iou(other, one).T)
    assert ((iou >= 0) & (iou <= 1 + SLACK)).all()
    assert torch.allclose(boxes.iou(one, one).diagonal(), torch.ones(len(a)), atol=1e-5)


@given(st.lists(box(numbers), min_size=1, max_size=6), canvases)
def test_clipping_keeps_inside_and_does_nothing_twice(some: list[boxes.Box], size: tuple[int, int]) -> None:
    once = boxes.clip(torch.tensor(some), size)
    assert (once >= 0).all() and (once[:, 0::2] <= size[0]).all() and (once[:, 1::2] <= size[1]).all()
    assert torch.equal(boxes.clip(once, size), once)
    assert (boxes.area(once) <= boxes.area(torch.tensor(some)) * (1 + 1e-5)).all()


@given(box(fractions), canvases)
def test_pixels_of_a_box_are_on_the_canvas(one: boxes.Box, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = boxes.to_pixels(one, size)
    assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]


@given(box(fractions), box(fractions), st.lists(box(fractions), max_size=4))
def test_more_above_leaves_less_to_see(below: boxes.Box, one: boxes.Box, above: list[boxes.Box]) -> None:
    before, after = boxes.visible_fraction(below, above), boxes.visible_fraction(below, [*above, one])
    assert -SLACK <= after <= before + SLACK <= 1 + 2 * SLACK
    assert -SLACK <= boxes.overlap(below, one) == boxes.overlap(one, below) <= 1 + SLACK


@given(st.integers(1, 40), st.integers(1, 40), seeds, fractions)
def test_a_masks_box_holds_all_of_it_and_touches_it(width: int, height: int, seed: int, threshold: float) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) ** 4
    found = masks.mask_box(mask, threshold)
    inside = mask > threshold
    assert (found is None) == (not inside.any())
    if found is not None:
        x0, y0, x1, y1 = found
        part = inside[y0:y1, x0:x1]
        assert part.sum() == inside.sum()
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()


@given(st.integers(1, 40), st.integers(1, 40), canvases, seeds)
def test_a_resized_mask_stays_one(width: int, height: int, size: tuple[int, int], seed: int) -> None:
    mask = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    resized = masks.resize(mask, size)
    assert resized.shape == (2, size[1], size[0])
    assert resized.min() >= mask.min() - SLACK and resized.max() <= mask.max() + SLACK
    assert torch.equal(masks.resize(mask, (width, height)), mask)


# Layouts and compositions

figures = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12).map(
    lambda aspects: [Figure(str(i), aspect) for i, aspect in enumerate(aspects)]
)
scales = st.none() | st.dictionaries(st.sampled_from("0123"), any_number, max_size=4)


@given(figures, seeds, canvases, scales, fractions, fractions)
@example([Figure("0", 1.0)], 0, (8, 8), {"0": 10**400}, 0.0, 0.0)
def test_everybody_stands_on_the_canvas_once(
    some: list[Figure], seed: int, size: tuple[int, int], scale: Any, overlap: float, visible: float
) -> None:
    config = told(lambda: LayoutConfig(relative_scale=scale, max_overlap=overlap, min_visible=visible))
    assume(config is not None)
    for layout in (
        told(lambda: random_layout(some, random.Random(seed), size, config)),
        told(lambda: ordered_layout(some, size, config)),
    ):
        if layout is not None:
            assert sorted(one.token for one in layout.placements) == sorted(figure.token for figure in some)
            for placement in layout.placements:
                x0, y0, x1, y1 = placement.xyxy
                assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@given(figures, seeds, canvases)
def test_the_same_seed_places_alike(some: list[Figure], seed: int, size: tuple[int, int]) -> None:
    first, second = (told(lambda: random_layout(some, random.Random(seed), size)) for _ in range(2))
    assert first == second


@given(st.lists(st.tuples(box(fractions), st.floats(1e-2, 1e2)), min_size=1, max_size=4), canvases)
def test_given_boxes_hold_their_figures(some: list[tuple[boxes.Box, float]], size: tuple[int, int]) -> None:
    stands = [Figure(str(i), aspect) for i, (_, aspect) in enumerate(some)]
    given_boxes = {str(i): one for i, (one, _) in enumerate(some)}
    layout = told(lambda: given_layout(given_boxes, stands, size))
    for placement in layout.placements if layout is not None else ():
        x0, y0, x1, y1 = given_boxes[placement.token]
        left, top, right, bottom = placement.xyxy
        assert x0 <= left < right <= x1 + SLACK and y0 <= top < bottom <= y1 + SLACK


CUTOUTS = cut_outs(coloured("red", "blue", "black"), 64)
placements = st.builds(
    Placement,
    st.sampled_from(["red", "blue", "black"]),
    box(fractions),
    st.integers(0, 1),
    st.booleans(),
    st.floats(-360, 360),
)


@given(st.lists(placements, max_size=5).map(tuple), canvases)
def test_a_composition_shares_every_pixel_out(some: tuple[Placement, ...], size: tuple[int, int]) -> None:
    mix = compose(Layout(size, some), CUTOUTS, caption="")
    assert mix.image.shape == (size[1], size[0], 3) and mix.masks.shape == (len(some), size[1], size[0])
    assert mix.image.min() >= 0 and mix.image.max() <= 1
    assert mix.masks.min() >= 0 if len(some) else True
    total: Tensor = mix.masks.sum(dim=0)
    assert total.max() <= 1 + SLACK
    assert (mix.image[total == 0] == 1).all(), "where nobody stands is the plain canvas"


@given(seeds, st.tuples(st.integers(8, 25), st.integers(8, 25)).map(lambda s: (s[0] * 8, s[1] * 8)), fractions)
def test_segmix_is_replayed_and_shows_two(seed: int, size: tuple[int, int], overlap: float) -> None:
    config = SegMixConfig(size=size, layout=LayoutConfig(max_overlap=overlap))
    first, second = (told(lambda: segmix(CUTOUTS, random.Random(seed), config)) for _ in range(2))
    assume(first is not None)
    assert torch.equal(first.image, second.image) and first.layout == second.layout
    assert len({one.token for one in first.layout.placements}) == 2


@given(st.integers(1, 5), st.integers(0, 7), seeds)
def test_matching_uses_every_row_once(n: int, m: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    s_gt, s_dc = torch.rand(n, n, generator=draw), torch.rand(m, n, generator=draw)
    scores = score_matrices(s_gt, s_dc)
    assert sorted(scores.order) == list(range(m))
    assert scores.score <= 1 + SLACK and scores.score_spectral <= 1 + SLACK
    assert m == n or scores.score == 0
    perfect = score_matrices(torch.eye(n), torch.eye(n)[torch.randperm(n, generator=draw)])
    assert perfect.score == pytest.approx(1)


# Texts

texts = st.text(max_size=200) | st.text(alphabet='[]{}",:.0123456789eE+-\\nulltrefas \n`', max_size=200)
json_values = st.recursive(
    st.none() | st.booleans() | any_number | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=12,
)


@given(texts | json_values.map(json.dumps))
def test_a_layout_is_read_or_refused(text: str) -> None:
    places = told(lambda: parse_places(text))
    for place in (places or {}).values():
        x0, y0, x1, y1 = place.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


thousandths = st.integers(0, 1000).map(lambda n: n / 1000)
written_places = st.builds(
    Place,
    box(thousandths),
    st.none() | st.integers(0, 99),
    st.none() | st.booleans(),
    st.none() | st.floats(-360, 360),
    st.floats(-1e6, 1e6),
)


@given(st.dictionaries(st.text(max_size=20), written_places, min_size=1, max_size=11))
def test_a_layout_that_is_written_is_read(places: dict[str, Place]) -> None:
    assert parse_places(places_text(places)) == places


@given(texts | st.from_regex(r"[ab:]{1,6}=[#0-9:.e-]{1,8}", fullmatch=True))
@example("a:a=1")
def test_numbers_by_token_are_read_or_refused(text: str) -> None:
    for numbers in (told(lambda: parse_relative_scale(text)), told(lambda: parse_photos(text))):
        if isinstance(numbers, dict):
            assert all(token and value >= 0 for token, value in numbers.items())


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=7), texts, texts, st.booleans())
def test_every_prompt_names_everybody(names: list[str], text: str, kind: str, every_order: bool) -> None:
    prompts = told(lambda: write_prompts(names, text, kind, every_order))
    for prompt in prompts or ():
        assert all(name in prompt for name in names)


TYPES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-10, 4096),
    "float": any_number,
    "bool": st.booleans(),
    "str": st.text(max_size=10),
}
DRAWN = {
    one.name: TYPES[str(one.type)] if str(one.type) in TYPES else st.just(None) | any_number
    for part in (Samples, Learning, Fit)
    for one in fields(part)
    if one.name != "samples_per_step"
    if str(one.type) in TYPES or str(one.type) == "float | None"
}


@given(st.fixed_dictionaries({}, optional=DRAWN))
@example({"learning_rate": 10**400, "lr_warmup": 1})
@example({"steps": 157, "lr_warmup": 157})
def test_training_settings_are_sound_or_refused(settings: dict[str, Any]) -> None:
    config = told(lambda: TrainConfig.of(**settings))
    if config is not None:
        assert json.loads(config.to_json())["steps"] == config.samples.steps
        steps = config.samples.steps
        for step in (0, steps // 2, steps - 1):
            assert 0 < learning_rate(config.learning, step, steps) <= config.learning.learning_rate


# Files


@given(st.binary(max_size=300) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_spec_is_read_or_refused(data: bytes) -> None:
    in_file(data, "spec.toml", read_spec)


spec_values = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["mini", "mudi", "segmix", "{subjects}", "../x", ""]) | st.integers(-2, 3) | st.floats()
        | st.lists(st.sampled_from(["mudi", "{subjects}", "x"]), max_size=3) | st.booleans()
        | st.dictionaries(
            st.sampled_from(["cats", "steps", "rank", "..", "a/b", "detector", "size", "resolution"]),
            st.integers(-2, 300) | st.text(max_size=5) | st.lists(st.integers(-1, 99), max_size=3) | st.floats(),
            max_size=3,
        )
        for name in "name base combos methods prompts seeds seed general_nouns train generate judges other".split()
    },
)  # fmt: skip


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.1f}"
    return json.dumps(value)


@given(spec_values)
def test_a_spec_of_other_kinds_is_read_or_refused(values: dict[str, Any]) -> None:
    usual = {"base": "mini", "combos": {"cats": 0}, "methods": ["mudi"], "prompts": ["{subjects}"], "seeds": 1}
    text = "".join(f"{name} = {toml(value)}\n" for name, value in {**usual, **values}.items())
    spec = in_file(text, "spec.toml", read_spec)
    assert spec is None or all(spec.cells())


lines = st.dictionaries(
    st.sampled_from(["id", "file_name", "mask_path", "text"]),
    st.sampled_from(["a", "b", "p.png", "m.png", "../p.png", "", "\0", "\ud800", "x" * 300]) | json_values,
)
first_lines = st.dictionaries(st.just("id"), st.dictionaries(st.sampled_from("ab"), st.text(max_size=12)) | json_values)


def set_of(text: bytes) -> Any:
    def read(path: Path) -> Any:
        for name in ("p.png", "m.png"):
            (path.parent / name).touch()
        return read_subjects(path.parent)

    return in_file(text, "metadata.jsonl", read)


@given(st.binary(max_size=300))
def test_bytes_are_no_dataset(data: bytes) -> None:
    assert set_of(data) is None


@given(first_lines, st.lists(lines | json_values, max_size=4))
def test_metadata_is_read_or_refused(first: Any, others: list[Any]) -> None:
    told_lines = [json.dumps(line).encode() for line in (first, *others)]
    assert set_of(b"\n".join(told_lines)) is None  # the pictures are empty files


LORA = save(
    {
        "lora_unet_q.lora_down.weight": torch.ones(2, 3),
        "lora_unet_q.lora_up.weight": torch.ones(4, 2),
        "lora_unet_q.alpha": torch.tensor(2.0),
        "run.losses": torch.ones(3, dtype=torch.float64),
    },
    {
        "format": "mudi checkpoint 2",
        "mudi_tokens": '["olis"]',
        "mudi_class_nouns": '["dog"]',
        "mudi_config": '{"resolution": 64}',
        "mudi_base": "mini",
    },
)


@given(st.lists(st.tuples(st.integers(0, len(LORA) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(LORA)))
def test_a_damaged_lora_is_read_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(LORA)
    for at, byte in changes:
        data[at] = byte
    for cut in (bytes(data), bytes(data[:length])):
        for read in (load_lora, read_lora_subjects, losses_so_far):
            in_file(cut, "lora.safetensors", read)


shapes = st.lists(st.integers(0, 3), max_size=3)


@given(st.dictionaries(
    st.sampled_from(["lora_unet_q.lora_down.weight", "lora_unet_q.lora_up.weight", "lora_unet_q.alpha", "run.losses"]),
    shapes,
))  # fmt: skip
def test_a_lora_of_other_shapes_is_sound_or_refused(tensors: dict[str, list[int]]) -> None:
    data = save({name: torch.ones(shape) for name, shape in tensors.items()})
    read = in_file(data, "lora.safetensors", load_lora)
    if read is not None:
        state, _ = read
        assert state["lora_unet_q.lora_down.weight"].shape[0] == state["lora_unet_q.lora_up.weight"].shape[1]


said = st.sampled_from(["mudi_tokens", "mudi_class_nouns", "mudi_config", "mudi_base"])


@given(st.dictionaries(said, texts | json_values.map(json.dumps)))
def test_what_a_lora_says_is_plain_or_refused(about: dict[str, str]) -> None:
    usual = {"mudi_tokens": '["olis"]', "mudi_class_nouns": '["dog"]', "mudi_config": '{"resolution": 64}'}
    about = {key: value.encode("utf-8", "replace").decode() for key, value in about.items()}
    data = save({"x": torch.zeros(1)}, {"mudi_base": "mini", **usual, **about})
    known = in_file(data, "lora.safetensors", read_lora_subjects)
    if known is not None:
        assert not set("()[]{}<>:\\/|\n\0") & set("".join(known.names))
        assert all(0 < side <= 8192 for side in known.size)


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"


@given(st.binary(max_size=200), st.booleans())
def test_bytes_are_no_photo(data: bytes, with_header: bool) -> None:
    assert in_file((PNG if with_header else b"") + data, "photo.png", read_photo) is None


@given(st.lists(st.tuples(fractions, st.integers(0, 255)), min_size=1, max_size=4), st.sampled_from(["PNG", "JPEG"]))
def test_a_damaged_photo_is_read_or_refused(changes: list[tuple[float, int]], kind: str) -> None:
    data = bytearray(PHOTOS[kind])
    for at, byte in changes:
        data[round(at * (len(data) - 1))] = byte
    photo = in_file(bytes(data), "photo.png", read_photo)
    if photo is not None:
        assert photo.image.ndim == 3 and 0 <= photo.image.min() and photo.image.max() <= 1


def _photo(kind: str) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


PHOTOS = {kind: _photo(kind) for kind in ("PNG", "JPEG")}
