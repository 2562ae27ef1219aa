"""ComfyUI inside the test process: its modules on the CPU, a base directory of its own, and the pack loaded as it does.

`COMFYUI_DIR` names the checkout (default: ~/ComfyUI).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_server import CHECKOUT, Graph, Run

ROOT = Path(__file__).parent.parent
PACK = "mudi_pack"


@dataclass(frozen=True)
class Comfy:
    """The pack's nodes in a running ComfyUI without a server."""

    base: Path
    """The --base-directory."""
    nodes: dict[str, Any]
    """Our node classes by id."""

    @property
    def stock(self) -> dict[str, Any]:
        """ComfyUI's own (V1) node classes by id."""
        classes: dict[str, Any] = self.core("nodes").NODE_CLASS_MAPPINGS
        return classes

    def node(self, node_id: str) -> Any:
        return self.nodes[node_id]

    def run(self, node_id: str, **inputs: Any) -> Any:
        """What a node of ours gives, under inference mode as the executor runs it: a NodeOutput."""
        with torch.inference_mode():
            return self.nodes[node_id].execute(**inputs)

    def run_stock(self, node_id: str, **inputs: Any) -> Any:
        """What a stock node gives: a tuple."""
        node = self.stock[node_id]()
        with torch.inference_mode():
            return getattr(node, node.FUNCTION)(**inputs)

    def queue(self, graph: Graph, node: str) -> Run:
        """What came of one node and those before it, by ComfyUI's own validation and executor, which keeps its cache.

        The error of a node that is refused is what ``POST /prompt`` would answer.
        """
        self.stock.update(self.nodes)
        judged: dict[str, tuple[bool, list[dict[str, Any]], str]] = {}
        asyncio.run(self.core("execution").validate_inputs("test", graph, node, judged))
        for refused, (_, reasons, _) in judged.items():
            for reason in reasons:
                error = {"node_id": refused, "exception_message": reason["details"]}
                return Run("refused", {"execution_error": error}, {})
        executor = _executor()
        executor.execute(graph, "test", {}, [node])
        messages = dict(executor.status_messages)
        status = "success" if "execution_success" in messages else "error"
        return Run(status, messages, executor.history_result["outputs"])

    def forget(self) -> None:
        """Empties the executor's cache."""
        _executor().reset()

    def core(self, name: str) -> Any:
        """A module of ComfyUI's, such as "comfy.model_management"."""
        return importlib.import_module(name)

    def module(self, name: str) -> Any:
        """A module of ours, such as "host"."""
        return importlib.import_module(f"{PACK}.nodes.{name}")


@cache
def _executor() -> Any:
    """ComfyUI's executor, for a server that nobody is connected to."""
    server = SimpleNamespace(
        client_id=None, last_node_id=None, last_prompt_id=None, sockets_metadata={}, send_sync=lambda *_: None
    )
    executor = importlib.import_module("execution").PromptExecutor(server)
    executor.cache_args = {"ram": 0, "ram_inactive": 0}  # newer versions read it whatever the kind of cache
    return executor


class _OneLibrary(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The pack's library is the one the tests import: ``mudi_pack.mudi_core.x`` and ``mudi_core.x`` are one module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        inside = fullname.startswith(f"{PACK}.mudi_core")
        return importlib.machinery.ModuleSpec(fullname, self) if inside else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(spec.name.removeprefix(f"{PACK}."))
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Comfy]:
    """Skips, saying so, where there is no ComfyUI."""
    if not (CHECKOUT / "comfy" / "sd.py").is_file():
        pytest.skip(f"no ComfyUI in {CHECKOUT}: set COMFYUI_DIR to a checkout")
    yield load(tmp_path_factory.mktemp("comfyui"))
    sys.path.remove(str(CHECKOUT))


def load(base: Path) -> Comfy:
    """ComfyUI on the CPU with a base directory, and the pack; once in a process."""
    sys.path.insert(0, str(CHECKOUT))
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.cpu = True
    arguments.base_directory = str(base)
    for folder in ("input", "output", "temp", "user", "models/loras"):
        (base / folder).mkdir(parents=True)

    sys.meta_path.insert(0, _OneLibrary())
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    pack = sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    async def classes() -> list[Any]:
        extension = await pack.comfy_entrypoint()
        return list(await extension.get_node_list())

    return Comfy(base, {node.GET_SCHEMA().node_id: node for node in asyncio.run(classes())})
