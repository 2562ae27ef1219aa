"""A user's hand in the real frontend: nodes from the search, wires by dragging, and how many actions that were."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

SOCKET = r"""([kind, side, name]) => {
    const [, called, number] = kind.match(/^(.*?)(?: (\d+))?$/), canvas = app.canvas
    const node = app.graph.nodes.filter(node => [node.type, node.title].includes(called)).at(number ? number - 1 : -1)
    const slot = node[side].findIndex(one => one.name === name)
    const [x, y] = node.getConnectionPos(side === 'inputs', slot)
    const area = canvas.canvas.getBoundingClientRect(), {scale, offset} = canvas.ds
    return [area.left + (x + offset[0]) * scale, area.top + (y + offset[1]) * scale]
}"""
"""Where a socket is on the page: of the last node of a type or title, or of another by number: "KSampler 1"."""
ENDED = """() => {
    window.ended = null
    const end = ({detail}) => { window.ended = detail }
    for (const name of ['execution_success', 'execution_error']) app.api.addEventListener(name, end, {once: true})
}"""
PLACE = """([x, y]) => {
    const area = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds
    return [area.left + (x + offset[0]) * scale, area.top + (y + offset[1]) * scale]
}"""


PATIENCE = 5


class Hand:
    """Does what a user does, and counts it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.actions = 0

    def add(self, kind: str, title: str, x: float, y: float) -> None:
        """Double-click an empty place of the graph, type a node's title, and take it."""
        before = self.page.evaluate("() => app.graph.nodes.length")
        self.page.wait_for_timeout(500)  # a click that follows a click is a double click
        for _ in range(PATIENCE):  # on a busy machine two clicks can be too far apart to be one
            self.page.mouse.dblclick(*self.page.evaluate(PLACE, [x, y]))
            self.page.wait_for_timeout(1000)
            if self.page.locator("input:focus").count():
                break
        self.page.locator("input:focus").fill(title)
        self.page.get_by_role("option").filter(has_text=title).first.click()
        self.page.wait_for_timeout(300)
        self.page.mouse.move(*self.page.evaluate(PLACE, [x + 5, y + 5]), steps=3)
        self.page.mouse.click(*self.page.evaluate(PLACE, [x, y]))  # newer frontends hang the node on the cursor
        self.page.wait_for_function(
            "([kind, count]) => app.graph.nodes.length === count && app.graph.nodes.at(-1).type === kind",
            arg=[kind, before + 1],
        )
        self.actions += 1

    def wire(self, origin: str, out: str, target: str, into: str) -> None:
        """Drag from an output of a node to an input of another."""
        start, end = (
            self.page.evaluate(SOCKET, [kind, side, name])
            for kind, side, name in ((origin, "outputs", out), (target, "inputs", into))
        )
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, steps=4)
        self.page.mouse.move(*end, steps=4)
        self.page.mouse.up()
        self.actions += 1

    def run(self, seconds: float = 300) -> str:
        """Press Run and wait for the end; the id of the run."""
        self.page.evaluate(ENDED)
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        self.page.wait_for_function("() => window.ended", timeout=seconds * 1000)
        ended = self.page.evaluate("() => window.ended")
        assert "exception_message" not in ended, ended["exception_message"]
        return str(ended["prompt_id"])
