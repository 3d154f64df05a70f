"""Nodes of stepvar for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES


class StepVARExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> StepVARExtension:
    """Where ComfyUI asks a pack of nodes for what it brings."""
    return StepVARExtension()
