"""The best LoRA of a run, kept beside the last."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..lora.file import LoraState, load_lora, save_lora
from ..types import MudiError

log = logging.getLogger(__name__)

_SCORE, _STEP = "mudi_score", "ss_steps"


class BestLora:
    """A file that always holds the LoRA with the highest score so far, and says which score and step that was."""

    def __init__(self, path: Path, about: Mapping[str, str], goes_on: bool = False) -> None:
        """``about``: the metadata of the run's LoRA; ``goes_on``: a resumed run, whose file is there if any was."""
        self.path, self.about = path, about
        self.score, self.step = -math.inf, 0
        if goes_on and path.is_file():
            try:
                kept = load_lora(path)[1]
                self.score, self.step = float(kept[_SCORE]), int(kept[_STEP])
            except (MudiError, KeyError, ValueError) as error:
                log.warning("the best LoRA so far is not known, the next preview's is kept: %s (%s)", path, error)

    def offer(self, step: int, state: LoraState, score: float) -> bool:
        """Keeps the LoRA of a step if its score is above all before; says whether. Raise as `save_lora` does."""
        if score <= self.score:
            return False
        save_lora(self.path, state, {**self.about, _STEP: str(step), _SCORE: repr(score)})
        self.score, self.step = score, step
        return True

    def move(self, path: Path) -> None:
        """Give the file another name, whatever is there."""
        os.replace(self.path, path)
        self.path = path
