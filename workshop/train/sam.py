"""Train the mini SAM: the mask of whoever stands in a box."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from mudi_core.eyes import embedded as eyes
from mudi_core.toy.world import MOST

from . import views
from .loop import Recipe, fit
from .views import Pixels

RECIPE = Recipe(steps=1600, learning_rate=1.0e-3, warmup=100, cooldown=0.5, ema=0.995)
BATCH = 24
SCENES = 10_000
SMALLEST = 40
"""Pixels; less than this of somebody is not asked for."""
JITTER = 0.04
"""Standard deviation of a box's edges, as a share of its size."""


def jittered(mask: Pixels, rng: np.random.Generator) -> list[float]:
    """The box of a mask as a detector would find it, half of them exactly: xyxy in pixels."""
    x, y, w, h = cv2.boundingRect(mask)
    error = rng.normal(0, JITTER, 4) * (w, h, w, h) * (rng.random() < 0.6)
    exact = np.array((x, y, x + w, y + h))
    box: list[float] = np.clip(exact + error, 0, len(mask)).tolist()
    return box


def masks(model: Sam, x: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[b, side / 2, side / 2]`` and expected IoU ``[b]`` of one box in each picture: what
    `MaskDecoder.predict_masks` does for many boxes in one picture."""
    decoder, prompts = model.mask_decoder, model.prompt_encoder
    sparse, dense = prompts(points=None, boxes=boxes, masks=None)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(x), -1, -1)
    source = model.image_encoder(x) + dense
    place = prompts.get_dense_pe().expand(len(x), -1, -1, -1)
    answers, seen = decoder.transformer(source, place, torch.cat([tokens, sparse], 1))
    upscaled = decoder.output_upscaling(seen.transpose(1, 2).reshape(source.shape))
    kernel = decoder.output_hypernetworks_mlps[0](answers[:, 1])
    logits = torch.einsum("bc,bchw->bhw", kernel, upscaled)
    return logits.float(), decoder.iou_prediction_head(answers[:, 0])[:, 0].float()


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy, more of it near the edge, and dice, for full-size logits and masks ``[b, h, w]``."""
    edge = (torch.nn.functional.avg_pool2d(wanted[:, None], 5, 1, 2)[:, 0] - wanted).abs()
    entropy = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    probability = logits.sigmoid()
    dice = 1 - 2 * (probability * wanted).sum((1, 2)) / (probability.sum((1, 2)) + wanted.sum((1, 2)))
    return 4 * (entropy * (0.5 + 3 * edge)).mean() + dice.mean()


def train(work: Path, device: torch.device, recipe: Recipe = RECIPE) -> dict[str, dict[str, Tensor]]:
    """Return the state dict under the name of its file."""
    torch.manual_seed(recipe.seed)
    pool = views.pool(work, SCENES)
    model = eyes.build_sam().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        pictures: list[Pixels] = []
        boxes: list[list[float]] = []
        wanted: list[Pixels] = []
        while len(pictures) < BATCH:
            picture, owners = views.drawn(pool, int(rng.integers(len(pool.pictures))), rng)
            seen = [k for k in range(1, MOST + 1) if (owners == k).sum() >= SMALLEST]
            if seen:
                mask = (owners == rng.choice(seen)).astype(np.uint8)
                pictures.append(picture)
                boxes.append(jittered(mask, rng))
                wanted.append(mask)
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(device)
        x = (x * 255 - model.pixel_mean) / model.pixel_std
        truth = torch.from_numpy(np.stack(wanted)).float().to(device)
        logits, quality = masks(model, x, torch.tensor(boxes, dtype=torch.float32, device=device))
        full = interpolate(logits[:, None], truth.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        hit, either = ((full > 0) & (truth > 0)).sum((1, 2)), ((full > 0) | (truth > 0)).sum((1, 2))
        return mask_loss(full, truth) + 0.1 * (quality - hit / either).square().mean()

    average = fit(model, loss, recipe, work / "sam.pt")
    return {"sam": average.state_dict()}
