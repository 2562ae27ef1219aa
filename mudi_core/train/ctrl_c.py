"""Ctrl-C that takes effect when a step is done."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Inside the block Ctrl-C takes effect after the step: a half-done optimizer update could not be resumed.

    Yield a function that says whether Ctrl-C was pressed. Only Python's own handler is replaced, and only in the main
    thread, where Ctrl-C arrives; the handler of a host stays.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield asked.is_set
        return

    def note(*_: object) -> None:
        log.warning("Stopping after this step.")
        asked.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def ctrl_c_answers() -> Iterator[None]:
    """Inside a block of `ctrl_c_waits`: let Ctrl-C take effect at once, where nothing can be half done."""
    waits = signal.getsignal(signal.SIGINT)
    if getattr(waits, "__module__", "") != __name__:  # the handler of a host, or another thread
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, waits)
