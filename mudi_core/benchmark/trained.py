"""What a benchmark's methods have learned: LoRAs and tokens, each trained once, on the base model while it paints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bases.checkpoint import Checkpoint
from ..bases.residual import Residual
from ..bases.tokens import load_token
from ..eyes import Detector, Embedder, Segmenter
from ..jobs.from_loras import NoPictures, PicturesConfig
from ..jobs.fuse_checkpoint import wearing
from ..jobs.fusion import FuseConfig
from ..jobs.train import LoraFiles, Training, train_lora, whole_of
from ..lora.adapter import apply_lora
from ..lora.reading import read_lora
from ..progress import Progress, Update
from ..train.config import TrainConfig
from ..types import Subject, SubjectSet
from .methods import METHODS
from .results import Results
from .singles import Beside, Painter, changes_of, fused, residual_of, stacked
from .spec import Cell, Spec


@dataclass(frozen=True, eq=False)
class Trained:
    """The trainings of a benchmark, for one base model. Files that are there already are not made again."""

    results: Results
    base: Checkpoint
    priors: Callable[[str, SubjectSet], SubjectSet | None]
    """``(combo, its subjects)``: pictures of other members of each class."""
    detector: Detector
    segmenter: Segmenter | None
    embedder: Embedder
    """The three look at what single LoRAs paint."""
    bf16: bool
    progress: Progress

    @property
    def spec(self) -> Spec:
        """What all this is for."""
        return self.results.spec

    @contextmanager
    def on_base(self, name: str, cell: Cell, subjects: SubjectSet) -> Iterator[Beside]:
        """Inside the block the base model has the LoRA of the cell's method; train it first if nobody has.

        Yield what the base model does not have.
        """
        rival = METHODS[cell.method]
        if rival.zero_shot:
            yield Beside()
        elif rival.residual:
            yield Beside(residuals=tuple(self._residual(name, cell, subject) for subject in subjects))
        elif rival.singles:
            with self._singles(name, cell, subjects) as beside:
                yield beside
        else:
            with self._joint(name, cell, subjects):
                yield Beside()

    def _residual(self, name: str, cell: Cell, subject: Subject) -> Residual:
        """Return the residual token of a subject; train it first if nobody has."""

        def progress(words: str) -> AbstractContextManager[Update]:
            return self.progress(f"{words} {name}, {subject.name}")

        file = self.results.folder / f"{name}.{subject.token}.safetensors"
        return residual_of(self.base, file, subject, self.spec.residual_config(cell.training), progress)

    @contextmanager
    def _singles(self, name: str, cell: Cell, subjects: SubjectSet) -> Iterator[Beside]:
        """Do the same with the LoRAs of single subjects."""
        base, how = self.base, METHODS[cell.method].singles
        files = [self.results.folder / f"{name}.{subject.token}.safetensors" for subject in subjects]
        for file, subject in zip(files, subjects, strict=True):
            if not file.is_file():
                training = Training(base, SubjectSet((subject,)), self._config(cell))
                self._train(f"{name}, {subject.name}", training, file, [])
        if how == "separate":
            yield Beside(tuple(changes_of(base, read_lora(file)) for file in files))
            return
        if how in ("fused", "decoupled"):
            config = FuseConfig(**self.spec.fuse, seed=self.spec.seed + cell.training)
            one = fused(base, subjects, files, config, self.progress)
            files = [one if how == "fused" else self._decoupled_or_not(name, cell, subjects, files, one)]
        with stacked(base, files):
            yield Beside()

    def _decoupled_or_not(
        self, name: str, cell: Cell, subjects: SubjectSet, files: Sequence[Path], fusion: Path
    ) -> Path:
        """Return the file of `_decoupled`, or the fusion itself, with a remark, when a LoRA never paints its subject.

        No pair is left out, so the pictures of the fusion count for the method that could not begin.
        """
        if self.results.remark(remark := f"{name}.decoupled") is None:
            try:
                return self._decoupled(name, cell, subjects, files, fusion)
            except NoPictures as error:
                self.results.remark(remark, f"{name} could not be decoupled, and counts as it was fused. {error}")
        return fusion

    def _decoupled(self, name: str, cell: Cell, subjects: SubjectSet, files: Sequence[Path], fusion: Path) -> Path:
        """Return the file of a fusion that keeps its subjects apart; train it first if nobody has."""
        assert self.segmenter is not None, "painted subjects are cut out"
        base, lora = self.base, self.results.folder / f"{name}.decoupled.safetensors"
        if not whole_of(lora).is_file():
            which = PicturesConfig(seed=self.spec.seed + cell.training, threshold=base.usual.photo_threshold)
            picture = self.spec.picture_config()
            painter = Painter(base, picture, which, self.detector, self.segmenter, self.embedder)
            painted = painter.subjects(subjects, files, self.results.folder / f"{name}.painted", self.progress)
            with wearing(base, on := read_lora(fusion)):
                config = self._exact(self.spec.decouple_config(base.side, cell.training))
                self._train(f"{name}, decoupled", Training(base, painted, config, on=on), lora, [])
        return whole_of(lora)

    def _config(self, cell: Cell) -> TrainConfig:
        return self._exact(self.spec.train_config(cell.method, self.base.side, cell.training, cell.combo))

    def _exact(self, config: TrainConfig) -> TrainConfig:
        """Return the settings for the precision that this process computes in."""
        return config.but(precision="bf16") if self.bf16 else config

    @contextmanager
    def _joint(self, name: str, cell: Cell, subjects: SubjectSet) -> Iterator[None]:
        """Do the same with a LoRA of all subjects."""
        base, lora = self.base, self.results.folder / f"{name}.safetensors"
        config = self._config(cell)
        embeddings = [
            lora.with_suffix(f".{token}.safetensors") for token in subjects.tokens if config.learning.learn_tokens
        ]
        with ExitStack() as stack:
            vectors = stack.enter_context(base.token_vectors(subjects.tokens)) if config.learning.learn_tokens else None
            if not all(path.is_file() for path in [*embeddings, *([lora] if config.learning.target_modules else [])]):
                priors = self.priors(cell.combo, subjects)
                training = Training(base, self.spec.as_named(cell, subjects), config, priors, vectors=vectors)
                self._train(name, training, lora, embeddings)
            if vectors is not None:
                loaded = [load_token(path) for path in embeddings]
                vectors.load({encoder: torch.cat([one[encoder] for one in loaded]) for encoder in loaded[0]})
            if config.learning.target_modules:
                stack.enter_context(apply_lora(base.unet, lora))
            yield

    def _train(self, name: str, training: Training, lora: Path, embeddings: list[Path]) -> None:
        lora.parent.mkdir(parents=True, exist_ok=True)
        stopped = lora.with_suffix(".stopped.safetensors")
        files = LoraFiles(lora if training.config.learning.target_modules else None, stopped, tuple(embeddings))

        def progress(words: str) -> AbstractContextManager[Update]:
            return self.progress(f"{words} {name}")

        train_lora(training, training.plan(progress), files, progress, goes_on=stopped.is_file())
