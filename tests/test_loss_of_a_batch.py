"""The loss of one batch of the embedded SDXL and its gradient, as numbers: whatever the trainer is built of, they stay.

`MUDI_FREEZE=1 bash quickstart.sh test tests/test_loss_of_a_batch.py` writes the numbers anew.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from mudi_core.bases.checkpoint import open_checkpoint
from mudi_core.lora.adapter import Adapter
from mudi_core.toy.world import PAIRS, photo
from mudi_core.train.config import TrainConfig
from mudi_core.train.plan import make_plan
from mudi_core.train.step import Trainee, batch_loss
from mudi_core.types import Photo, Subject, SubjectSet

FROZEN = Path(__file__).parent / "loss_of_a_batch.json"
CONFIG = TrainConfig.of(steps=2, batch_size=2, resolution=192, rank=8, segmix_prob=0.5, background_weight=0.5)
LOSSES = {
    "mean squared error": {"dco_beta": 0.0},
    "DCO": {"dco_beta": 1000.0},
    "DCO, KL, min-SNR and noise offset": {
        "dco_beta": 100.0, "kl_weight": 1.0, "min_snr_gamma": 5.0, "noise_offset": 0.05,
    },
}  # fmt: skip


def subjects() -> SubjectSet:
    found = []
    for spec in PAIRS[0]:
        drawn = photo(spec.character, random.Random(spec.token), 192)
        image, mask = torch.from_numpy(drawn.image.copy()).float() / 255, torch.from_numpy(drawn.masks[0]).float()
        found.append(Subject(spec.token, spec.class_noun, (Photo(f"{spec.token}.png", image),), (mask,)))
    return SubjectSet(tuple(found))


def numbers(changed: dict[str, float]) -> dict[str, float]:
    config = CONFIG.but(**changed)  # type: ignore[arg-type]
    checkpoint = open_checkpoint("mini")
    plan = make_plan(subjects(), config.samples, checkpoint.encode_image, checkpoint.condition)
    denoiser = checkpoint.denoiser()
    adapter = Adapter.new(denoiser, config.learning.rank, config.learning.lora_alpha, config.learning.target_modules)
    with denoiser.ready(bf16=False), adapter:
        adapter.start(config.samples.seed)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # a LoRA that does something, by the layers' names
            for _, matrix in sorted(zip(adapter.state(), _with_alphas(adapter), strict=True), key=lambda pair: pair[0]):
                if matrix is not None:
                    matrix.copy_(0.05 * torch.randn(matrix.shape, generator=generator))
        loss, errors = batch_loss(Trainee(denoiser, adapter, plan, config), 1)
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([one.grad.flatten() for one in adapter.parameters() if one.grad is not None])
    return {"loss": loss.item(), "error": errors.mean().item(), "gradient": gradient.norm().item()}


def _with_alphas(adapter: Adapter) -> list[torch.nn.Parameter | None]:
    """The matrices in the order of `Adapter.state`, None for an alpha."""
    matrices = adapter.matrices()
    return [one for i in range(0, len(matrices), 2) for one in (matrices[i], matrices[i + 1], None)]


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_has_the_loss_that_it_had(name: str) -> None:
    now = numbers(LOSSES[name])
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    if os.environ.get("MUDI_FREEZE"):
        FROZEN.write_text(json.dumps(frozen | {name: now}, indent=1) + "\n", encoding="utf-8")
        frozen[name] = now
    assert now["loss"] == pytest.approx(frozen[name]["loss"], rel=1e-5)
    assert now["error"] == pytest.approx(frozen[name]["error"], rel=1e-5)
    assert now["gradient"] == pytest.approx(frozen[name]["gradient"], rel=1e-4)
