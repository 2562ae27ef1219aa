"""The work of a benchmark: make what is missing of photos, LoRAs, pictures and scores, with any number of processes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ..bases.checkpoint import Checkpoint, open_checkpoint
from ..boxes import Box
from ..demo.job import draw_photos, prepare_photos
from ..demo.settings import DemoSettings
from ..eyes import Detector, Embedder, Segmenter
from ..jobs.generate import generate
from ..jobs.priors import PROMPT, PriorsConfig, make_priors, sampler
from ..progress import Progress, silent
from ..score.compare import References, compare
from ..score.fidelity import similarities
from ..stage.cutouts import cut_outs
from ..subjects import storage
from ..toy.pairs import Cast
from ..types import Layout, SubjectSet
from .methods import METHODS
from .photos import Preparing, joined, subjects_of
from .results import Result, Results
from .singles import Beside
from .spec import Cell
from .trained import Trained
from .whole import WholePictures
from .worn import Wardrobe


class Worker:
    """One process of a benchmark. Several can share a folder: none repeats what another does or has done."""

    def __init__(
        self,
        results: Results,
        detector: Detector,
        embedder: Embedder,
        whole: WholePictures | None = None,
        segmenter: Segmenter | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        progress: Progress = silent,
    ) -> None:
        self.results, self.spec = results, results.spec
        self.detector, self.embedder, self.segmenter = detector, embedder, segmenter
        self.whole = whole or WholePictures()
        self.device, self.dtype, self.progress = device, dtype, progress

    def run(self) -> None:
        """Work until every cell is done, by this process or another."""
        self.results.sweep()
        while parts := self._open_parts():
            idle = True
            for name, cells in parts.items():
                with self.results.claimed(name) as ours:
                    if ours:
                        self._work(name, [cell for cell in cells if not self.results.is_done(cell)])
                        idle = False
            if idle:
                with self.results.claimed(next(iter(parts)), wait=True):
                    pass

    def _open_parts(self) -> dict[str, list[Cell]]:
        """Return the cells without result by LoRA, as "combo/training"."""
        parts: dict[str, list[Cell]] = {}
        for cell in self.spec.cells():
            if not self.results.is_done(cell):
                again = f"-{cell.training + 1}" if cell.training else ""
                parts.setdefault(f"{cell.combo}/{METHODS[cell.method].lora or 'zero-shot'}{again}", []).append(cell)
        return parts

    def _work(self, name: str, cells: list[Cell]) -> None:
        if not cells:
            return
        subjects = self._subjects(cells[0].combo)
        cutouts = cut_outs(subjects, max_side=self._checkpoint.side)
        references = References(subjects, self.embedder, self.spec.judges.cut_out)
        photos = self.whole.photos(subjects)
        wardrobe = Wardrobe(self.spec, self._checkpoint, cutouts)
        for method, own in groupby(cells, lambda cell: cell.method):
            some = list(own)
            what = f"pictures of {METHODS[method].title}, {name}"
            with self._trained.on_base(name, some[0], subjects) as beside, self.progress(what) as update:
                for done, cell in enumerate(some, 1):
                    self._picture(cell, wardrobe, beside, references, photos)
                    update(done, len(some))

    def _picture(
        self, cell: Cell, wardrobe: Wardrobe, beside: Beside, references: References, photos: Mapping[str, Tensor]
    ) -> None:
        subjects, begun = wardrobe.subjects, self._now()
        config = self.spec.generate_config(cell, subjects)
        with wardrobe.wearing(cell, config, beside.loras):
            (picture,) = generate(self._checkpoint, wardrobe.cutouts, config, residuals=beside.residuals)
        seconds = self._now() - begun
        judges = self.spec.judges
        compared = compare(
            picture.image,
            references,
            self.detector,
            self.embedder,
            threshold=judges.threshold,
            matching=judges.matching,
        )
        fidelity = self.whole.text_fidelity(picture.image, subjects, self.spec.text(cell))
        (alike,) = similarities([picture.image], references.means, self.embedder).tolist()
        whole = self.whole.similarities(picture.image, photos)
        told = config.gamma > 0 or METHODS[cell.method].keeps_places
        places = _places(picture.layout, subjects.tokens) if told else ()
        self.results.add(Result(cell, compared, fidelity, tuple(alike), whole, seconds, places), picture.image)

    def _now(self) -> float:
        """Return seconds: of this process alone on a CPU, which others may use too; of the clock on a card."""
        return time.process_time() if self._checkpoint.device.type == "cpu" else time.perf_counter()

    def _subjects(self, combo: str) -> SubjectSet:
        """Return the dataset of the combo; for drawn characters, draw and prepare the photos when first needed."""
        where = self.spec.combos[combo]
        if isinstance(where, str):
            return storage.read_subjects(Path(where))
        if isinstance(where, tuple) and not isinstance(where, Cast):
            threshold = self._checkpoint.usual.photo_threshold
            how = Preparing(self.results, self.detector, self.segmenter, threshold, self.progress)
            return joined([subject for one in where for subject in subjects_of(Path(one), how)])
        place = self.results.folder / combo
        with self.results.claimed(f"{combo}/photos", wait=True):
            if not (place / "dataset" / storage.METADATA).is_file():
                settings, cast = DemoSettings(), self.spec.characters(combo)
                folders = [draw_photos(place / "photos", spec, self.spec.seed, settings) for spec in cast]
                storage.write_subjects(prepare_photos(folders, cast, settings, self.progress), place / "dataset")
        return storage.read_subjects(place / "dataset")

    def _priors(self, combo: str, subjects: SubjectSet) -> SubjectSet | None:
        """Return the pictures of the classes of a combo, made when first needed; None when the spec asks for none."""
        if not self.spec.priors:
            return None
        assert self.segmenter is not None, "priors are cut out"
        place, base = self.results.folder / combo / "priors", self._checkpoint
        with self.results.claimed(f"{combo}/priors", wait=True):
            if not (place / storage.METADATA).is_file():
                wanted = PriorsConfig(
                    self.spec.priors, self.spec.seed, base.usual.photo_threshold, base.usual.prior_prompt or PROMPT
                )
                with self.progress(f"priors of {combo}") as update:
                    made = make_priors(subjects, sampler(base), self.detector, self.segmenter, wanted, update)
                storage.write_subjects(made, place)
        return storage.read_priors(place, subjects)

    @cached_property
    def _trained(self) -> Trained:
        eyes = self.detector, self.segmenter, self.embedder
        bf16 = self.dtype == torch.bfloat16
        return Trained(self.results, self._checkpoint, self._priors, *eyes, bf16, self.progress)

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.spec.base, self.device, self.dtype)


def _places(layout: Layout, tokens: Sequence[str]) -> tuple[Box, ...]:
    """Return the box of each subject, all of which the layout places, in pixels."""
    width, height = layout.size
    boxes = {one.token: one.xyxy for one in layout.placements}
    ordered = [boxes[token] for token in tokens]
    return tuple((x0 * width, y0 * height, x1 * width, y1 * height) for x0, y0, x1, y1 in ordered)
