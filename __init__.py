"""MuDI for ComfyUI: this folder is a custom node pack.

ComfyUI calls `comfy_entrypoint`; nothing is imported before, so tests and tools can import the pack anywhere.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import MudiExtension

OLDEST_COMFYUI = "0.3.64"
WEB_DIRECTORY = "web"
"""ComfyUI serves it; its ``docs`` have a help page for each node."""


async def comfy_entrypoint() -> MudiExtension:
    """What ComfyUI asks for the pack's nodes."""
    from .nodes import MudiExtension

    return MudiExtension()


def _is_older(version: str, other: str) -> bool:
    """Of two versions such as "0.3.64"."""
    first, second = ([int(number) for number in re.findall(r"\d+", one)[:3]] for one in (version, other))
    return first < second


try:
    from comfyui_version import __version__ as _comfyui
except ImportError:  # imported by something else
    _comfyui = OLDEST_COMFYUI
if _is_older(_comfyui, OLDEST_COMFYUI):
    logging.getLogger(__name__).error(
        "MuDI needs ComfyUI %s or newer, and this is %s: update ComfyUI to get MuDI's nodes.", OLDEST_COMFYUI, _comfyui
    )
    # Where there are such mappings, ComfyUI does not ask for the entry point, and so has nothing to fail at.
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
