from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mudi_core

ROOT = Path(__file__).parent.parent
CORE = ROOT / "mudi_core"
MODULES = sorted(path for path in CORE.rglob("*.py"))

FLOORS = (
    ("types", "progress", "levels"),
    ("boxes", "masks", "lock", "files", "names", "tensor_file", "vocabulary"),
    ("bases", "eyes", "toy", "report"),
    ("stage", "start", "lora"),
    ("subjects", "train", "attention"),
    ("score", "methods"),
    ("jobs",),
    ("demo", "benchmark", "cli"),
    ("__main__",),
)
"""The house from the ground up. A room knows those below it and those beside it, never those above."""

TRAIN = (
    ("parts",),
    ("config",),
    ("cache", "ctrl_c", "loss", "optimizer", "pace", "recompute", "team"),
    ("draw", "encode"),
    ("sources",),
    ("plan",),
    ("step", "resume"),
    ("residual",),
    ("memory", "best"),
    ("run",),
    ("loop",),
)
"""The floors inside the training: settings, what a step is made of, samples, steps, runs."""

NODES = (
    ("host", "sockets", "drawing"),
    ("carried", "convert", "editor", "given_boxes", "layer_editor", "mini_models", "ranges", "scene"),
    ("denoiser", "seeds"),
    ("base", "samplers", "compare", "generate", "lora_patches", "own_loras", "start"),
    ("attention", "identity", "painting", "train_config"),
    ("preview", "text"),
    ("training",),
    ("find", "fusing", "photos", "redraw", "subject", "subject_sets"),
    ("found_subject",),
    (
        *("dataset", "detail", "init_latent", "layout_parts", "mini", "priors", "search", "settings", "train"),
        *("best_pictures", "from_loras", "mini_lora", "reference_adapter", "sampler_settings"),
        *("watermark", "words", "fuse_loras", "layout_guidance", "lora_subject", "regional_prompts", "separate_loras"),
        *("residual_token", "train_residual"),
    ),
)
"""The floors inside ComfyUI's face: the host, values and pictures, what nodes share, the nodes."""

HOST = (
    ("listing", "page", "written"),
    ("folders", "lora_files", "models"),
    ("adapters", "residuals", "widgets"),
    ("sampling",),
)
"""The floors inside the host: what it shows and reads, folders and models, widgets, sampling."""

DENOISER = (
    ("guards", "linear", "patches"),
    ("asking", "copies", "noise"),
    ("names",),
    ("check",),
    ("model",),
)
"""The floors inside a MODEL's denoiser: layers and patches, noise and questions, names, the denoiser itself."""


