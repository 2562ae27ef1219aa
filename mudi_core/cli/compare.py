"""`compare`: pictures against a dataset, scored."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    add_base,
    add_command,
    add_device,
    add_models,
    device,
    load_detector,
    load_embedder,
    load_text_scorer,
)
from .talk import SKIPPED, Answer, Talk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..eyes import Embedder
    from ..types import Comparison, SubjectSet


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        run,
        summary="score pictures: is every subject there, as itself?",
        description="Detect-and-Compare: finds the figures in each picture and compares each with the photos of every "
        "subject. 1 is a perfect score; a wrong number of figures scores 0. For every subject it says found, unlike, "
        "mixed, missing or duplicated, and how much of the likeness is its own. Best pictures first. A picture that "
        "cannot be read is skipped and named; the exit code is then 3.",
        example="python -m mudi_core compare pictures --dataset dogs --base mini --json",
    )
    parser.add_argument("images", type=Path, metavar="IMAGES_DIR", help="folder of pictures")
    parser.add_argument("--dataset", type=Path, required=True, metavar="DATASET", help="the subjects' photos and masks")
    add_base(parser, "mini, or your SDXL model: decides which detector and embedder are used")
    parser.add_argument(
        "--query",
        action="append",
        metavar="TEXT",
        help="what the detector looks for; may be given several times (default: the class nouns)",
    )
    parser.add_argument(
        "--cut-out", action="store_true", help="compare with the cut-out subjects instead of whole photos"
    )
    parser.add_argument(
        "--whole-pictures",
        action="store_true",
        help="also how similar each whole picture is to the subjects: mean (DINO with dinov2, CLIP-I with clip) and "
        "product (M-DINO)",
    )
    parser.add_argument(
        "--text",
        metavar="PROMPT",
        help='also text fidelity, over all orders of the class nouns at {subjects}: "{subjects} on a beach"',
    )
    parser.add_argument(
        "--text-scorer", default="clip", metavar="NAME", help="for --text: clip (CLIP-T, default) or image-reward"
    )
    add_models(parser, "detector", "embedder")
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..score.compare import References, best_first, compare_all
    from ..subjects import photos, picture_file, storage

    talk.on_disk = "Comparing writes no files."
    subjects = storage.read_subjects(args.dataset, packed=True)
    paths = photos.photo_paths(args.images)
    if left_out := photos.passed_over(args.images):
        talk.say(f"Warning: {left_out}")
    on = device(args)
    detector, embedder = load_detector(args, on, talk), load_embedder(args, on, talk)
    measures = _measures(args, on, talk, subjects, embedder)
    references = References(subjects, embedder, args.cut_out)
    names: list[str] = []
    measured: list[dict[str, float]] = []
    skipped: dict[str, str] = {}
    results: list[Comparison] = []
    with talk.progress("comparing") as progress:

        def pictures() -> Iterator[Tensor]:
            for path in paths:
                try:
                    picture = storage.read_photo(path)
                except picture_file.BadPhoto as error:
                    skipped[path.name] = str(error)
                    continue
                names.append(picture.name)
                measured.append(measures(picture.image))
                yield picture.image

        for result in compare_all(pictures(), references, detector, embedder, args.query, args.threshold):
            results.append(result)
            progress(len(results) + len(skipped), len(paths))
    if not results:
        raise picture_file.BadPhoto(f"No picture in {args.images} can be read. {next(iter(skipped.values()))}")
    ranked = [(names[i], results[i], measured[i]) for i in best_first(results)]
    means = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0]}
    mean = sum(result.score for result in results) / len(results)
    lines = [*(f"Warning: {remark}" for remark in references.remarks), f"{'score':>6}  picture, best first"]
    for name, result, more in ranked:
        lines += _told(name, result, more)
    lines.append(f"{mean:6.3f}  {', '.join([f'mean of {len(results)}', *_in_words(means)])}")
    if skipped:
        lines += [f"{len(skipped)} of {len(paths)} were skipped:", *(f"{'':8}{words}" for words in skipped.values())]
    return Answer(
        "\n".join(lines),
        {
            "mean": mean,
            "mean_spectral": sum(result.score_spectral for result in results) / len(results),
            "tokens": list(subjects.tokens),
            "s_gt": _rounded(references.s_gt),
            "remarks": references.remarks,
            "means": means,
            "pictures": [{"file": name, **plain(result), **more} for name, result, more in ranked],
            "skipped": skipped,
        },
        code=SKIPPED if skipped else 0,
    )


def _told(name: str, result: Comparison, more: dict[str, float]) -> list[str]:
    """Return the lines on a picture: its score and how many are themselves, then the verdicts."""
    seen = [result.in_words, result.figures, *_in_words(more)]
    said = [words for words in (result.reason, *(verdict.text for verdict in result.verdicts)) if words]
    return [f"{result.score:6.3f}  {name}: {', '.join(seen)}", *(f"{'':8}{words}" for words in said)]


def _measures(
    args: argparse.Namespace, on: torch.device, talk: Talk, subjects: SubjectSet, embedder: Embedder
) -> Callable[[Tensor], dict[str, float]]:
    """Return a function that measures a picture further, by the names in the answer."""
    from ..score import fidelity
    from ..score.vectors import photo_means

    means = photo_means(subjects, embedder) if args.whole_pictures else None
    texts = fidelity.every_order(subjects, args.text) if args.text else []
    scorer = load_text_scorer(args, on, talk) if args.text else None

    def measure(image: Tensor) -> dict[str, float]:
        found = {}
        if means is not None:
            similar = fidelity.similarities([image], means, embedder)
            found["similarity"] = float(fidelity.mean_similarity(similar))
            found["similarity_product"] = float(fidelity.product_similarity(similar))
            found["collapse_rate"] = float(fidelity.collapse_rate(similar))
        if scorer is not None:
            found["text_fidelity"] = float(fidelity.text_fidelity([image], texts, scorer))
        return found

    return measure


def _in_words(measured: dict[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured.items()]


def plain(result: Comparison) -> dict[str, Any]:
    """Return the comparison of one picture as JSON values."""
    return {
        "score": result.score,
        "score_spectral": result.score_spectral,
        "count": len(result.detections),
        "reason": result.reason,
        "s_dc": _rounded(result.s_dc),
        "boxes": [[round(value, 1) for value in box] for box in result.detections.xyxy.tolist()],
        "verdicts": [
            {"token": v.token, "status": v.status, "share": round(v.share, 3), "text": v.text} for v in result.verdicts
        ],
    }


def _rounded(matrix: Any) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in matrix.tolist()]
