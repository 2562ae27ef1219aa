"""The results of a benchmark as one small file, without its pictures and LoRAs, to go on elsewhere and to publish.

    python -m workshop.kept pack held-out benchmarks/held_out.toml --to benchmarks/held_out/1.jsonl.xz
    python -m workshop.kept unpack benchmarks/held_out/*.jsonl.xz --to held-out

The first writes the results that no other file in the folder has, with what the second judge saw in their pictures. The
second puts them where `python -m mudi_core benchmark` finds them: it goes on, or prints their table with `--so-far`.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path

from mudi_core.benchmark.results import REMARK, SPEC, Results, write_whole
from mudi_core.benchmark.spec import Cell
from mudi_core.benchmark.spec_file import read_spec

from . import looks


def rows(files: Iterable[Path]) -> Iterator[dict[str, object]]:
    """Yield what such files hold: first a spec each, then results."""
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def pack(results: Results, to: Path) -> int:
    """Write what is new to a file; return how many results it holds."""
    others = sorted(path for path in to.parent.glob("*.jsonl.xz") if path != to)
    known = {row["path"] for row in rows(others) if "path" in row}
    reader = looks.load()
    lines = [json.dumps({"spec": json.loads((results.folder / SPEC).read_text(encoding="utf-8"))})]
    lines += [json.dumps({"remark": name, "words": words}) for name, words in results.remarks().items()]
    count = 0
    for cell in results.spec.cells():
        path = name_of(results, cell)
        if results.is_done(cell) and path not in known:
            looks.look_at(results, results.read(cell), reader)
            kept = {end: json.loads(results.path(cell, f".{end}").read_text("utf-8")) for end in ("json", "looks.json")}
            lines.append(json.dumps({"path": path, **kept}))
            count += 1
    to.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(to, "wt", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    return count


def name_of(results: Results, cell: Cell) -> str:
    """Return a cell's file without its end, in the results' folder."""
    return results.path(cell, "").relative_to(results.folder).as_posix()


def unpack(files: Iterable[Path], to: Path) -> int:
    """Put results where the benchmark looks for them; return how many. Raise `ValueError` for a path that leads out."""
    count = 0
    for row in rows(files):
        if "spec" in row:
            write_whole(_below(to, SPEC), json.dumps(row["spec"], indent=1) + "\n")
            continue
        if "remark" in row:
            write_whole(_below(to, f"{row['remark']}{REMARK}"), f"{row['words']}\n")
            continue
        for end in ("json", "looks.json"):
            write_whole(_below(to, f"{row['path']}.{end}"), json.dumps(row[end]) + "\n")
        count += 1
    return count


def _below(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} leads out of {folder}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packs = commands.add_parser("pack")
    packs.add_argument("out", type=Path, help="the benchmark's folder")
    packs.add_argument("spec", type=Path, help="its TOML file")
    packs.add_argument("--to", type=Path, required=True, help="the new file; its name ends in .jsonl.xz")
    unpacks = commands.add_parser("unpack")
    unpacks.add_argument("files", type=Path, nargs="+")
    unpacks.add_argument("--to", type=Path, required=True, help="the benchmark's folder")
    args = parser.parse_args()
    if args.command == "pack":
        print(f"{pack(Results(args.out, read_spec(args.spec)), args.to)} results")
    else:
        print(f"{unpack(args.files, args.to)} results")


if __name__ == "__main__":
    main()
