"""Ctrl-C that is noted and answered when a step is done."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and answered after the step: an optimizer update cut in half could not be resumed.

    Only Python's own handler is replaced, and only in the main thread, where Ctrl-C arrives; a host keeps its own.
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
    """Within a block of `ctrl_c_waits`: here Ctrl-C is answered at once, since nothing can be cut in half."""
    waits = signal.getsignal(signal.SIGINT)
    if getattr(waits, "__module__", "") != __name__:  # a host's own, or another thread's
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, waits)
