"""How fast a training is and when it will be done, in words."""

from __future__ import annotations

import time


class Pace:
    """Counts the steps of this process only: a resumed run has earlier steps."""

    def __init__(self) -> None:
        self._first = 0
        self._began = 0.0

    def words(self, done: int, total: int, loss: float) -> str:
        """Return loss, seconds per step and time left; call it after every step, with the steps done and in all."""
        now = time.monotonic()
        if not self._first:
            self._first, self._began = done, now
        text = f"loss {loss:.3f}"
        if done > self._first:
            seconds = (now - self._began) / (done - self._first)
            text += f", {seconds:.2f} s a step, {duration(seconds * (total - done))} left"
        return text


def duration(seconds: float) -> str:
    """Return seconds in words: "1 h 20 min" or "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