def room(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def floor(floors: tuple[tuple[str, ...], ...], name: str) -> int:
    levels = [i for i, rooms in enumerate(floors) if name in rooms]
    assert levels, f"{name} is new: say on which floor it stands"
    return levels[0]


def targets(path: Path, root: Path) -> set[tuple[str, ...]]:
    """The modules below ``root``, part by part, that a module's relative imports lead to, lazy ones included."""
    package = path.relative_to(root).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package) + 1:
            above = package[: len(package) - node.level + 1]
            base = (*above, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                full = (*base, alias.name)
                is_module = (root.joinpath(*full).with_suffix(".py")).is_file() or root.joinpath(*full).is_dir()
                found.add(full if is_module else base)
    return {target for target in found if target and target != ("__version__",)}


def imported_rooms(path: Path) -> set[str]:
    return {target[0] for target in targets(path, CORE)} - {room(path), "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports_only_go_down(path: Path) -> None:
    if path == CORE / "__init__.py":
        return
    for name in imported_rooms(path):
        assert floor(FLOORS, name) <= floor(FLOORS, room(path)), f"{path.relative_to(ROOT)} reaches up to {name}"


@pytest.mark.parametrize(
    ("package", "floors"),
    [
        (CORE / "train", TRAIN),
        (ROOT / "nodes", NODES),
        (ROOT / "nodes" / "host", HOST),
        (ROOT / "nodes" / "denoiser", DENOISER),
    ],
)
def test_imports_only_go_down_inside_a_room(package: Path, floors: tuple[tuple[str, ...], ...]) -> None:
    for path in package.rglob("*.py"):
        inside = path.relative_to(package).parts[0].removesuffix(".py")
        for target in targets(path, package) if inside != "__init__" else ():
            up = floor(floors, target[0]) > floor(floors, inside)
            assert not up, f"{path.relative_to(ROOT)} reaches up to {target[0]}"


def test_nothing_is_imported_in_a_circle() -> None:
    """Neither rooms nor modules hold each other."""
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        if path != CORE / "__init__.py":
            rooms.setdefault(room(path), set()).update(imported_rooms(path))
    TopologicalSorter(rooms).prepare()
    for root in (CORE, ROOT / "nodes"):
        modules = {}
        for path in root.rglob("*.py"):
            name = path.relative_to(root).with_suffix("").parts
            modules[name[:-1] if name[-1] == "__init__" else name] = targets(path, root)
        TopologicalSorter(modules).prepare()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_the_library_uses_relative_imports_and_no_comfyui(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in ("mudi_core", "comfy", "comfy_api", "folder_paths", "nodes", "server")


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_loads_without_comfyui() -> None:
    """And none of them changes the random state or torch's global settings by being loaded."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.name != "__main__.py"
    ]
    script = """
import importlib, sys
class NoComfy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, NoComfy())
import torch
before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
for name in sys.argv[1:]:
    importlib.import_module(name)
after = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
print(len(sys.argv) - 1)
"""
    assert int(run(script, *names)) == len(names)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mudi_core", "torch transformers diffusers peft cv2 segment_anything PIL"),
        ("mudi_core.cli", "torch transformers diffusers peft cv2 segment_anything PIL"),
        ("mudi_core.types", "torch transformers diffusers peft cv2 segment_anything PIL"),
        ("mudi_core.eyes", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.subjects.find", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.stage.segmix", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.score.compare", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.bases.checkpoint", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.jobs.generate", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.train.loop", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.bases.embedded", "transformers diffusers peft cv2 segment_anything"),
        ("mudi_core.toy.world", "torch transformers diffusers peft cv2 segment_anything PIL"),
    ],
)
def test_loading_is_light(module: str, heavy: str) -> None:
    script = f"import sys, {module}\nprint(sorted(set(sys.modules) & set({heavy.split()})))"
    assert run(script).strip() == "[]"


def test_the_pack_itself_can_be_imported_anywhere() -> None:
    script = f"""
import importlib.util, inspect
spec = importlib.util.spec_from_file_location("pack", {str(ROOT / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
print(inspect.iscoroutinefunction(pack.comfy_entrypoint))
"""
    assert run(script).strip() == "True"


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "base"}


WITHOUT_WORDS = {"add", "run"}
"""Of a command: its options and what it does, which its help tells."""
NO_VERBS = {
    "A",
    "All",
    "An",
    "By",
    "Each",
    "Every",
    "Float",
    "How",
    "Of",
    "The",
    "What",
    "Where",
    "Whether",
    "Which",
    "Who",
}
"""Words that a docstring of a function does not begin with."""
PROMISES = {
    "DiffusersNetwork": "Denoiser",
    "UNetDenoiser": "Denoiser",
    "FluxDenoiser": "Denoiser",
    "Checkpoint": "Base",
    "CheckpointText": "TextEncoders",
}
"""A class that keeps a promise -> the promise, whose docstrings hold for it too."""


def public(body: list[ast.stmt], prefix: str = "") -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Public functions, classes and methods by their names, such as "Plan.composed"."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                found |= public(node.body, f"{prefix}{node.name}.")
    return found


def promised(module: dict[str, ast.FunctionDef | ast.ClassDef], name: str) -> bool:
    """Whether a method says what the promise or the parent of its class, documented itself, says for it."""
    owner, _, method = name.rpartition(".")
    promises = public(ast.parse((CORE / "bases" / "promise.py").read_text(encoding="utf-8")).body)
    parents = [base.id for base in getattr(module.get(owner), "bases", ()) if isinstance(base, ast.Name)]
    spoken = [module.get(f"{parent}.{method}") for parent in parents]
    spoken.append(promises.get(f"{PROMISES.get(owner)}.{method}"))
    return any(node is not None and ast.get_docstring(node) for node in spoken)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_everything_public_says_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = public(tree.body)
    silent = [name for name, node in module.items() if not ast.get_docstring(node) and not promised(module, name)]
    if room(path) == "cli":
        silent = [name for name in silent if name not in WITHOUT_WORDS]
    silent = [name for name in silent if not name.endswith(".forward")]  # torch's own promise
    assert ast.get_docstring(tree) or path.name == "__main__.py"
    assert not silent, f"{path.relative_to(ROOT)}: {', '.join(silent)} without a docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(CORE)))
def test_functions_say_what_to_expect_in_the_imperative(path: Path) -> None:
    """ "Return the area", not "The area"; properties and classes are things and have names of things."""
    for name, node in public(ast.parse(path.read_text(encoding="utf-8")).body).items():
        words = (ast.get_docstring(node) or "Return").split()
        is_property = any("property" in ast.unparse(one) for one in node.decorator_list)
        if isinstance(node, ast.FunctionDef) and not is_property:
            assert words[0] not in NO_VERBS, f"{path.relative_to(ROOT)}: {name} begins with {words[0]!r}"
            assert not re.search(r"[.)`] Raises `", " ".join(words)), f"{path.relative_to(ROOT)}: {name}: Raise"


def test_one_version() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert declared and declared[1] == mudi_core.__version__


LONGER = {
    "mudi_core/bases/checkpoint.py": "one face over four kinds of files",
    "mudi_core/stage/layout.py": "three ways to arrange figures share their rooms",
    "mudi_core/subjects/find.py": "a subject's checks and their sentences",
    "mudi_core/subjects/saving.py": "every way in which saving may be cut short",
    "mudi_core/subjects/storage.py": "three formats of sets",
    "mudi_core/toy/figure.py": "a drawing",
    "mudi_core/toy/world.py": "a list of looks",
    "mudi_core/types.py": "the values that all share",
    "workshop/figures.py": "a page of figures",
}
"""Modules of more than 250 lines, and why they stay whole."""


def test_modules_are_short_but_for_a_few() -> None:
    folders = (CORE, ROOT / "nodes", ROOT / "workshop")
    every = {str(path.relative_to(ROOT)): path for folder in folders for path in folder.rglob("*.py")}
    long = {name for name, path in every.items() if len(path.read_text(encoding="utf-8").splitlines()) > 250}
    assert long <= set(LONGER), "a module grew: split it where it has a seam"
    assert set(LONGER) <= long, "a module is short now: strike it out"


def test_functions_are_short_and_take_few_arguments() -> None:
    """60 lines and 8 arguments; a node's schema and the arguments of its execute are a list of widgets."""
    for folder in (CORE, ROOT / "nodes", ROOT / "workshop", ROOT / "benchmarks"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.FunctionDef) or node.name == "define_schema":
                    continue
                is_execute = path.is_relative_to(ROOT / "nodes") and node.name == "execute"
                begins = node.body[0].lineno if is_execute else node.lineno
                where = f"{path.relative_to(ROOT)}: {node.name}"
                assert (node.end_lineno or 0) - begins + 1 <= 60, f"{where} is long"
                given = [one.arg for one in (*node.args.args, *node.args.kwonlyargs) if one.arg not in ("self", "cls")]
                assert len(given) <= 8 or is_execute, f"{where} takes {len(given)} arguments"
