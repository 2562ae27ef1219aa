"""Layout and Init Latent: the library's own start of a picture, as a LATENT for the stock sampler."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import Comfy
from PIL import Image

from mudi_core.bases.vae import NoNumbers
from mudi_core.boxes import visible_fraction
from mudi_core.jobs.generate import BadGenerateConfig, GenerateConfig, draw_layout
from mudi_core.stage.cutouts import BadPoses, cut_outs
from mudi_core.stage.layout_config import BadRelativeScale
from mudi_core.stage.layout_text import BadPlaces
from mudi_core.stage.segmix import compose
from mudi_core.start.init_latent import BadLatent, init_latent, shifted_noise
from mudi_core.types import BadLayout, Layout, SubjectSet

SIDE = 192
BOXES = '{"olis": [0, 100, 450, 900], "hta": [500, 100, 1000, 900]}'


def place(comfy: Comfy, subjects: SubjectSet, seed: int = 3, **more: Any) -> Any:
    settings = {"width": SIDE, "height": SIDE, "mode": "random", "relative_sizes": "", "overlap": 0.4, **more}
    return comfy.run("MudiLayout", subjects=subjects, seed=seed, **settings)


def start(
    comfy: Comfy, layout: Any, vae: Any, gamma: float = 1.5, batch_size: int = 1, seed: int = 3, **more: Any
) -> Any:
    return comfy.run("MudiInitLatent", layout=layout, vae=vae, gamma=gamma, batch_size=batch_size, seed=seed, **more)


def box(x: float, y: float, width: float = 50.0) -> dict[str, float]:
    """As detectors give it, in pixels."""
    return {"x": x, "y": y, "width": width, "height": 80.0, "score": 1.0}


def drawn(placed: Any, number: int = 0) -> Layout:
    return draw_layout(placed.cutouts, placed.config, number, placed.config.size)


@pytest.fixture
def mini(comfy: Comfy, random_mini: None) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE with random weights."""
    model, clip, vae = comfy.run("MudiMiniCheckpoint").result
    return model, clip, vae


