"""The folder of a benchmark: the picture and comparison of each cell, written once and completely by one process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..boxes import Box, middles
from ..files import whole
from ..lock import claimed, sweep
from ..subjects.picture_file import read_photo
from ..types import Comparison, Detections, MudiError, Verdict
from .spec import Cell, Spec

SPEC = "spec.json"
REMARK = ".remark.txt"


class OtherSpec(MudiError):
    """A folder with the results of another benchmark."""


class NoResults(MudiError):
    """A folder without results."""


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a cell."""

    cell: Cell
    comparison: Comparison
    text_fidelity: float | None
    similarities: tuple[float, ...] = ()
    """Of the whole picture to the photos of each subject, as in the tables of zero-shot systems; older results have
    none."""
    whole: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """The same by further embedders, by their names."""
    seconds: float | None = None
    """That the picture took to make, of CPU time on a CPU; older results have none."""
    places: tuple[Box, ...] = ()
    """Where the method was told to put each subject, xyxy in pixels of the picture; empty where it was told no places,
    and in older results."""

    @property
    def success(self) -> bool:
        """Whether every subject is there once, as itself, and nobody else."""
        return self.comparison.success

    @property
    def on_their_side(self) -> bool | None:
        """Whether every subject stands where the method was told to put it.

        The figure that Detect-and-Compare matches with a subject must have its middle at least as near to the middle of
        this subject's place as to that of any other. Whether it looks like the subject does not count here: of two
        subjects whose places mean nothing, half of the pictures with two figures are right. With another number of
        figures than subjects nobody says which is whom, so it is false. None: the method was told no places, or there
        is one subject alone, which has no other side.
        """
        if len(self.places) < 2:
            return None
        if not self.comparison.count_is_right:
            return False
        figures = middles(self.comparison.detections.xyxy)
        apart = torch.cdist(figures, middles(torch.tensor(self.places)))
        return bool((apart.diagonal() <= apart.amin(1)).all())


class Results:
    """The folder. Raises `OtherSpec` when it has results of a spec that differs in anything."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder, self.spec = folder, spec
        folder.mkdir(parents=True, exist_ok=True)
        ours = json.loads(json.dumps(spec.as_json()))
        if (folder / SPEC).is_file():
            theirs = json.loads((folder / SPEC).read_text(encoding="utf-8"))
            differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
            if differing:
                raise OtherSpec(
                    f"{folder} has results of another spec: {', '.join(differing)} differ(s). Choose another --out."
                )
        else:
            write_whole(folder / SPEC, json.dumps(ours, indent=1) + "\n")

    def is_done(self, cell: Cell) -> bool:
        """Return whether a cell has its result."""
        return self.path(cell, ".json").is_file()

    def add(self, result: Result, image: Tensor) -> None:
        """Save a cell: first its picture, float ``[h, w, 3]``, then its result, which makes it done."""
        path = self.path(result.cell, ".png")
        with whole(path) as part:
            Image.fromarray((image * 255).round().to(torch.uint8).numpy()).save(part, "PNG")
        about = {
            "text_fidelity": result.text_fidelity,
            "similarities": result.similarities,
            **({"whole": result.whole} if result.whole else {}),
            "seconds": result.seconds,
            **({"places": result.places} if result.places else {}),
            "comparison": _plain(result.comparison),
        }
        write_whole(self.path(result.cell, ".json"), json.dumps(about) + "\n")

    def read(self, cell: Cell) -> Result:
        """Return the result of a cell that is done."""
        about = json.loads(self.path(cell, ".json").read_text(encoding="utf-8"))
        similarities = tuple(about.get("similarities", ()))
        whole = {name: tuple(values) for name, values in about.get("whole", {}).items()}
        compared, fidelity = _comparison(about["comparison"]), about["text_fidelity"]
        places = tuple(map(tuple, about.get("places", ())))
        return Result(cell, compared, fidelity, similarities, whole, about.get("seconds"), places)

    def image(self, cell: Cell) -> Tensor:
        """Return the picture of a cell, float ``[h, w, 3]``, 0..1."""
        return read_photo(self.path(cell, ".png")).image

    def remark(self, name: str, words: str = "") -> str | None:
        """Return what was remarked on a training, None if nothing was; with ``words``, remark it first."""
        path = self.folder / f"{name}{REMARK}"
        if words:
            write_whole(path, words + "\n")
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def remarks(self) -> dict[str, str]:
        """Return all that was remarked, by the names of trainings."""
        files = sorted(self.folder.glob(f"*/*{REMARK}"))
        names = [file.relative_to(self.folder).as_posix().removesuffix(REMARK) for file in files]
        return {name: self.remark(name) or "" for name in names}

    @contextmanager
    def claimed(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Claim the part of this name for this process as long as the block lasts; yield whether that worked.

        The claim ends with its process, however the process ends. ``wait``: wait until the other process lets go.
        """
        with claimed(self.folder / f".{name.replace('/', '.')}.lock", wait) as ours:
            yield ours

    def sweep(self) -> None:
        """Remove the claims of dead processes."""
        sweep(self.folder.glob(".*.lock"))

    def path(self, cell: Cell, suffix: str) -> Path:
        """Return the file of a cell: its result is ".json", its picture ".png"."""
        again = f"-{cell.training + 1}" if cell.training else ""
        return self.folder / cell.combo / f"{cell.method}{again}" / f"{cell.prompt}-{cell.seed:03d}{suffix}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file that gets its name only when it is complete."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def _plain(comparison: Comparison) -> dict[str, Any]:
    found = comparison.detections
    return {
        "tokens": comparison.tokens,
        "score": comparison.score,
        "score_spectral": comparison.score_spectral,
        "s_gt": comparison.s_gt.tolist(),
        "s_dc": comparison.s_dc.tolist(),
        "xyxy": found.xyxy.tolist(),
        "confidence": found.confidence.tolist(),
        "labels": found.labels,
        "best_confidence": found.best_confidence,
        "verdicts": [vars(verdict) for verdict in comparison.verdicts],
        "queries": comparison.queries,
    }


def _comparison(plain: dict[str, Any]) -> Comparison:
    tokens = tuple(plain["tokens"])
    found = Detections(
        torch.tensor(plain["xyxy"]).reshape(-1, 4),
        torch.tensor(plain["confidence"]),
        tuple(plain["labels"]),
        plain["best_confidence"],
    )
    return Comparison(
        tokens,
        plain["score"],
        plain["score_spectral"],
        torch.tensor(plain["s_gt"]),
        torch.tensor(plain["s_dc"]).reshape(-1, len(tokens)),
        found,
        tuple(Verdict(**verdict) for verdict in plain["verdicts"]),
        tuple(plain.get("queries", ())),  # older results do not have them
    )
