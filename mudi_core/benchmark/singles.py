"""What was trained of single subjects, in one picture: LoRAs stacked as loaders do, fused, taught by their own pictures
to keep apart, or each where its subject stands; residual tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ..attention.lora import Change
from ..bases.checkpoint import Checkpoint
from ..bases.residual import Residual, load_residual, save_residual
from ..bases.text import CheckpointText
from ..eyes import Detector, Embedder, Segmenter
from ..jobs.from_loras import PicturesConfig, paint_subjects
from ..jobs.fuse_checkpoint import fuse_to_file, painting, wearing
from ..jobs.fusion import FuseConfig
from ..jobs.generate import GenerateConfig
from ..jobs.residual import train_residual
from ..lora.concepts import Concept
from ..lora.names import UNET, our_name
from ..lora.reading import Lora, read_lora
from ..lora.wear import layers_of, sizes_of
from ..progress import Progress
from ..subjects import storage
from ..train.config import TrainConfig
from ..types import Subject, SubjectSet


@dataclass(frozen=True, eq=False)
class Beside:
    """What was trained of each subject for itself, and is not in the base model's weights."""

    loras: tuple[Mapping[str, Change], ...] = ()
    """To act each where its subject stands."""
    residuals: tuple[Residual, ...] = ()
    """To be added each at its subject's word."""


def residual_of(base: Checkpoint, file: Path, subject: Subject, config: TrainConfig, progress: Progress) -> Residual:
    """Return the residual token of a subject from its file, which is made when first needed."""
    if not file.is_file():
        made = train_residual(base, CheckpointText(base), subject, config, progress=progress)
        save_residual(file, made.residual)
    return load_residual(file)


def fused(
    base: Checkpoint, subjects: SubjectSet, files: Sequence[Path], config: FuseConfig, progress: Progress
) -> Path:
    """Return the file in which the LoRAs of single subjects are one, made when first needed."""
    out = files[0].with_name(files[0].name.replace(f".{subjects.tokens[0]}.", ".fused."))
    if not out.is_file():
        fuse_to_file(_concepts(files, subjects), base, config, out, progress)
    return out


@dataclass(frozen=True, eq=False)
class Painter:
    """Paints each subject by its own LoRA, and keeps the pictures that show it."""

    base: Checkpoint
    picture: GenerateConfig
    """How each is sampled."""
    which: PicturesConfig
    detector: Detector
    segmenter: Segmenter
    embedder: Embedder

    def subjects(self, subjects: SubjectSet, files: Sequence[Path], folder: Path, progress: Progress) -> SubjectSet:
        """Return the subjects with these pictures for photos, from a folder that is made when first needed.

        Raise `from_loras.NoPictures`.
        """
        if not (folder / storage.METADATA).is_file():
            concepts, paint = _concepts(files, subjects), painting(self.base, self.picture)
            made = paint_subjects(concepts, paint, self.detector, self.segmenter, self.embedder, self.which, progress)
            storage.write_subjects(made.subjects, folder)
        return storage.read_subjects(folder)


def _concepts(files: Sequence[Path], subjects: SubjectSet) -> list[Concept]:
    pairs = zip(files, subjects, strict=True)
    return [Concept(read_lora(file), ((one.token, one.class_noun),), 1.0) for file, one in pairs]


@contextmanager
def stacked(base: Checkpoint, files: Sequence[Path]) -> Iterator[None]:
    """Inside the block the base model has all these LoRAs at full strength."""
    with ExitStack() as stack:
        for file in files:
            stack.enter_context(wearing(base, read_lora(file)))
        yield


def changes_of(base: Checkpoint, lora: Lora) -> Mapping[str, Change]:
    """Return what a LoRA adds to each layer of the U-Net, by the layer's name there, to act in a region."""
    ours = lora.on(sizes_of(base.unet), base.name).changes
    layers = layers_of(base.unet)
    found = {}
    for name, _ in base.unet.named_modules():
        if (change := ours.get(our_name(UNET + name.replace(".", "_")))) is None:
            continue
        weight = layers[our_name(UNET + name.replace(".", "_"))].weight
        assert isinstance(weight, torch.Tensor)
        factors = change.factors(weight)
        if factors is None:
            found[name] = Change(change.delta(weight).flatten(1))
        else:
            found[name] = Change(factors[1].flatten(1), factors[0])
    return found
