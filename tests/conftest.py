"""What several test files need: the embedded family with random weights, and a small drawn dataset."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import either_page, page
from comfyui import comfy
from comfyui_server import comfyui_server
from hypothesis import settings
from windows import windows_rule

from mudi_core.bases import embedded as family
from mudi_core.subjects.storage import write_subjects
from mudi_core.toy.world import PAIRS, photo
from mudi_core.types import Photo, Subject, SubjectSet
from workshop import judge

# A busy machine is no reason to fail; --hypothesis-profile=long tries thousands of cases.
settings.register_profile("short", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("short")

__all__ = ["comfy", "comfyui_server", "either_page", "page", "windows_rule"]

PARTS = ("vae", "unet", "text_encoder", "text_encoder_2")
EYES = ("owlv2", "sam", "dinov2")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background without Ctrl-C, which is tested here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, for the sake of its fixtures, and all browsers in one of theirs."""
    for item in items:
        browser = "page" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("browsers" if browser else item.path.stem))


@pytest.fixture
def random_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded SDXL with fresh weights from a fixed seed: its pictures are noise, the rest is real, and so are the
    eyes, which a ComfyUI keeps for later tests."""
    trained = family.load

    def untrained(model: torch.nn.Module, name: str, *folder: Any) -> torch.nn.Module:
        if name in EYES:
            return trained(model, name, *folder)
        generator = torch.Generator().manual_seed(0)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            elif parameter.requires_grad:
                parameter.data.fill_(float(key.endswith("weight")))
        return model.eval().requires_grad_(False)

    monkeypatch.setattr(family, "load", untrained)


@pytest.fixture(scope="session")
def mini_weights() -> None:
    """Skips where the embedded family's weights are not part of the checkout."""
    files = [family.WEIGHTS / f"{name}.safetensors" for name in (*PARTS, *EYES)]
    missing = [path.stem for path in (*files, judge.WEIGHTS / "judge.safetensors") if not path.is_file()]
    if missing:
        pytest.skip(f"no embedded weights: {', '.join(missing)}")


@pytest.fixture(scope="session")
def drawn_subjects() -> SubjectSet:
    """The first pair of held-out characters: two photos of 96 px each, with their true masks."""
    subjects = []
    for spec in PAIRS[0]:
        drawn = [photo(spec.character, random.Random(f"{spec.token}/{i}"), 96) for i in range(2)]
        photos = tuple(
            Photo(f"{spec.token}_{i}.png", torch.from_numpy(one.image.copy()).float() / 255)
            for i, one in enumerate(drawn)
        )
        masks = tuple(torch.from_numpy(one.masks[0]).float() for one in drawn)
        subjects.append(Subject(spec.token, spec.class_noun, photos, masks))
    return SubjectSet(tuple(subjects))


@pytest.fixture(scope="session")
def drawn_dataset(drawn_subjects: SubjectSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dataset folder."""
    return write_subjects(drawn_subjects, tmp_path_factory.mktemp("drawn") / "dataset")
