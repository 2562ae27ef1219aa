"""The nodes: the only place that knows ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class MudiExtension(ComfyExtension):  # type: ignore[misc]
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack."""
        from .mini import MiniCheckpoint, MiniPhotos

        return [MiniCheckpoint, MiniPhotos]
