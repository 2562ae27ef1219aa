"""`benchmark`: rival methods on the same subjects, prompts, seeds and noise."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    add_command,
    add_device,
    add_precision,
    add_weights,
    device,
    load_detector,
    load_embedder,
    load_segmenter,
    load_text_scorer,
    precision,
)
from .talk import Answer, Talk

if TYPE_CHECKING:
    from ..benchmark.results import Results
    from ..benchmark.run import Worker


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "benchmark",
        run,
        summary="compare training methods on the same subjects, prompts and noise",
        description="Trains what is missing, makes and scores every picture that a spec names, and writes results.csv "
        "and report.html. After a stop, the same command continues; nothing is done twice, even when the spec has more "
        "methods or seeds now. Several processes can work on one folder: start the command several times, or once with "
        "accelerate launch --multi_gpu -m mudi_core benchmark ...",
        example="python -m mudi_core benchmark benchmarks/embedded.toml --out benchmark-out",
    )
    parser.add_argument(
        "spec", type=Path, metavar="SPEC", help="a TOML file: combos, methods, prompts, seeds, settings"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of LoRAs, pictures, scores, table and report"
    )
    parser.add_argument(
        "--so-far",
        action="store_true",
        help="make no pictures: only write the table and the report of the results so far",
    )
    parser.add_argument(
        "--pairs-seed",
        type=int,
        metavar="SEED",
        help="draw the pairs of characters by this seed, not the spec's: a comparison on subjects that nobody chose",
    )
    add_weights(parser)
    add_precision(parser)
    add_device(parser)


def run(args: argparse.Namespace, talk: Talk) -> Answer | None:
    from ..benchmark.methods import METHODS
    from ..benchmark.page import page
    from ..benchmark.results import NoResults, Results, write_whole
    from ..benchmark.spec_file import read_spec
    from ..benchmark.table import summaries, table

    spec = read_spec(args.spec, args.pairs_seed)
    leads = os.environ.get("RANK", "0") == "0"
    results = Results(args.out, spec)
    if not args.so_far:
        _worker(args, talk if leads else Talk(silent=True), results).run()
    if not leads:
        return None
    done = [results.read(cell) for cell in spec.cells() if results.is_done(cell)]
    if not done:
        raise NoResults(f"{args.out} has no picture of this spec yet. Leave out --so-far to make them.")
    write_whole(args.out / "results.csv", table(done))
    write_whole(args.out / "report.html", page(results, done))
    by_method = summaries(spec.methods, done)
    lines = [f"{'D&C':>7}  {'95 % interval':18}{'success':>8}{'on side':>9}  method, of {len(done)} pictures"]
    for method, one in by_method.items():
        bounds = "{:.3f} to {:.3f}".format(*(one.combos_interval or (one.low, one.high)))
        side = "-" if one.on_their_side is None else f"{one.on_their_side:.0%}"
        lines.append(f"{one.mean:7.3f}  {bounds:18}{one.success:>8.0%}{side:>9}  {METHODS[method].title}")
    lines += results.remarks().values()
    lines.append(f"Open {args.out / 'report.html'}; a row for each picture is in results.csv.")
    return Answer("\n".join(lines), {"pictures": len(done), "methods": {m: asdict(s) for m, s in by_method.items()}})


def _worker(args: argparse.Namespace, talk: Talk, results: Results) -> Worker:
    import torch

    from ..benchmark.run import Worker
    from ..benchmark.whole import WholePictures
    from ..train.team import local_rank, team_size

    judges = results.spec.judges
    args.base = results.spec.base
    args.detector, args.embedder, args.text_scorer = judges.detector, judges.embedder, judges.text_scorer
    args.segmenter = None
    talk.on_disk = f"The results so far are in {args.out}; the same command continues from there."
    on = device(args)
    if on.type == "cuda" and team_size() > 1:
        on = torch.device("cuda", local_rank())
    named = {name: argparse.Namespace(**{**vars(args), "embedder": name}) for name in judges.whole}
    further = {name: load_embedder(asked, on, talk) for name, asked in named.items()}
    return Worker(
        results,
        load_detector(args, on, talk),
        load_embedder(args, on, talk),
        WholePictures(load_text_scorer(args, on, talk) if args.text_scorer else None, further),
        load_segmenter(args, on, talk) if results.spec.cuts_out else None,
        on,
        torch.bfloat16 if precision(args, on) == "bf16" else torch.float32,
        talk.progress,
    )
