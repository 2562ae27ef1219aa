"""ImageReward (Xu et al., arXiv 2304.05977): a reward trained on choices by people; an optional package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dreamsim import MissingPackage
from .weights import MissingWeights, default_folder

PAGE = "https://huggingface.co/THUDM/ImageReward/tree/main"
CONTENT = ("ImageReward.pt", "med_config.json")


class ImageRewardScorer:
    """A `TextScorer`: the reward, unbounded, about standard normal over pictures of text-to-image models."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor], texts: Sequence[str]) -> Tensor:
        from PIL import Image

        pictures = [Image.fromarray((image * 255).round().to(torch.uint8).cpu().numpy()) for image in images]
        rows = [[float(self.model.score(text, picture)) for text in texts] for picture in pictures]
        return torch.tensor(rows).reshape(len(images), len(texts))


def load(path: Path | None, device: torch.device) -> ImageRewardScorer:
    """Load ImageReward 1.0 from a folder (default: `default_folder()` / "image-reward").

    Raise `MissingPackage`, or `MissingWeights` when the folder is incomplete: otherwise the package would start a
    download.
    """
    folder = path or default_folder() / "image-reward"
    missing = [name for name in CONTENT if not (folder / name).is_file()]
    if missing:
        raise MissingWeights(
            f"ImageReward's weights are not in {folder} ({missing[0]} is missing). Put {' and '.join(CONTENT)} of "
            f"{PAGE} there."
        )
    try:
        package: Any = import_module("ImageReward")
    except ImportError as error:
        raise MissingPackage(
            f"ImageReward is an optional package that is not installed here ({error}). Install it with "
            "'pip install image-reward', or choose the text scorer 'clip'."
        ) from error
    model = package.load(str(folder / CONTENT[0]), device=str(device), med_config=str(folder / CONTENT[1]))
    return ImageRewardScorer(model)
