"""What the docs name is there: files and headings behind links, commands, options, workflows, tests, nodes."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from node_pictures import GRAPHS

from mudi_core.bases.families import BUILT_IN, EMBEDDED, EMBEDDED_FLUX, FAMILIES
from mudi_core.cli import main
from mudi_core.train.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TICKED = re.compile(r"`([^`\n]+)`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", text(page))):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in ("https", "mailto") and "." in (parts.hostname or ""), link
            continue
        target = page.parent / parts.path if parts.path else page
        assert target.exists(), link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize("page", sorted(ROOT.glob("web/docs/*.md")), ids=lambda page: page.stem)
def test_a_help_page_shows_its_node(page: Path) -> None:
    """As `tests/node_pictures.py` takes it."""
    assert f"]({page.stem}.webp)" in text(page)
    assert page.stem in GRAPHS


def commands(page: Path) -> list[str]:
    """Lines of the page's blocks, and code in its text, that call this project."""
    lines = [line for block in FENCE.findall(text(page)) for line in block.replace("\\\n", " ").splitlines()]
    lines += TICKED.findall(FENCE.sub("", text(page)))
    begin = ("python -m mudi_core", "bash quickstart.sh", "python benchmarks/", "python tests/", "bash .ci/")
    return [line.split(" #")[0].strip() for line in lines if line.strip().startswith(begin)]


@each_page
def test_commands_are_ones_that_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script is there; every subcommand and option of the command line exists."""
    for command in commands(page):
        _, *words = shlex.split(command)
        if words[0] == "-m":
            module = ROOT / Path(*words[1].split("."))
            assert module.is_dir() or module.with_suffix(".py").is_file(), command
            if words[1] == "mudi_core" and len(words) > 2:
                check_options(words[2], [word for word in words[3:] if word.startswith("--")], monkeypatch)
        else:
            assert (ROOT / words[0]).is_file(), command
            if words[0] == "quickstart.sh":
                assert len(words) == 1 or words[1] in ("demo", "test"), command
            paths = [word.split("::")[0] for word in words[1:] if word.startswith("tests/")]
            assert all((ROOT / path).exists() for path in paths), command
            if "-k" in words:
                chosen = re.findall(r"^def (test_\w+)", "\n".join(text(ROOT / path) for path in paths), re.MULTILINE)
                assert any(words[words.index("-k") + 1] in name for name in chosen) or not paths, command


def check_options(subcommand: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()

    def spied(self: argparse.ArgumentParser, *names: str, **rest: object) -> argparse.Action:
        known.update(names)
        return add(self, *names, **rest)

    add = argparse.ArgumentParser.add_argument
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(argparse._ActionsContainer, "add_argument", spied)
        main([subcommand, "--help"])
    assert ended.value.code in (0, None), f"there is no command {subcommand}"
    assert set(options) <= known, f"{subcommand} has no {set(options) - known}"


@each_page
def test_files_and_tests_that_are_named_are_there(page: Path) -> None:
    for named in TICKED.findall(FENCE.sub("", text(page))):
        path, _, test = named.partition("::")
        if re.fullmatch(r"(tests|benchmarks|mudi_core|nodes|docs|web|workflows|\.ci)/[\w./-]*", path):
            assert (ROOT / path).exists(), named
            if test:
                assert f"def {test}(" in text(ROOT / path), named


def test_the_readme_names_every_workflow() -> None:
    readme = text(ROOT / "README.md")
    for workflow in (ROOT / "workflows").glob("*.json"):
        assert f"`{workflow.stem}`" in readme, workflow.stem


def test_the_table_of_families_says_how_pictures_are_sampled() -> None:
    page = text(ROOT / "docs" / "families.md").partition("## Pictures\n")[2].partition("## ")[0]
    rows = [line for line in page.split("\n") if line.startswith("| `")]
    assert sorted(rows) == sorted(
        f"| `{name}` | {one.steps} | {one.cfg:g} | {one.sampler} | {one.scheduler} | {one.side} | {one.source} |"
        for name, one in ((name, family.sampling) for name, family in FAMILIES.items() if name not in BUILT_IN)
    )


def test_the_table_of_families_says_what_training_takes() -> None:
    page = text(ROOT / "docs" / "families.md").partition("## Pictures\n")[0]
    rows = {row[1].strip("`"): row for row in (list(map(str.strip, line.split("|")[1:-1])) for line in page.split("\n")
            if line.startswith("| ") and "`" in line)}  # fmt: skip

    assert rows.keys() == FAMILIES.keys() - {EMBEDDED, EMBEDDED_FLUX}
    for name, (_, _, side, count, rate, shift, guidance, captions, loss, _) in rows.items():
        family, config = FAMILIES[name], TrainConfig.usual(FAMILIES[name])
        samples, learning = config.samples, config.learning
        assert (int(side), count) == (samples.resolution, f"{samples.steps} x {samples.samples_per_step}")
        assert (float(rate), learning.rank, captions) == (learning.learning_rate, 32, family.captions)
        assert loss == ("DCO" if learning.dco_beta else "squared error")
        assert guidance == ("" if family.guidance is None else f"{family.guidance:g}")
        assert shift in ("", "the model's") if family.shift is None else float(shift) == family.shift


def test_each_of_the_twelve_rows_on_usability_names_the_command_that_checks_it() -> None:
    rows = [line.split("|")[1:-1] for line in text(ROOT / "docs" / "usability.md").split("\n") if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in row] for row in rows]
    assert head[1:3] == ["MuDI", "checked by"] and len(rows) == 12 and len({row[0] for row in rows}) == 12
    for what, ours, checked, *others in rows:
        (command,) = TICKED.findall(checked)
        assert command in commands(ROOT / "docs" / "usability.md"), what
        assert ours and len(others) == len(head) - 3 and all(others), what
