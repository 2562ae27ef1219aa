"""What `train` reports about its steps beside the progress bar: lines for a log, and files for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..files import whole
from ..train.pace import Pace
from ..types import MudiError
from .talk import Talk

if TYPE_CHECKING:
    from ..jobs.previews import Preview, Previews
    from ..jobs.train import Watch


class MissingTensorBoard(MudiError):
    """The package tensorboard is not installed."""


class Journal:
    """Reports each step and each preview."""

    def __init__(self, talk: Talk, every: int, tensorboard: Path | None) -> None:
        """Start a journal. ``every``: steps between two lines, 0 for none. Raise `MissingTensorBoard`."""
        self.talk, self.every = talk, every
        self._writer: Any = None
        self._pace = Pace()
        if tensorboard is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingTensorBoard(
                    f"--tensorboard needs the package tensorboard, which is not installed ({error}). Install it (pip "
                    "install tensorboard), or leave the option out."
                ) from error
            self._writer = SummaryWriter(str(tensorboard))  # type: ignore[no-untyped-call]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def watch(self, previews: Previews | None, folder: Path) -> Watch:
        """Return a `Watch` that reports to this journal and writes the pictures of previews to ``folder``."""
        from ..jobs.train import Watch

        def on_preview(step: int, preview: Preview, is_best: bool) -> None:
            self.preview(step, preview, is_best)
            write_preview(folder, step, preview)

        return Watch(self.step, None if previews is None else previews.draw, on_preview)

    def step(self, done: int, total: int, loss: float) -> None:
        """Report a step: the steps done and in all, and its loss."""
        words = self._pace.words(done, total, loss)
        if self._writer is not None:
            self._writer.add_scalar("loss", loss, done)
        if self.every and done % self.every == 0:
            self.talk.say(f"step {done} of {total}: {words}")

    def preview(self, step: int, preview: Preview, is_best: bool) -> None:
        """Report the scores and pictures of a preview."""
        self.talk.say(f"step {step}: Detect-and-Compare {preview.words}{', the best so far' if is_best else ''}")
        if self._writer is None:
            return
        for start, pictures in preview.pictures.items():
            scores = preview.scores[start]
            self._writer.add_scalar(f"Detect-and-Compare/{start}", sum(scores) / len(scores), step)
            for number, picture in enumerate(pictures):
                self._writer.add_image(f"{start}/{number}", picture.numpy(), step, dataformats="HWC")


def write_preview(folder: Path, step: int, preview: Preview) -> None:
    """Write each picture of a preview, named by step, start and number, such as 000200-mudi-1.png."""
    import torch
    from PIL import Image

    for start, pictures in preview.pictures.items():
        for number, picture in enumerate(pictures):
            levels = (picture * 255).round().to(torch.uint8).numpy()
            with whole(folder / f"{step:06d}-{start}-{number}.png") as temporary:
                Image.fromarray(levels).save(temporary, "PNG")
