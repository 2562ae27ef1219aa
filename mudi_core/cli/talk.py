"""What a command prints: progress while it runs, what is on disk when it is stopped, and its answer at the end."""

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
"""The exit code of a command that is done except for files that it could not read, which it names."""


def speak_anywhere() -> None:
    """Write letters that the terminal cannot show as ``\\u30aa``: a name must not end a training of hours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@dataclass(frozen=True)
class Answer:
    """The result of a command: words for a person, and a value for a machine."""

    text: str
    data: dict[str, Any]
    code: int = 0
    """The exit code: 0 or `SKIPPED`."""


class Talk:
    """Prints the messages of a command to standard error."""

    def __init__(self, silent: bool = False) -> None:
        """Make one. ``silent``: print nothing, since of several processes one prints for all."""
        self.silent = silent
        self.on_disk = "Nothing was written."
        """A sentence: what is on disk if the command is stopped now."""

    @contextmanager
    def progress(self, what: str) -> Iterator[Update]:
        """Show a bar on a terminal; in a log, write one line at the end."""
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
        """Print a line, unless silent."""
        if not self.silent:
            print(words, file=sys.stderr, flush=True)
