"""The best LoRA of a run, saved beside the last one."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..lora.file import LoraState, load_lora, save_lora
from ..lora.names import Style
from ..types import MudiError

log = logging.getLogger(__name__)

_SCORE, _STEP = "mudi_score", "ss_steps"


class BestLora:
    """A file that always holds the LoRA with the highest score so far, with its score and step."""

    def __init__(self, path: Path, about: Mapping[str, str], goes_on: bool = False, style: Style = "diffusers") -> None:
        """Prepare the file.

        ``about``: the metadata of the run's LoRA; ``goes_on``: a resumed run, which may have a file; ``style``: of
        the file's names.
        """
        self.path, self.about, self._style = path, about, style
        self.score, self.step = -math.inf, 0
        if goes_on and path.is_file():
            try:
                metadata = load_lora(path)[1]
                self.score, self.step = float(metadata[_SCORE]), int(metadata[_STEP])
            except (MudiError, KeyError, ValueError) as error:
                log.warning(
                    "The best LoRA so far cannot be read, so the LoRA of the next preview counts as the best: %s (%s)",
                    path,
                    error,
                )

    def offer(self, step: int, state: LoraState, score: float) -> bool:
        """Save the LoRA of a step when its score is the highest so far; return whether it is.

        Raise as `save_lora` does.
        """
        if score <= self.score:
            return False
        save_lora(self.path, state, {**self.about, _STEP: str(step), _SCORE: repr(score)}, style=self._style)
        self.score, self.step = score, step
        return True

    def move(self, path: Path) -> None:
        """Rename the file, and replace what has that name."""
        os.replace(self.path, path)
        self.path = path
