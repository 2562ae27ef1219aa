"""The folder as a custom node pack: help pages, what the registry reads and ships, and a ComfyUI that is too old."""

from __future__ import annotations

import importlib.util
import logging
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from comfyui import Comfy
from comfyui_server import ROOT

PAGES = ROOT / "web" / "docs"


def explained(page: str, heading: str) -> list[str]:
    """The names that begin a line of a section's list."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^- `(\w+)`: \S", section, re.MULTILINE)


def test_every_node_has_a_help_page_with_all_its_inputs_and_outputs(comfy: Comfy) -> None:
    assert {path.name for path in PAGES.iterdir()} == {f"{n}.{kind}" for n in comfy.nodes for kind in ("md", "webp")}
    for node_id, node in comfy.nodes.items():
        schema, page = node.GET_SCHEMA(), (PAGES / f"{node_id}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name.removesuffix(' (MuDI)')}\n"), node_id
        assert explained(page, "Inputs") == [one.id for one in schema.inputs], node_id
        assert explained(page, "Outputs") == [one.display_name for one in schema.outputs], node_id
        assert "\n## Wiring\n" in page and "\n## When it goes wrong\n" in page, node_id


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    """The files that a release to ComfyUI's registry has: those of git that .comfyignore lets through."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what is shipped cannot be listed")

    def files(*options: str) -> set[str]:
        command = ["git", "-C", str(ROOT), "ls-files", "--cached", *options]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())

    return files() - files("--ignored", "--exclude-from=.comfyignore")


def test_a_release_has_all_that_runs_and_nothing_else(shipped: set[str]) -> None:
    assert {name.split("/")[0] for name in shipped} == {
        *("__init__.py", "nodes", "mudi_core", "web", "workflows", "subgraphs", "locales"),
        *("pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md"),
    }
    for folder in (
        "nodes",
        "web",
        "workflows",
        "subgraphs",
        "mudi_core/bases/embedded/weights",
        "mudi_core/vocabulary/tokenizer",
    ):
        files = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"}
        assert {name for name in files if (ROOT / name).is_file()} <= shipped, folder


def load_pack() -> ModuleType:
    """The pack's `__init__`, afresh."""
    spec = importlib.util.spec_from_file_location("mudi_anew", ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack


def in_comfyui(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    stub: Any = ModuleType("comfyui_version")
    stub.__version__ = version
    monkeypatch.setitem(sys.modules, "comfyui_version", stub)
    return load_pack()


@pytest.mark.parametrize("version", ["0.3.63", "0.3.9", "0.2.70", "0.3.29.fork"])
def test_a_comfyui_that_is_too_old_is_told_in_one_sentence(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack = in_comfyui(monkeypatch, version)
    sentence = f"MuDI needs ComfyUI 0.3.64 or newer, and this is {version}: update ComfyUI to get MuDI's nodes."
    assert [record.getMessage() for record in caplog.records] == [sentence]
    assert pack.NODE_CLASS_MAPPINGS == {}


@pytest.mark.parametrize("version", ["0.3.64", "0.3.100", "0.33.0", "1.0"])
def test_a_comfyui_that_is_new_enough_asks_for_the_entry_point(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        pack = in_comfyui(monkeypatch, version)
    assert not caplog.records and not hasattr(pack, "NODE_CLASS_MAPPINGS")


def test_all_say_the_same_of_the_oldest_comfyui_and_comfyui_can_read_it(comfy: Comfy) -> None:
    oldest = load_pack().OLDEST_COMFYUI
    read = comfy.core("comfy_config.config_parser").extract_node_configuration(str(ROOT))
    assert read.project.supported_comfyui_version == f">={oldest}"
    assert (read.project.name, read.tool_comfy.display_name) == ("mudi", "MuDI")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\b(\d+\.\d+\.\d+) or newer", readme) == [oldest]
