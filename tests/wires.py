"""The wires of the open workflow, as the real frontend draws them: which cross, and which pass behind a node."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Page

SAMPLES = np.linspace(0, 1, 101)[:, None]
MARGIN = 5
"""How far behind a node's edge a wire begins to pass behind it, in the graph's pixels."""
DRAWN = """() => {
    const {canvas, graph} = app, given = ['moveTo', 'bezierCurveTo'].map(step => [step, Path2D.prototype[step]])
    for (const [step, draw] of given)
        Path2D.prototype[step] = function (...points) {
            (this.drawn ??= []).push(points)
            return draw.apply(this, points)
        }
    canvas.draw(true, true)
    for (const [step, draw] of given) Path2D.prototype[step] = draw
    const slot = (id, side, number) => {
        const node = graph.getNodeById(id)
        return `${node.type} ${id}.${node[side][number].name}`
    }
    const wire = (path, links) => ({
        origin: slot(links[0].origin_id, 'outputs', links[0].origin_slot),
        targets: links.map(link => slot(link.target_id, 'inputs', link.target_slot)),
        ends: [links[0].origin_id, ...links.map(link => link.target_id)],
        curve: path.drawn.slice(-2).flat(),
    })
    const reroutes = [...graph.reroutes.values()]
    return {
        wires: [
            ...[...graph.links.values()].map(link => wire(link.path, [link])),
            ...reroutes.map(one => wire(one.path, [...one.linkIds].map(id => graph.getLink(id)))),
        ],
        nodes: graph.nodes.map(node => ({id: node.id, type: node.type, box: [...node.getBounding()]})),
    }
}"""


@dataclass(frozen=True)
class Wire:
    """A wire between two nodes or reroutes: a cubic Bezier, sampled."""

    origin: str
    targets: tuple[str, ...]
    ends: tuple[int, ...]
    points: np.ndarray

    def __str__(self) -> str:
        return f"{self.origin} -> {', '.join(self.targets)}"


@dataclass(frozen=True)
class Body:
    """A node with its title bar."""

    id: int
    type: str
    box: tuple[float, float, float, float]

    def covers(self, points: np.ndarray, margin: float = 0) -> np.ndarray:
        x, y, width, height = self.box
        low, high = np.array([x, y]) + margin, np.array([x + width, y + height]) - margin
        return np.all((points > low) & (points < high), axis=-1)


def drawn(page: Page) -> tuple[list[Wire], list[Body]]:
    """Every wire and node of the open workflow, which must lie within the canvas."""
    found: dict[str, Any] = page.evaluate(DRAWN)
    wires = [
        Wire(one["origin"], tuple(one["targets"]), tuple(one["ends"]), _sampled(np.reshape(one["curve"], (4, 2))))
        for one in found["wires"]
    ]
    return wires, [Body(node["id"], node["type"], tuple(node["box"])) for node in found["nodes"]]


def crossings(wires: list[Wire], bodies: list[Body]) -> list[str]:
    """Pairs of wires that cross in sight: not those from one slot, and not behind a node."""
    found = set()
    for one, other in combinations(wires, 2):
        places = _meeting(one.points, other.points)
        hidden = np.any([body.covers(places) for body in bodies], axis=0)
        if one.origin != other.origin and not np.all(hidden):
            found.add(" crosses ".join(sorted((str(one), str(other)))))
    return sorted(found)


def passes(wires: list[Wire], bodies: list[Body]) -> set[tuple[str, str]]:
    """The slots whose wires pass behind a node that they do not lead to, and that node."""
    return {
        (wire.origin, f"{body.type} {body.id}")
        for wire in wires
        for body in bodies
        if body.id not in wire.ends and body.covers(wire.points, MARGIN).any()
    }


def _sampled(curve: np.ndarray) -> np.ndarray:
    t, u = SAMPLES, 1 - SAMPLES
    start, first, second, end = curve
    points: np.ndarray = u**3 * start + 3 * u**2 * t * first + 3 * u * t**2 * second + t**3 * end
    return points


def _meeting(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two polylines cross, ``[n, 2]``, to within a sample."""
    a, b, c, d = one[:-1, None], one[1:, None], other[None, :-1], other[None, 1:]
    cross = (_side(a, b, c) * _side(a, b, d) < 0) & (_side(c, d, a) * _side(c, d, b) < 0)
    places: np.ndarray = one[:-1][np.nonzero(cross)[0]]
    return places


def _side(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> np.ndarray:
    """On which side of the line from a to b."""
    along, towards = b - a, point - a
    side: np.ndarray = along[..., 0] * towards[..., 1] - along[..., 1] * towards[..., 0]
    return side
