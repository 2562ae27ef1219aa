"""`demo`: all of it with two drawn characters, into one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import add_command, add_seed
from .talk import Answer, Talk


def add(commands: Any) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        summary="everything with two drawn characters, as one page",
        description="Draws photos of two similar characters that no embedded model has seen, finds and cuts them out, "
        "trains a LoRA without and with Seg-Mix, makes the same pictures in three ways, scores all of them, and writes "
        "report.html to open in a browser and report.json. A CPU is enough; nothing is downloaded.",
        example="python -m mudi_core demo --out demo-out --pair 1",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the report and of everything in it"
    )
    parser.add_argument("--pair", type=int, default=0, metavar="N", help="which two characters, 0 to 5 (default: 0)")
    add_seed(parser, "of photos, training and pictures")


def run(args: argparse.Namespace, talk: Talk) -> Answer:
    from ..demo.job import run_demo

    talk.on_disk = f"The results so far are in {args.out}; there is no report yet."
    report = run_demo(args.out, args.pair, args.seed, talk.progress)
    lines = [f"{arm['title']:>12}  {arm['mean']:.3f}" for arm in report["methods"].values()]
    page = args.out / "report.html"
    return Answer(
        "\n".join(["mean Detect-and-Compare score:", *lines, f"{sum(report['seconds'].values()):.0f} s. Open {page}"]),
        report,
    )
