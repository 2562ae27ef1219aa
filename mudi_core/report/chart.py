"""The charts of the reports, as SVG with the colours of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .statistics import interval, smoothed

_LETTER = 8
"""Width that a letter of a label takes, on average and at most."""


def strip_chart(rows: Mapping[str, tuple[str, Sequence[float]]]) -> str:
    """Return a chart of the scores of each method on one axis: a dot per picture, the mean, its 95 % interval.

    ``rows``: title and scores by method. The axis ends at 1 and starts at 0 or below.
    """
    width, left, right, row = 720, 132, 66, 58
    low = min(0.0, *(min(scores) for _, scores in rows.values()))
    low = -0.25 * -(low // 0.25) if low < 0 else 0.0
    height = row * len(rows) + 30

    def x(score: float) -> float:
        return left + (score - low) / (1 - low) * (width - left - right)

    parts = []
    ticks = [low + 0.25 * i for i in range(round((1 - low) / 0.25) + 1)]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="6" y2="{height - 24}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    for i, (name, (title, scores)) in enumerate(rows.items()):
        middle = i * row + row / 2
        mean = sum(scores) / len(scores)
        start, end = interval(scores)
        parts.append(f'<g class="method-{escape(name)}">')
        parts.append(
            f'<text class="label" x="{left - 16}" y="{middle + 5:.1f}" text-anchor="end">{escape(title)}</text>'
        )
        for number, score in enumerate(scores):
            away = (number * 7 % 11 - 5) * 2.2  # spread up and down, so that dots of equal scores can be counted
            parts.append(f'<circle class="dot" cx="{x(score):.1f}" cy="{middle + away:.1f}" r="4"/>')
        parts.append(
            f'<line class="whisker" x1="{x(start):.1f}" x2="{x(end):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        parts.append(f'<circle class="mean" cx="{x(mean):.1f}" cy="{middle:.1f}" r="7"/>')
        parts.append(f'<text class="value" x="{width - right + 16}" y="{middle + 6:.1f}">{mean:.2f}</text></g>')
    words = ", ".join(f"{title} {sum(scores) / len(scores):.2f}" for title, scores in rows.values())
    return _svg(width, height, f"Mean scores: {words}", parts)


@dataclass(frozen=True)
class Bar:
    """A mean with its interval, ``low`` to ``high``."""

    title: str
    mean: float
    low: float
    high: float


def bar_chart(bars: Mapping[str, Bar], about: str) -> str:
    """Return a chart of means by method as bars from 0, with their intervals. ``about``: what they are, in words.

    The axis ends at 1 and starts at 0 or below.
    """
    right, row = 66, 40
    left = max(172, 24 + _LETTER * max(len(bar.title) for bar in bars.values()))
    width = left + 548
    bottom = min(0.0, *(bar.low for bar in bars.values()), *(bar.mean for bar in bars.values()))
    start = -0.25 * -(bottom // 0.25)
    height = row * len(bars) + 30

    def x(value: float) -> float:
        return left + (value - start) / (1 - start) * (width - left - right)

    parts = []
    for i in range(round((1 - start) / 0.25) + 1):
        at, tick = x(start + 0.25 * i), start + 0.25 * i
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="6" y2="{height - 24}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    for i, (name, bar) in enumerate(bars.items()):
        middle = i * row + row / 2 + 4
        begin, end = sorted((x(0), x(bar.mean)))
        parts.append(f'<g class="method-{escape(name)}">')
        parts.append(
            f'<text class="label" x="{left - 14}" y="{middle + 5:.1f}" text-anchor="end">{escape(bar.title)}</text>'
        )
        parts.append(
            f'<rect class="bar" x="{begin:.1f}" y="{middle - 12:.1f}" width="{end - begin:.1f}" height="24" rx="3"/>'
        )
        parts.append(
            f'<line class="error" x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        parts.append(f'<text class="value" x="{width - right + 16}" y="{middle + 6:.1f}">{bar.mean:.2f}</text></g>')
    words = ", ".join(f"{bar.title} {bar.mean:.2f} ({bar.low:.2f} to {bar.high:.2f})" for bar in bars.values())
    return _svg(width, height, f"{about}: {words}", parts)


def loss_chart(losses: Mapping[str, tuple[str, Sequence[float]]]) -> str:
    """Return a chart of training losses by method, averaged over equal stretches.

    ``losses``: title and loss per step, by method.
    """
    width, height, left, bottom = 720, 210, 56, 30
    curves = {name: smoothed(values) for name, (_, values) in losses.items()}
    top = max(max(curve) for curve in curves.values()) * 1.08 or 1.0
    steps = max(len(values) for _, values in losses.values())

    def y(loss: float) -> float:
        return 8 + (1 - loss / top) * (height - bottom - 8)

    parts = []
    for share in (0.0, 0.5, 1.0):
        level = share * top / 1.08
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level:.2g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = left + share * (width - left - 8)
        anchor = "end" if share == 1 else "middle"
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - 8}" text-anchor="{anchor}">{round(share * steps)}</text>'
        )
    for name, curve in curves.items():
        points = " ".join(
            f"{left + (i + 0.5) / len(curve) * (width - left - 8):.1f},{y(loss):.1f}" for i, loss in enumerate(curve)
        )
        parts.append(f'<polyline class="curve method-{escape(name)}" points="{points}"/>')
    return _svg(width, height, "Training loss over the steps", parts)


def _svg(width: int, height: int, words: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">\n{body}\n</svg>'
