"""How long work reports its progress, whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Update(Protocol):
    """Hears how far a stage has come."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


Progress = Callable[[str], AbstractContextManager[Update]]
"""Announces a stage in a few words; inside the ``with`` block the stage reports to the `Update`."""


def silent(words: str) -> AbstractContextManager[Update]:
    """Ignore the progress: a `Progress` to which nobody listens."""

    def update(done: int, total: int, words: str = "") -> None: ...

    return nullcontext(update)
