"""The LoRAs of single subjects that a command takes: their files, names and strengths."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import MudiError

if TYPE_CHECKING:
    from ..lora.concepts import Concept


class WrongNumber(MudiError):
    """As many names or strengths as there are LoRAs, or none."""


def add_loras(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the files and what is said of each; ``words``: which files, in the help."""
    parser.add_argument("loras", type=Path, nargs="+", metavar="LORA", help=words)
    parser.add_argument(
        "--name",
        action="append",
        metavar="'TOKEN NOUN'",
        help="trigger word and class noun of a LoRA's subject, for each LoRA in order; '' takes what its file says",
    )
    parser.add_argument("--strength", type=float, nargs="+", metavar="S", help="of each LoRA (default: 1)")


def concepts_of(args: argparse.Namespace) -> list[Concept]:
    """Return each LoRA with its names and strength. Raise `WrongNumber`, `BadLora` or `BadTensorFile`."""
    from ..lora.concepts import Concept
    from ..lora.reading import read_lora
    from ..lora.triggers import trigger_words

    loras, names, strengths = [read_lora(path) for path in args.loras], args.name, args.strength
    for what, given in (("--name", names), ("--strength", strengths)):
        if given is not None and len(given) != len(loras):
            raise WrongNumber(f"There are {len(loras)} LoRAs and {len(given)} times {what}. Give it once for each.")
    found = []
    for i, lora in enumerate(loras):
        own = (names[i].split(maxsplit=1) if names is not None else []) or None
        pairs = trigger_words(lora.about) if own is None else [(own[0], own[1] if len(own) > 1 else "")]
        found.append(Concept(lora, tuple(pairs), 1.0 if strengths is None else strengths[i]))
    return found
