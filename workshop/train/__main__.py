"""`python -m workshop.train PART --work DIR`: train a part of the embedded family and write its weights."""

from __future__ import annotations

import argparse
import importlib
import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from mudi_core.bases import embedded as family

from .. import judge

PARTS = ("vae", "text", "unet", "flux", "decoder", "owlv2", "sam", "dinov2", "judge", "looks", "reference")
FURTHER = ("unet", "flux", "owlv2", "dinov2")
"""Parts whose training can go on from their present weights."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workshop.train", description=__doc__)
    parser.add_argument(
        "part",
        choices=PARTS,
        help="unet and flux need vae and text, decoder needs vae, judge and looks need vae, text and unet; the others "
        "stand alone",
    )
    parser.add_argument("--work", type=Path, default=Path("mini-work"), help="rendered scenes and resumable state")
    parser.add_argument("--steps", type=int, help="another length than the recipe's, also for a run under way")
    parser.add_argument("--further", action="store_true", help=f"from the present weights on ({', '.join(FURTHER)})")
    parser.add_argument("--rate", type=float, help="another learning rate than the recipe's")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the finished weights (fp16); else where they are read from")
    args = parser.parse_args()
    if args.further and args.part not in FURTHER:
        parser.error(f"--further is for {', '.join(FURTHER)}; {args.part} starts afresh")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    out = args.out or (judge.WEIGHTS if args.part in ("judge", "looks", "flux") else family.WEIGHTS)
    out.mkdir(parents=True, exist_ok=True)
    part = importlib.import_module(f".{args.part}", __package__)
    recipe = replace(part.RECIPE, steps=args.steps) if args.steps else part.RECIPE
    recipe = replace(recipe, further=args.further, learning_rate=args.rate or recipe.learning_rate)
    for name, state in part.train(args.work, torch.device(args.device), recipe).items():
        half = {k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v.cpu() for k, v in state.items()}
        save_file(half, out / f"{name}.safetensors", metadata={"format": "pt", "steps": str(recipe.steps)})


if __name__ == "__main__":
    main()
