"""The numbers of a benchmark: a row for each picture, and a summary of each method."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..report.statistics import hierarchical_interval, interval
from ..score.fidelity import COLLAPSE_LIMITS, collapse_rate, mean_similarity, product_similarity
from .results import Result

STATUSES = ("found", "unlike", "mixed", "missing", "duplicated")
COLUMNS = (
    *("combo", "method", "prompt", "seed", "training", "subjects", "figures", "score", "score_spectral", "success"),
    "on_their_side",
    *STATUSES,
    *("text_fidelity", "similarity", "similarity_product", "seconds"),
    *(f"collapse_rate_{limit}" for limit in COLLAPSE_LIMITS),
)


@dataclass(frozen=True)
class Summary:
    """The summary of the pictures of one method. Intervals are bootstraps of 95 %."""

    count: int
    mean: float
    """Mean Detect-and-Compare score."""
    low: float
    high: float
    """Interval of the mean over pictures: how certain it is for these subjects and LoRAs."""
    combos_interval: tuple[float, float] | None
    """The same over combos, trainings and pictures: how certain the mean is for other subjects and LoRAs; wide for few
    combos, None for one."""
    spectral: float
    success: float
    """Share of the pictures in which every subject is there once, as itself."""
    success_low: float
    success_high: float
    right_count: float
    on_their_side: float | None
    """Share of the pictures in which every subject stands where the method was told to put it, of those for which it
    was told (`Result.on_their_side`); None: of none."""
    text_fidelity: float | None
    similarity: float | None
    """Mean similarity of the whole picture to the photos of each subject: called DINO or CLIP-I, by the embedder."""
    similarity_product: float | None
    """The product in the place of the mean: M-DINO with DINO."""
    collapse: float | None
    """Subject Collapse Rate at a similarity of 0.4."""
    whole: Mapping[str, tuple[float, float]]
    """The mean and the mean product by each further embedder: CLIP-I, DINO, M-DINO."""
    seconds: float | None
    """Mean time to make a picture."""


def table(results: Sequence[Result]) -> str:
    """Return CSV with `COLUMNS`, a row for each result; after them two columns for each further embedder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    further = list(dict.fromkeys(name for result in results for name in result.whole))
    writer.writerow([*COLUMNS, *(column for name in further for column in (name, f"{name} product"))])
    for result in results:
        compared, statuses = result.comparison, [verdict.status for verdict in result.comparison.verdicts]
        wholes = [value for name in further for value in _both(result.whole.get(name, ()))]
        fidelities = (result.text_fidelity, *_both(result.similarities), result.seconds, *_collapses(result), *wholes)
        writer.writerow(
            [
                *result.cell,
                len(compared.tokens),
                len(compared.detections),
                f"{compared.score:.6f}",
                f"{compared.score_spectral:.6f}",
                int(result.success),
                "" if result.on_their_side is None else int(result.on_their_side),
                *(statuses.count(status) for status in STATUSES),
                *("" if value is None else f"{value:.6f}" for value in fidelities),
            ]
        )
    return text.getvalue()


def summary(results: Sequence[Result]) -> Summary:
    """Return the summary of the results of one method, at least one."""
    scores = [result.comparison.score for result in results]
    successes = [float(result.success) for result in results]
    low, high = interval(scores)
    success_low, success_high = interval(successes)
    combos = {result.cell.combo for result in results}
    return Summary(
        count=len(results),
        mean=float(np.mean(scores)),
        low=low,
        high=high,
        combos_interval=hierarchical_interval(nested(results, lambda result: result.comparison.score))
        if len(combos) > 1
        else None,
        spectral=float(np.mean([result.comparison.score_spectral for result in results])),
        success=float(np.mean(successes)),
        success_low=success_low,
        success_high=success_high,
        right_count=float(np.mean([result.comparison.count_is_right for result in results])),
        on_their_side=_mean([result.on_their_side for result in results]),
        text_fidelity=_mean([result.text_fidelity for result in results]),
        similarity=_mean([_both(result.similarities)[0] for result in results]),
        similarity_product=_mean([_both(result.similarities)[1] for result in results]),
        collapse=_mean([_collapses(result)[0] for result in results]),
        whole=_wholes(results),
        seconds=_mean([result.seconds for result in results]),
    )


def _wholes(results: Sequence[Result]) -> dict[str, tuple[float, float]]:
    """Return the mean and the mean product by each further embedder, over the results that have it."""
    found = {}
    for name in dict.fromkeys(name for result in results for name in result.whole):
        both = [_both(result.whole[name]) for result in results if name in result.whole]
        mean, product = (_mean(values) for values in zip(*both, strict=True))
        if mean is not None and product is not None:
            found[name] = mean, product
    return found


def _both(similarities: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the product of a picture's similarities to its subjects."""
    if not similarities:
        return None, None
    values = torch.tensor(similarities)
    return float(mean_similarity(values)), float(product_similarity(values))


def _collapses(result: Result) -> list[float | None]:
    """Return a picture's Subject Collapse Rate at each of the limits."""
    if not result.similarities:
        return [None] * len(COLLAPSE_LIMITS)
    values = torch.tensor(result.similarities)
    return [float(collapse_rate(values, limit)) for limit in COLLAPSE_LIMITS]


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def summaries(methods: Sequence[str], results: Sequence[Result]) -> dict[str, Summary]:
    """Return the summaries of the methods that have results."""
    of = {method: [one for one in results if one.cell.method == method] for method in methods}
    return {method: summary(own) for method, own in of.items() if own}


def nested(results: Sequence[Result], value: Callable[[Result], float]) -> dict[str, dict[str, list[float]]]:
    """Return the values of the results by combo and training, for `hierarchical_interval`."""
    groups: dict[str, dict[str, list[float]]] = {}
    for result in results:
        trainings = groups.setdefault(result.cell.combo, {})
        trainings.setdefault(str(result.cell.training), []).append(value(result))
    return groups


def paired(results: Sequence[Result], method: str, rival: str) -> dict[str, dict[str, list[float]]]:
    """Return how much higher the method scores than the rival from the same noise, picture by picture, as `nested`."""
    scores = {result.cell: result.comparison.score for result in results}
    both = [
        result for result in results if result.cell.method == method and result.cell._replace(method=rival) in scores
    ]
    return nested(both, lambda one: one.comparison.score - scores[one.cell._replace(method=rival)])
