"""The mark is not seen, is found after JPEG 80 and at half the size, and nowhere else."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from comfyui import Comfy
from PIL import Image
from torch import Tensor

from mudi_core.subjects.watermark import SURE, add_mark, find_mark
from mudi_core.toy.world import PAIRS, photo


def natural(height: int, width: int, seed: int) -> Tensor:
    """Noise with the spectrum of photos, 1 / f."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    grey = torch.randn(1, height, width, generator=torch.Generator().manual_seed(seed + 1))
    y, x = torch.fft.fftfreq(height)[:, None] * height, torch.fft.fftfreq(width)[None] * width
    waves = torch.fft.ifft2(torch.fft.fft2(0.35 * noise + grey) / (y**2 + x**2).sqrt().clamp(min=1)).real
    return (0.5 + 0.2 * (waves - waves.mean()) / waves.std()).clamp(0, 1).permute(1, 2, 0)


def drawn(seed: int, side: int = 192) -> Tensor:
    """A picture of plain colours."""
    character = PAIRS[seed % len(PAIRS)][0].character
    return torch.from_numpy(photo(character, random.Random(seed), side).image.copy()).float() / 255


def as_file(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).numpy())


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255


def jpeg(picture: Image.Image, quality: int = 80) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def half(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)


PICTURES = {
    "192 px": lambda seed: natural(192, 192, seed),
    "512 px": lambda seed: natural(512, 512, seed),
    "1216 x 832 px": lambda seed: natural(832, 1216, seed),
    "drawn": drawn,
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("seed", range(3))
def test_the_mark_outlives_jpeg_80_and_half_the_size_and_is_not_seen(kind: str, seed: int) -> None:
    image = PICTURES[kind](seed)
    marked = as_file(add_mark(image))
    noise = -10 * float(torch.log10(((as_tensor(marked) - image) ** 2).mean()))
    assert noise > 38, "decibels"
    for survived in (marked, jpeg(marked), half(marked), jpeg(half(marked)), half(jpeg(marked))):
        assert find_mark(as_tensor(survived)).score > SURE, survived.size
    assert not find_mark(as_tensor(marked), "another key").found
    assert not find_mark(image).found


def test_pictures_without_the_mark_score_as_coins_do() -> None:
    scores = [find_mark(image, f"key {n}").score for image in (natural(96, 128, 0), drawn(1, 96)) for n in range(150)]
    assert abs(np.mean(scores)) < 0.25 and 0.85 < np.std(scores) < 1.15 and max(scores) < 4.5


def test_the_mark_hangs_on_the_key_alone_and_grows_with_its_strength() -> None:
    image = natural(128, 128, 0)
    assert torch.equal(add_mark(image), add_mark(image)) and not torch.equal(add_mark(image), add_mark(image, "mine"))
    assert find_mark(add_mark(image, strength=2.0)).score > find_mark(add_mark(image)).score
    assert torch.equal(add_mark(image, strength=0.0), image)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (8, 8)])
def test_pictures_too_small_for_a_mark_pass_through(size: tuple[int, int]) -> None:
    image = torch.full((*size, 3), 0.5)
    marked = add_mark(image)
    assert marked.shape == image.shape and marked.isfinite().all() and np.isfinite(find_mark(marked).score)


def test_the_nodes_mark_a_batch_and_find_it(comfy: Comfy) -> None:
    batch = torch.stack([natural(128, 192, 0), natural(128, 192, 9)])
    (marked,) = comfy.run("MudiWatermark", images=batch, key="mine", strength=1.0).result
    assert marked.shape == batch.shape and marked.min() >= 0 and marked.max() <= 1
    everyone, text = comfy.run("MudiFindWatermark", images=marked, key="mine").result
    assert everyone and text.startswith("picture 1: marked (") and "\npicture 2: marked (" in text
    everyone, text = comfy.run("MudiFindWatermark", images=torch.stack([marked[0], batch[1]]), key="mine").result
    assert not everyone and "picture 1: marked" in text and "picture 2: no mark" in text
    for node, more in (("MudiWatermark", {"strength": 1.0}), ("MudiFindWatermark", {})):
        with pytest.raises(Exception, match="needs a key"):
            comfy.run(node, images=batch, key=" ", **more)
