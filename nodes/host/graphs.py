"""The graphs that ComfyUI runs now: what is wired behind a node, which the node's own inputs do not tell."""

from __future__ import annotations

import sys
from typing import Any


def running() -> list[dict[str, dict[str, Any]]]:
    """Return the graphs that run now, in ComfyUI's API format; none where there is no server."""
    server = sys.modules.get("server")
    instance = getattr(server.PromptServer, "instance", None) if server is not None else None
    queue = getattr(instance, "prompt_queue", None)
    return [] if queue is None else [item[2] for item in queue.get_current_queue_volatile()[0]]
