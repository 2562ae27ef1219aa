from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from mudi_core.bases.checkpoint import Checkpoint, open_checkpoint
from mudi_core.bases.vae import NoNumbers, check_decoded
from mudi_core.jobs.generate import (
    BadGenerateConfig,
    BadScheduler,
    GenerateConfig,
    _start,
    default_prompt,
    draw_layout,
    generate,
)
from mudi_core.jobs.picture_folder import CannotWritePictures, PictureFolder
from mudi_core.stage.cut import turned_aspect
from mudi_core.stage.cutouts import CutOuts, Poses, cut_outs
from mudi_core.stage.layout_config import LayoutConfig
from mudi_core.stage.layout_text import Place
from mudi_core.stage.segmix import compose
from mudi_core.start.init_latent import init_latent
from mudi_core.types import BadLayout, SubjectSet

CONFIG = GenerateConfig("a photo of olis cat and hta cat", steps=2, count=3, batch_size=2, guidance=3.0, size=(64, 64))


@pytest.fixture
def checkpoint(random_mini: None) -> Checkpoint:
    return open_checkpoint("mini")


@pytest.fixture(scope="module")
def cutouts(drawn_subjects: SubjectSet) -> CutOuts:
    return cut_outs(drawn_subjects, max_side=64)


def images(checkpoint: Checkpoint, cutouts: CutOuts, config: GenerateConfig) -> torch.Tensor:
    return torch.stack([picture.image for picture in generate(checkpoint, cutouts, config)])


def test_a_run_can_be_repeated_and_another_seed_gives_other_pictures(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    first = images(checkpoint, cutouts, CONFIG)
    assert first.shape == (3, 64, 64, 3) and 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, images(checkpoint, cutouts, CONFIG))
    assert not torch.allclose(first, images(checkpoint, cutouts, replace(CONFIG, seed=1)), atol=1e-3)


