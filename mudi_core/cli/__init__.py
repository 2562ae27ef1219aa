"""The command line: photos become a dataset, a LoRA, pictures and scores; or all of it at once as a demo.

Results go to standard output (with ``--json`` exactly one JSON value), everything else to standard error. Exit codes: 0
done, 1 an error that a sentence explains, 2 a wrong command, 3 done except for files that could not be read, 130
Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ..types import MudiError, readable
from . import benchmark, compare, demo, from_loras, fuse, generate, iterate, prepare, priors, prompt, residual, train
from .talk import Answer, Talk, speak_anywhere

_EPILOG = """from photos to pictures of both, with the embedded model:
  python -m mudi_core prepare photos/rex  --query dog --token olis --class-noun dog --base mini --out dataset
  python -m mudi_core prepare photos/bella --query dog --token hta --class-noun dog --base mini --out dataset
  python -m mudi_core train dataset --base mini --out dogs.safetensors
  python -m mudi_core generate --base mini --lora dogs.safetensors --dataset dataset --out pictures
  python -m mudi_core compare pictures --dataset dataset --base mini

Every command explains itself: python -m mudi_core train --help
"""


_PATHS = ("base", "layout")
"""Texts that may be paths, which may have bytes that are no letters."""


class HalfLetter(MudiError):
    """A text that cannot be saved, sent or printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    speak_anywhere()
    args = parser().parse_args(argv)
    _be_quiet()
    talk = Talk()
    try:
        _refuse_half_letters(args)
        answer: Answer | None = args.run(args, talk)
    except KeyboardInterrupt:
        print(f"Stopped. {talk.on_disk}", file=sys.stderr)
        return 130
    except MudiError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            print(error, file=sys.stderr)
            return 130
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"Error: {error.strerror or error}{where}. {talk.on_disk}", file=sys.stderr)
        return 1
    if answer is None:  # one of several processes; another one answers
        return 0
    try:
        print(json.dumps(answer.data) if args.json else answer.text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, stopped reading
        sys.stdout = open(os.devnull, "w")
    return answer.code


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; building it imports no model library."""
    top = argparse.ArgumentParser(
        prog="python -m mudi_core",
        description="Several similar subjects in one picture, each as itself (MuDI).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    trained = (train, residual, fuse, from_loras)
    for command in (prepare, priors, *trained, prompt, generate, iterate, compare, demo, benchmark):
        command.add(commands)
    return top


def _refuse_half_letters(args: argparse.Namespace) -> None:
    """Raise `HalfLetter` for names and prompts with broken letters; only file names may have any bytes."""
    for option, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if option not in _PATHS and isinstance(text, str) and text != readable(text):
                raise HalfLetter(f"'{text}' ({option}) has a broken letter or odd bytes. Type it again, as UTF-8.")


def _be_quiet() -> None:
    """Show our own messages on standard error, from libraries only errors; keep libraries off the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
