"""What a new user does in the real frontend, counted in clicks and seconds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from browser import command
from comfyui_server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

FIRST = {
    "multi subject": "Train LoRA",
    "character": "Subject",
    "consistent character": "Subject from Photos",
    "two characters": "Train LoRA",
    "dreambooth": "Train LoRA",
    "identity": "D&C Score",
    "regional": "Regional Prompts",
    "owlv2": "Detect Subjects",
    "sam": "SAM Mask",
    "dinov2": "D&C Score",
}
"""What people type into the search -> the first of our nodes below it."""
BY_NAME = ("regional", "sam")
"""Words that stand in a node's name: older frontends search nothing else."""
OTHERS_NAMES = ("sam", "character")
"""Words that begin the names of core's nodes: those come before anybody's."""


def test_what_people_type_into_the_search_shows_the_right_node_first(page: Page, comfyui_server: Server) -> None:
    newer = "search_aliases" in comfyui_server.get("/object_info/MudiTrainLora")["MudiTrainLora"]
    page.evaluate("() => app.graph.clear()")
    for word in FIRST if newer else BY_NAME:
        command(page, "Workspace.SearchBox.Toggle")
        page.locator("input:focus").fill(word)
        found = page.get_by_role("option").filter(has_text=re.compile("MuDI" if word in OTHERS_NAMES else r"\w"))
        found.first.filter(has_text=f"{FIRST[word]} (MuDI)").wait_for()
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)
