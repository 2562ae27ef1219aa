"""How work that takes a while says how far it is, whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Update(Protocol):
    """Hears how far a stage is."""

    def __call__(self, done: int, total: int, words: str = "") -> None: ...


Progress = Callable[[str], AbstractContextManager[Update]]
"""Announces a stage by a few words; within its ``with`` block the stage reports to the `Update`."""


def silent(words: str) -> AbstractContextManager[Update]:
    """A `Progress` that nobody listens to."""

    def update(done: int, total: int, words: str = "") -> None: ...

    return nullcontext(update)
