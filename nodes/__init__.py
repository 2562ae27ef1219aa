"""The nodes: the only place that knows ComfyUI. The catalogue is still empty; the library is used by command line."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MudiExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        return []
