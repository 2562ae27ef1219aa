"""The real frontend in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from comfyui_server import Server
from workflow_files import workflow

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
READY = "() => window.app?.graph && window.app.extensionManager?.command && window.app.canvas"
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
"""Settings of the frontend that keep its dialogs and panels out of the picture, and small text in it."""
SIZE = {"width": 2880, "height": 900}
"""Of the window, in pixels."""


@pytest.fixture
def page(comfyui_server: Server, mini_weights: None) -> Iterator[Page]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium: install Debian's package, or set CHROMIUM to one")
    for name, value in QUIET.items():
        comfyui_server.post(f"/api/settings/{name}", value)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport=SIZE)
        opened.set_default_timeout(120_000)
        # ComfyUI's own templates are a package of their own, which is not needed here.
        opened.route("**/templates/index*.json", lambda route: route.fulfill(json=[]))
        opened.goto(comfyui_server.url)
        opened.wait_for_function(READY)
        yield opened
        browser.close()


def command(page: Page, name: str) -> None:
    page.evaluate("name => app.extensionManager.command.execute(name)", name)


def browse_templates(page: Page) -> Locator:
    """The template browser with this pack's cards."""
    command(page, "Comfy.BrowseTemplates")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("mudi", exact=True).first.click()
    dialog.locator("[data-testid^=template-workflow-]").first.wait_for()
    return dialog


def open_template(page: Page, name: str) -> None:
    """As a user does: from the template browser, by its card."""
    dialog = browse_templates(page)
    card, cards = (
        dialog.get_by_test_id(f"template-workflow-{name}"),
        dialog.locator("[data-testid^=template-workflow-]"),
    )
    for _ in range(20):  # a long list is drawn as far as somebody scrolls
        if card.count():
            break
        cards.last.hover()
        page.mouse.wheel(0, 2000)
        page.wait_for_timeout(250)
    card.scroll_into_view_if_needed()
    thumbnail = card.locator("img").first.element_handle()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=thumbnail)
    card.click()
    dialog.wait_for(state="hidden")
    count = len(workflow(name)["nodes"])
    page.wait_for_function("count => app.graph.nodes.length === count", arg=count)


def is_newer(server: Server) -> bool:
    """Whether this ComfyUI knows a node's other words; its frontend then has Vue nodes, too."""
    return "search_aliases" in server.get("/object_info/MudiTrainLora")["MudiTrainLora"]


@pytest.fixture(params=["classic nodes", "Vue nodes"])
def either_page(comfyui_server: Server, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page with nodes drawn in either way."""
    setting, vue = "/api/settings/Comfy.VueNodes.Enabled", request.param == "Vue nodes"
    if vue and not is_newer(comfyui_server):
        pytest.skip("this frontend has no Vue nodes yet")
    comfyui_server.post(setting, vue)
    opened: Page = request.getfixturevalue("page")
    assert bool(opened.evaluate("() => LiteGraph.vueNodesMode")) is vue
    yield opened
    comfyui_server.post(setting, False)