def test_a_layout_is_what_the_library_draws_from_the_seed(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    output = place(comfy, drawn_subjects)
    (placed,) = output.result
    ours = GenerateConfig("", seed=3, size=(SIDE, SIDE))
    assert drawn(placed) == draw_layout(cut_outs(drawn_subjects, SIDE), ours, 0, (SIDE, SIDE))
    assert drawn(place(comfy, drawn_subjects, seed=4).result[0]) != drawn(placed)
    assert len(output.ui["images"]) == 1


def test_relative_sizes_and_overlap_are_kept(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    for seed in range(5):
        (placed,) = place(comfy, drawn_subjects, seed, relative_sizes="olis:hta=1:2", overlap=0.0).result
        by_token = {one.token: one.xyxy for one in drawn(placed).placements}
        olis, hta = by_token["olis"], by_token["hta"]
        assert (hta[3] - hta[1]) / (olis[3] - olis[1]) == pytest.approx(2, rel=0.05)
        assert olis[2] <= hta[0] or hta[2] <= olis[0] or olis[3] <= hta[1] or hta[3] <= olis[1]


@pytest.mark.parametrize("count", [2, 4])
def test_overlap_is_the_most_that_is_hidden_of_anybody(comfy: Comfy, drawn_subjects: SubjectSet, count: int) -> None:
    one = drawn_subjects.subjects[0]
    some = SubjectSet(tuple(replace(one, token=f"t{number}") for number in range(count)))

    def hidden(overlap: float) -> float:
        """Of the most covered box in twenty layouts."""
        most = 0.0
        for seed in range(20):
            stack = [place.xyxy for place in drawn(place(comfy, some, seed, overlap=overlap).result[0]).placements]
            most = max(most, *(1 - visible_fraction(box, stack[i + 1 :]) for i, box in enumerate(stack)))
        return most

    assert hidden(0.0) < 1e-6
    assert 0.05 < hidden(0.2) <= 0.2 + 1e-6
    assert hidden(1.0) > 0.4


def test_boxes_come_from_text_or_from_a_socket(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    (written,) = place(comfy, drawn_subjects, mode="from text", text=BOXES).result
    boxes = [
        {"x": 0.0, "y": 0.1 * SIDE, "width": 0.45 * SIDE, "height": 0.8 * SIDE, "score": 1.0},
        {"x": 0.5 * SIDE, "y": 0.1 * SIDE, "width": 0.5 * SIDE + 3, "height": 0.8 * SIDE, "score": 1.0},
    ]
    (given,) = place(comfy, drawn_subjects, mode="given boxes", boxes=boxes).result
    for one, other in zip(drawn(written).placements, drawn(given).placements, strict=True):
        assert one.token == other.token and one.xyxy == pytest.approx(other.xyxy, abs=1e-5)


@pytest.mark.parametrize("mode", ["row", "grid"])
def test_a_row_and_a_grid_keep_the_subjects_order(comfy: Comfy, drawn_subjects: SubjectSet, mode: str) -> None:
    (placed,) = place(comfy, drawn_subjects, mode=mode, relative_sizes="olis : hta = 1 : 2").result
    olis, hta = drawn(placed).placements
    assert (olis.token, hta.token) == ("olis", "hta") and olis.xyxy[2] <= hta.xyxy[0]
    assert (hta.xyxy[3] - hta.xyxy[1]) / (olis.xyxy[3] - olis.xyxy[1]) == pytest.approx(2, rel=0.05)


def test_poses_are_what_the_widgets_say(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    layouts = [
        drawn(place(comfy, drawn_subjects, seed, photos="olis:hta=1:0", mirror=True, rotation=20.0).result[0])
        for seed in range(6)
    ]
    photos = [{one.token: one.photo for one in layout.placements} for layout in layouts]
    assert photos == [{"olis": 1, "hta": 0}] * 6
    poses = [one for layout in layouts for one in layout.placements]
    assert {one.mirror for one in poses} == {False, True}
    assert len({one.rotation for one in poses}) == 12 and all(0 < abs(one.rotation) <= 20 for one in poses)


def test_the_editor_is_told_who_stands_where(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    folder = Path(comfy.core("folder_paths").get_temp_directory())

    def told(**settings: Any) -> tuple[Layout, dict[str, Any]]:
        output = place(comfy, drawn_subjects, **settings)
        (found,) = output.ui["mudi_layout"]
        return drawn(output.result[0]), json.loads(json.dumps(found))

    layout, by_seed = told()
    assert by_seed["drawn"] == by_seed["by_seed"] and by_seed["size"] == [SIDE, SIDE] and by_seed["mode"] == "random"
    assert [(one["token"], tuple(one["box"])) for one in by_seed["drawn"]] == [
        (one.token, one.xyxy) for one in layout.placements
    ]
    _, written = told(mode="from text", text=BOXES)
    assert written["by_seed"] == by_seed["by_seed"] != written["drawn"]
    files = [photo["file"] for subject in written["subjects"].values() for photo in subject["photos"]]
    assert written["subjects"] == by_seed["subjects"] and len(set(files)) == 4
    with Image.open(folder / files[0]) as picture:
        assert picture.mode == "RGBA"
        aspect = written["subjects"]["olis"]["photos"][0]["aspect"]
        assert picture.width / picture.height == pytest.approx(aspect, rel=0.02)


class Overflows:
    """A VAE whose values leave its precision."""

    latent_channels = 4

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.full((len(pixels), 4, pixels.shape[1] // 8, pixels.shape[2] // 8), math.nan)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.full((len(samples), 64, 64, 3), math.nan)


def test_a_vae_that_overflows_is_told(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    with pytest.raises(NoNumbers, match="not numbers.*sdxl-vae-fp16-fix.*--fp32-vae"):
        start(comfy, placed, Overflows())
    with pytest.raises(NoNumbers, match="sdxl-vae-fp16-fix"):
        comfy.module("convert").decoded(Overflows(), torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("kind", ["eps", "zero snr", "flow", "edm"])
def test_init_latent_gives_a_model_that_sees_the_start(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet, kind: str
) -> None:
    """The latent is the same for each of them; only where it does not count its model differs."""
    advanced = comfy.core("comfy_extras.nodes_model_advanced")
    model, _, vae = mini
    if kind == "zero snr":
        (model,) = advanced.ModelSamplingDiscrete().patch(model, "v_prediction", True)
    elif kind == "flow":
        (model,) = advanced.ModelSamplingSD3().patch(model, 3.0)
    elif kind == "edm":
        (model,) = advanced.ModelSamplingContinuousEDM().patch(model, "edm_playground_v2.5", 80.0, 0.002)
    (placed,) = place(comfy, drawn_subjects).result
    latent, sees, _ = start(comfy, placed, vae, model=model).result
    assert torch.equal(latent["samples"], start(comfy, placed, vae).result[0]["samples"])
    assert sees.model is model.model and sees is not model
    assert comfy.module("start").sees_latents(model) == (kind == "eps")


def test_without_a_model_the_model_output_says_what_is_missing(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    _, blocked, _ = start(comfy, placed, mini[2]).result
    assert "connect the model that samples to its model input" in blocked.message


def test_who_is_left_out_is_told_on_the_node(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    output = place(comfy, drawn_subjects, mode="from text", text='{"olis": [0, 0, 1, 1]}')
    (text,) = output.ui["text"]
    assert text.endswith("\n'hta' has no box and is left out.")
    (text,) = place(comfy, drawn_subjects, mode="from text", text=BOXES, photos="olis:hta=#2:#1").ui["text"]
    assert sorted(text.split(", ")) == ["hta cat: photo #1", "olis cat: photo #2"]
    (old,) = place(comfy, drawn_subjects, mode="from text", text=BOXES, photos="olis:hta=1:0").ui["text"]
    assert old.startswith(text) and old.endswith("Counted from 1 this is olis:hta=#2:#1.")


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"mode": "from text"}, BadPlaces, "not valid JSON"),
        ({"mode": "from text", "text": '{"rex": [0, 0, 1, 1]}'}, BadLayout, "'rex', but the subjects are: olis, hta"),
        ({"mode": "given boxes"}, BadLayout, "2 subjects but 0 boxes. Connect one box .* olis, hta"),
        (
            {"mode": "given boxes", "boxes": [box(0, 0), box(300, 0)]},
            BadLayout,
            "'hta' .50x80 px at 300, 0. has no part",
        ),
        (
            {"mode": "given boxes", "boxes": [box(9, 9, 0), box(0, 0)]},
            BadLayout,
            "'olis' .0x80 px at 9, 9. has no part",
        ),
        ({"mode": "from text", "text": '{"olis": [0, 40, 1900, 1080]}'}, BadPlaces, "look like pixels"),
        ({"mode": "from text", "text": '{"olis": [0.5, 0, 0.5, 1]}'}, BadPlaces, "'olis' should go from its top left"),
        ({"mode": "from text", "text": "Sure! olis is on the left."}, BadPlaces, "not valid JSON"),
        ({"relative_sizes": "olis=twice"}, BadRelativeScale, "olis:hta=1:2"),
        ({"relative_sizes": "olis:rex=1:2"}, BadLayout, "'rex', but the subjects are: olis, hta"),
        ({"width": 100}, BadGenerateConfig, "size .* multiples of 8"),
        ({"photos": "worst"}, BadPoses, "random, best, or olis:hta=#1:#3"),
        ({"photos": "olis=#7"}, BadLayout, "photo #7 of 'olis', which has 2 photos"),
    ],
)
def test_what_cannot_be_placed_is_told(
    comfy: Comfy, drawn_subjects: SubjectSet, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        place(comfy, drawn_subjects, **settings)


def test_the_latent_is_the_encoded_canvas_and_nothing_else(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    output = start(comfy, placed, mini[2])
    latent, *_ = output.result
    assert set(latent) == {"samples", "mudi_layouts"}
    canvas = compose(drawn(placed), placed.cutouts)
    (encoded,) = comfy.run_stock("VAEEncode", vae=mini[2], pixels=canvas.image[None])
    expected = init_latent(canvas, lambda images: encoded["samples"], 1.5)
    assert torch.equal(latent["samples"], expected) and expected.abs().max() > 0.1
    assert len(output.ui["images"]) == 1


def test_a_batch_has_the_places_that_generate_would_draw(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    batch = start(comfy, placed, mini[2], batch_size=3).result[0]["samples"]
    encode = comfy.module("convert").encode_image(mini[2])
    for number, sample in enumerate(batch):
        expected = init_latent(compose(drawn(placed, number), placed.cutouts), encode, 1.5)
        assert torch.allclose(sample, expected[0], atol=1e-5)
    assert not torch.equal(batch[0], batch[1])
    again = start(comfy, placed, mini[2], batch_size=3).result[0]["samples"]
    assert torch.equal(batch, again)
    other = start(comfy, placed, mini[2], batch_size=3, seed=4).result[0]["samples"]
    assert torch.equal(other[0], batch[0]) and not torch.equal(other[1:], batch[1:])


def test_a_batch_can_have_the_same_places_everywhere(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    one = start(comfy, placed, mini[2]).result[0]["samples"]
    batch = start(comfy, placed, mini[2], batch_size=3, seed=9, same_places=True).result[0]["samples"]
    assert torch.equal(batch, one.repeat(3, 1, 1, 1))


@pytest.mark.parametrize(("count", "gamma"), [(1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0)])
def test_gamma_hangs_on_the_number_of_subjects_unless_set(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet, count: int, gamma: float
) -> None:
    one = drawn_subjects.subjects[0]
    some = SubjectSet(tuple(replace(one, token=f"t{number}") for number in range(count)))
    (placed,) = place(comfy, some).result
    chosen, said = start(comfy, placed, mini[2], gamma=-1.0), start(comfy, placed, mini[2], gamma=gamma)
    assert torch.equal(chosen.result[0]["samples"], said.result[0]["samples"])
    assert chosen.ui["text"] == (f"gamma {gamma:g}",)


def test_a_latent_below_is_kept_and_its_noise_mask_dropped(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    below = {"samples": torch.full((2, 4, 24, 24), 5.0), "noise_mask": torch.ones(1, SIDE, SIDE)}
    output = start(comfy, placed, mini[2], below=below)
    latent, *_ = output.result
    alone = start(comfy, placed, mini[2], batch_size=2).result[0]["samples"]
    outside = (alone == 0).all(1)
    assert set(latent) == {"samples", "mudi_layouts"} and latent["samples"].shape == below["samples"].shape
    assert (latent["samples"].movedim(1, -1)[outside] == 5).all() and outside.any() and not outside.all()
    assert "noise mask of the latent below was dropped" in output.ui["text"][0]
    with pytest.raises(BadLatent, match="64x64 px in 16 channels.*192x192 px in 4 channels"):
        start(comfy, placed, mini[2], below={"samples": torch.zeros(1, 16, 8, 8)})


def test_a_gamma_that_burns_is_warned_of(comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    assert "Above a gamma of 4" in start(comfy, placed, mini[2], gamma=4.5).ui["text"][0]
    assert start(comfy, placed, mini[2], gamma=4.0).ui["text"] == ("gamma 4",)


def test_a_wide_picture_has_a_wide_latent(comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet) -> None:
    (placed,) = place(comfy, drawn_subjects, width=192, height=96).result
    assert start(comfy, placed, mini[2]).result[0]["samples"].shape == (1, 4, 12, 24)


def test_gamma_0_is_an_empty_latent(comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet) -> None:
    (placed,) = place(comfy, drawn_subjects).result
    (empty,) = comfy.run_stock("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=2)
    assert torch.equal(start(comfy, placed, mini[2], 0.0, 2).result[0]["samples"], empty["samples"])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_the_stock_sampler_begins_where_the_library_does(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet, sampler: str
) -> None:
    """The U-Net's first input in KSampler at denoise 1.0 is the paper's ``z_T``."""
    model, clip, vae = mini
    (placed,) = place(comfy, drawn_subjects).result
    latent, *_ = start(comfy, placed, vae).result
    seen: list[tuple[torch.Tensor, float]] = []

    def watch(apply_model: Any, arguments: Any) -> torch.Tensor:
        seen.append((arguments["input"].clone(), float(arguments["timestep"][0])))
        result: torch.Tensor = apply_model(arguments["input"], arguments["timestep"], **arguments["c"])
        return result

    watched = model.clone()
    watched.set_model_unet_function_wrapper(watch)
    (words,) = comfy.run_stock("CLIPTextEncode", clip=clip, text="a photo of olis cat and hta cat")
    comfy.run_stock(
        "KSampler", model=watched, seed=11, steps=2, cfg=1.0, sampler_name=sampler, scheduler="normal",
        positive=words, negative=words, latent_image=latent, denoise=1.0,
    )  # fmt: skip
    first, sigma = seen[0]
    eps = importlib.import_module("comfy.sample").prepare_noise(latent["samples"], 11)
    ours = shifted_noise(latent["samples"], eps, sigma, 0.13025)
    assert sigma == pytest.approx(14.61, abs=0.01)
    assert torch.allclose(first / math.sqrt(1 + sigma**2), ours, atol=1e-5)
    assert (ours - eps).abs().max() > 0.01


def test_a_vae_of_another_kind_is_refused(comfy: Comfy, drawn_subjects: SubjectSet) -> None:
    class Video:
        latent_channels = 16

        def spacial_compression_encode(self) -> int:
            return 8

        def encode(self, pixels: Any) -> Any:
            raise AssertionError("it was asked")

    (placed,) = place(comfy, drawn_subjects).result
    with pytest.raises(comfy.module("convert").BadModel, match="16 channels.*Connect the VAE"):
        start(comfy, placed, Video())


def test_cancel_stops_between_two_pictures(
    comfy: Comfy, mini: tuple[Any, Any, Any], drawn_subjects: SubjectSet
) -> None:
    management = importlib.import_module("comfy.model_management")
    (placed,) = place(comfy, drawn_subjects).result
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        start(comfy, placed, mini[2])
    assert len(start(comfy, placed, mini[2]).result[0]["samples"]) == 1