def test_a_picture_hangs_on_its_number_and_not_on_its_batch(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    together = images(checkpoint, cutouts, CONFIG)
    alone = images(checkpoint, cutouts, replace(CONFIG, batch_size=1, count=2))
    torch.testing.assert_close(together[:2], alone, atol=2e-3, rtol=0)


def test_gamma_0_is_the_plain_pipeline(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    config = replace(CONFIG, gamma=0.0, count=1)
    canvas = compose(draw_layout(cutouts, config, 0, (64, 64)), cutouts)
    eps = _start(checkpoint, canvas, config, 0)
    assert 0.8 < eps.std() < 1.2
    pipeline = checkpoint.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    plain = pipeline(
        prompt=config.prompt,
        negative_prompt="",
        latents=eps,
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    torch.testing.assert_close(images(checkpoint, cutouts, config)[0], plain[0].movedim(0, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_the_start_is_what_add_noise_makes_of_the_canvas(
    checkpoint: Checkpoint, cutouts: CutOuts, sampler: str
) -> None:
    import diffusers

    checkpoint.scheduler = getattr(diffusers, sampler).from_config(checkpoint.scheduler.config)
    config = replace(CONFIG, gamma=1.5, steps=10)
    canvas = compose(draw_layout(cutouts, config, 0, (64, 64)), cutouts)
    eps = _start(checkpoint, canvas, replace(config, gamma=0.0), 0)
    z0 = init_latent(canvas, checkpoint.encode_image, config.gamma) * checkpoint.latent_scale
    scheduler = checkpoint.pipeline().scheduler
    scheduler.set_timesteps(config.steps)
    official = scheduler.add_noise(z0, eps, scheduler.timesteps[:1])
    ours = _start(checkpoint, canvas, config, 0) * scheduler.init_noise_sigma
    # add_noise keeps sqrt(1 - abar_T) of the noise, the pipeline all of it: the difference is in eps alone.
    assert (ours - official).abs().max() < 0.01 * scheduler.init_noise_sigma * eps.abs().max()


def test_the_start_is_shifted_only_where_a_subject_stands(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    canvas = compose(draw_layout(cutouts, CONFIG, 0, (64, 64)), cutouts)
    shift = _start(checkpoint, canvas, CONFIG, 0) - _start(checkpoint, canvas, replace(CONFIG, gamma=0.0), 0)
    empty = torch.nn.functional.max_pool2d(canvas.mask[None, None], 8)[0, 0] == 0
    assert empty.any() and (shift[0, :, empty] == 0).all()
    assert (shift[0, :, ~empty] != 0).any()


def noise_alone(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """The same model with a schedule that ends in noise alone, beginning there."""
    about = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": kind}
    checkpoint.scheduler = DDIMScheduler(**about, clip_sample=False)
    return checkpoint


def test_a_model_that_begins_in_noise_alone_sees_the_start(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    zero = noise_alone(checkpoint, "v_prediction")
    with_start = images(zero, cutouts, replace(CONFIG, gamma=2.0))
    assert with_start.isfinite().all()
    assert not torch.equal(with_start, images(zero, cutouts, replace(CONFIG, gamma=0.0)))


def test_a_first_step_that_divides_by_zero_is_refused(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    for gamma in (0.0, 1.0):
        with pytest.raises(BadScheduler, match="divide by zero"):
            images(noise_alone(checkpoint, "epsilon"), cutouts, replace(CONFIG, gamma=gamma))


def test_what_overflows_is_told(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    with pytest.raises(NoNumbers, match="The sampler returned values that are not numbers"):
        checkpoint.decode(torch.full((1, 4, 8, 8), float("nan")))
    with pytest.raises(NoNumbers, match="The VAE encoded a picture to values that are not numbers.*sdxl-vae-fp16-fix"):
        checkpoint.encode_image(torch.full((1, 64, 64, 3), float("nan")))
    with pytest.raises(NoNumbers, match="sdxl-vae-fp16-fix"):
        check_decoded(torch.full((1, 64, 64, 3), float("inf")), torch.zeros(1, 4, 8, 8))


def test_methods_of_one_seed_share_noise_and_layouts(cutouts: CutOuts) -> None:
    other = replace(CONFIG, gamma=0.0, steps=50, guidance=1.0, count=1, prompt="another")
    layouts = [draw_layout(cutouts, config, 2, (64, 64)) for config in (CONFIG, other)]
    assert layouts[0] == layouts[1]
    assert draw_layout(cutouts, CONFIG, 1, (64, 64)) != layouts[0]


def test_given_boxes_are_kept(cutouts: CutOuts) -> None:
    boxes = {"olis": (0.0, 0.0, 0.5, 1.0), "hta": (0.5, 0.0, 1.0, 1.0)}
    places = {token: Place(box) for token, box in boxes.items()}
    layout = draw_layout(cutouts, replace(CONFIG, places=places), 0, (64, 64))
    for placement in layout.placements:
        given = boxes[placement.token]
        assert all(a <= b for a, b in zip(given[:2], placement.xyxy[:2], strict=True))
        assert all(a >= b for a, b in zip(given[2:], placement.xyxy[2:], strict=True))


def test_a_place_says_by_which_photo_and_how_a_subject_stands(cutouts: CutOuts) -> None:
    first = cutouts.subjects.subjects[0]
    places = {
        first.name: Place((0.0, 0.0, 0.5, 1.0), photo=1, mirror=True, rotation=30.0, depth=2.0),
        "hta": Place((0.2, 0.0, 1.0, 1.0)),
    }
    for seed in range(4):
        layout = draw_layout(cutouts, replace(CONFIG, places=places, seed=seed), 0, (64, 64))
        back, front = layout.placements  # by depth, although hta's box is the larger one
        assert (back.token, back.photo, back.mirror, back.rotation) == ("olis", 1, True, 30.0)
        assert (front.token, front.mirror, front.rotation) == ("hta", False, 0.0)
        width, height = ((back.xyxy[i + 2] - back.xyxy[i]) * 64 for i in range(2))
        assert width / height == pytest.approx(turned_aspect(cutouts.get("olis", 1).aspect, 30.0))


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"rex": Place((0, 0, 1, 1))}, "The layout names 'rex', but the subjects are: olis, hta"),
        ({"olis": Place((0, 0, 1, 1), photo=7)}, "photo #8 of 'olis', which has 2 photos"),
        ({"cat": Place((0, 0, 1, 1))}, "names 'cat', but"),
    ],
)
def test_places_that_cannot_be_say_why(cutouts: CutOuts, places: dict[str, Place], words: str) -> None:
    with pytest.raises(BadLayout, match=words):
        draw_layout(cutouts, replace(CONFIG, places=places), 0, (64, 64))


@pytest.mark.parametrize("arrangement", ["row", "grid"])
def test_a_row_and_a_grid_are_the_same_in_every_picture(cutouts: CutOuts, arrangement: Any) -> None:
    config = replace(CONFIG, arrangement=arrangement, poses=Poses("best"))
    layouts = [draw_layout(cutouts, config, number, (64, 64)) for number in range(3)]
    assert layouts[0] == layouts[1] == layouts[2]
    assert [placement.token for placement in layouts[0].placements] == ["olis", "hta"]


def test_relative_heights_may_be_said_by_the_whole_name(cutouts: CutOuts) -> None:
    names = [subject.name for subject in cutouts.subjects]
    by_name = replace(CONFIG, layout=LayoutConfig(relative_scale=dict(zip(names, (1, 2), strict=True))))
    by_token = replace(CONFIG, layout=LayoutConfig(relative_scale={"olis": 1, "hta": 2}))
    assert draw_layout(cutouts, by_name, 0, (64, 64)) == draw_layout(cutouts, by_token, 0, (64, 64))


def test_other_poses_leave_the_places_alone(cutouts: CutOuts) -> None:
    """A mirrored figure has the same shape, so it stands where it stood."""
    plain = draw_layout(cutouts, CONFIG, 0, (64, 64))
    mirrored = draw_layout(cutouts, replace(CONFIG, poses=Poses(mirror=True)), 0, (64, 64))
    assert [p.xyxy for p in plain.placements] == [p.xyxy for p in mirrored.placements]


def test_relative_heights_of_strangers_are_refused(cutouts: CutOuts) -> None:
    config = replace(CONFIG, layout=LayoutConfig(relative_scale={"olis": 1, "rex": 2}))
    with pytest.raises(BadLayout, match="relative_scale names 'rex', but the subjects are: olis, hta"):
        draw_layout(cutouts, config, 0, (64, 64))


def test_progress_counts_every_step_and_can_stop_the_run(checkpoint: Checkpoint, cutouts: CutOuts) -> None:
    heard: list[tuple[int, int]] = []
    run = generate(checkpoint, cutouts, CONFIG, lambda done, total: heard.append((done, total)))
    assert next(run).number == 0
    assert heard == [(1, 4), (2, 4)]
    assert [picture.number for picture in run] == [1, 2]
    assert heard[-1] == (4, 4)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(generate(checkpoint, cutouts, CONFIG, stop))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("count", 0),
        ("batch_size", 0),
        ("guidance", 0.5),
        ("gamma", -1.0),
        ("gamma", 11.0),
        ("size", (60, 64)),
    ],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: object) -> None:
    with pytest.raises(BadGenerateConfig, match=name):
        replace(CONFIG, **{name: value})


def test_the_default_prompt_names_everybody(drawn_subjects: SubjectSet) -> None:
    assert all(subject.name in default_prompt(drawn_subjects) for subject in drawn_subjects)


def test_a_written_picture_knows_how_it_was_made(checkpoint: Checkpoint, cutouts: CutOuts, tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "new" / "pictures", CONFIG, {"base": "mini", "lora": "cats"})
    for picture in generate(checkpoint, cutouts, CONFIG):
        path = folder.add(picture)
        with Image.open(path) as image:
            about = json.loads(image.info["mudi"])
            assert image.size == (64, 64)
        sidecar = json.loads((folder.folder / "generate.json").read_text())
        assert about["prompt"] == sidecar["prompt"] == CONFIG.prompt
        assert (about["seed"], about["gamma"], about["number"]) == (0, 1.0, picture.number)
        assert sidecar["pictures"][-1] == {key: about[key] for key in ("file", "number", "size", "layout")}
        assert {one["token"] for one in about["layout"]} == {"olis", "hta"}
    assert len(sidecar["pictures"]) == 3


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWritePictures, match="file"):
        PictureFolder(tmp_path / "file" / "pictures", CONFIG, {})
