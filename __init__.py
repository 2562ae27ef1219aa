"""MuDI for ComfyUI: this folder is a custom node pack.

ComfyUI calls `comfy_entrypoint`; nothing is imported before, so tests and tools can import the pack anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import MudiExtension


async def comfy_entrypoint() -> MudiExtension:
    """What ComfyUI asks for the pack's nodes."""
    from .nodes import MudiExtension

    return MudiExtension()
