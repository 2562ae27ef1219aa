"""What a command says: progress while it runs, what it keeps when it is stopped, and its answer at the end."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..progress import Update

SKIPPED = 3
"""The exit code of a command that is done but for files that it could not read, which it names."""


def speak_anywhere() -> None:
    """Write letters that the terminal's encoding lacks as ``\\u30aa``: a name must not end a training of hours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@dataclass(frozen=True)
class Answer:
    """A command's result: words for a person, and the same for a machine."""

    text: str
    data: dict[str, Any]
    code: int = 0
    """The exit code: 0 or `SKIPPED`."""


class Talk:
    """A command's voice on standard error."""

    def __init__(self, silent: bool = False) -> None:
        """``silent``: of several processes one speaks for all."""
        self.silent = silent
        self.kept = "Nothing was written."
        """What is left on disk if the command is stopped now: a sentence."""

    @contextmanager
    def progress(self, what: str) -> Iterator[Update]:
        """A bar on a terminal; in a log, one line when it is done."""
        from tqdm import tqdm

        begun = time.monotonic()
        in_terminal = sys.stderr.isatty() and not self.silent
        with tqdm(desc=what, disable=not in_terminal, file=sys.stderr, dynamic_ncols=True) as bar:

            def update(done: int, total: int, words: str = "") -> None:
                bar.total = total
                if words:
                    bar.set_postfix_str(words, refresh=False)
                bar.update(done - bar.n)

            yield update
        if not in_terminal:
            self.say(f"{what}: {time.monotonic() - begun:.1f} s")

    def say(self, words: str) -> None:
        if not self.silent:
            print(words, file=sys.stderr, flush=True)
