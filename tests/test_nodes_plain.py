"""Nothing that a node shows is live in ComfyUI's page, whatever stands in files, names and answers."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from comfyui import Comfy
from comfyui_server import Graph, Server, changed
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_nodes_links import ALL, OPTIONAL, Given, graph, kept

from mudi_core.lora.metadata import lora_metadata
from mudi_core.train.config import TrainConfig
from mudi_core.types import MudiError, SubjectSet

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["graph", "kept"]

MARKUP = "<img/src=x/onerror=alert(1)>"
LINK = "[[free|https://evil.example/x]]"
HOSTILE = [MARKUP, LINK, "&lt;img&gt;", "https://evil.example", "www.evil.example", "__LNK7__", "\x1b[2J", "a\u202etxt"]
LIVE = re.compile(r"[<>\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LINKED = re.compile(r"(https?|ftp|file)://|www\.|\[\[|__LNK", re.IGNORECASE)
"""What the frontends of ComfyUI 0.3.64 and 0.33.0 make links of."""


def is_live(text: str, links: bool = False) -> bool:
    return bool(LIVE.search(text) or unescape(text) != text or (not links and LINKED.search(text)))


@pytest.fixture
def shown(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every line that goes to the page beside the nodes' own outputs."""
    lines: list[str] = []
    server = SimpleNamespace(send_progress_text=lambda text, node_id: lines.append(text))
    page = comfy.module("host.page")
    monkeypatch.setattr(page, "get_executing_context", lambda: SimpleNamespace(node_id="1"))
    monkeypatch.setitem(page.sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    yield lines


def run(comfy: Comfy, node_id: str, shown: list[str], **inputs: Any) -> Any:
    """A node's output, or None where it refuses; nothing that it shows or tells is live."""
    shown.clear()
    _judge(comfy, node_id, inputs)
    try:
        output = comfy.run(node_id, **inputs)
    except Exception as error:
        assert not is_live(str(error), links=True), error
        assert isinstance(error, MudiError), repr(error)
        output = None
    texts = list((output.ui or {}).get("text", ())) if output is not None else []
    assert not any(is_live(text) for text in [*shown, *texts]), [*shown, *texts]
    return output


def _judge(comfy: Comfy, node_id: str, inputs: dict[str, Any]) -> None:
    """What a node says of its inputs before it runs is not live either."""
    judge = comfy.node(node_id).validate_inputs
    wanted = inspect.getfullargspec(judge)
    if wanted.varkw is not None:  # the host's own, which judges nothing
        return
    answer = judge(**{name: inputs[name] for name in wanted.args if name in inputs})
    assert answer is True or not is_live(answer, links=True), answer


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_plain_and_still_read(comfy: Comfy, text: str) -> None:
    plain = comfy.module("host").plain
    assert is_live(text) and not is_live(plain(text)) and len(plain(text)) == len(text)
    assert plain("2 cats: olis cat\n41 % (0.5)") == "2 cats: olis cat\n41 % (0.5)"
    assert plain(plain(text)) == plain(text)


def nodes_of(graph: Graph) -> list[str]:
    return sorted(name for name, about in graph.items() if about["class_type"].startswith("Mudi"))


def everything(comfy: Comfy, graph: Graph) -> Given:
    return Given(comfy, changed({**ALL, "photos": graph["photos"]}, **OPTIONAL))


def test_every_node_is_walked(comfy: Comfy) -> None:
    assert {ALL[name]["class_type"] for name in nodes_of(ALL)} == set(comfy.nodes)


@pytest.mark.parametrize("name", nodes_of(ALL))
def test_markup_in_any_text_of_any_node_is_shown_plainly(
    comfy: Comfy, graph: Graph, kept: None, shown: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("mudi_core.jobs.one_figure.TRIES", 1)  # nobody is seen in pictures of markup
    given = everything(comfy, graph)
    node_id, good = given.graph[name]["class_type"], given.inputs(name)
    schema = comfy.node(node_id).GET_SCHEMA()
    for widget in schema.inputs:
        if widget.get_io_type() in ("STRING", "COMBO"):
            for text in (MARKUP, " ".join(HOSTILE)):
                run(comfy, node_id, shown, **{**good, widget.id: [text] if schema.is_input_list else text})


@pytest.mark.parametrize("name", nodes_of(ALL))
def test_names_that_are_markup_are_shown_plainly_wherever_they_come_from(
    comfy: Comfy,
    graph: Graph,
    kept: None,
    shown: list[str],
    drawn_subjects: SubjectSet,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    for subject in drawn_subjects.subjects:  # as if no door had looked at them
        monkeypatch.setitem(vars(subject), "class_noun", MARKUP)
    given = everything(comfy, graph)
    given.made["load"] = [[drawn_subjects]]
    node_id = given.graph[name]["class_type"]
    run(comfy, node_id, shown, **given.inputs(name))


def test_what_a_language_model_or_its_address_says_is_shown_plainly(
    comfy: Comfy, graph: Graph, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {**everything(comfy, graph).inputs("ask"), "ask": True, "model": MARKUP, "timeout": 3.0}
    for endpoint in (
        f"http://127.0.0.1:9/{MARKUP}",
        f"https://evil.example/{LINK}",
        "http://127.0.0.1:9",
        "https://e.x",
    ):
        assert run(comfy, "MudiAskLayout", shown, **{**inputs, "endpoint": endpoint}) is None
    for reply in (MARKUP, json.dumps({MARKUP: [0, 0, 1, 1]}), json.dumps({"olis": MARKUP})):
        answer = {"choices": [{"message": {"content": reply}}]}
        monkeypatch.setattr("mudi_core.stage.ask.call", lambda *given, answer=answer: answer)
        assert run(comfy, "MudiAskLayout", shown, **inputs) is None


def refuses(comfy: Comfy, *errors: Exception) -> Any:
    """A node that raises these one by one."""
    io = comfy.core("comfy_api.latest").io

    class Refuses(io.ComfyNode):  # type: ignore[misc]
        @classmethod
        def define_schema(cls) -> Any:
            return io.Schema(node_id="Refuses", category="", inputs=[], outputs=[])

        @classmethod
        def execute(cls) -> Any:
            raise left.pop(0)

    left = list(errors)
    return Refuses


@pytest.mark.parametrize(
    "error",
    [
        MudiError(MARKUP),
        RuntimeError(MARKUP),
        KeyError(MARKUP),
        OSError(2, "gone", f"/{MARKUP}"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, MARKUP),
        torch.cuda.OutOfMemoryError(MARKUP),
    ],
)
def test_an_error_of_any_kind_is_told_plainly(comfy: Comfy, error: Exception) -> None:
    node = comfy.module("ranges").checked(refuses(comfy, error))
    with pytest.raises(Exception, match="‹img/src=x/onerror=alert") as told:
        node.execute()
    assert not is_live(str(told.value), links=True)
    if isinstance(error, MudiError | RuntimeError):  # ComfyUI knows out of memory by its type
        assert told.value is error
    assert told.traceback[-1].name == "execute" and told.traceback[-1].path == Path(__file__)


def test_an_error_without_markup_stays_as_it_is(comfy: Comfy) -> None:
    errors = [
        OSError(2, "gone", "/there"),
        KeyError("a"),
        comfy.core("comfy.model_management").InterruptProcessingException(),
    ]
    node = comfy.module("ranges").checked(refuses(comfy, *errors))
    for error in errors:
        with pytest.raises(type(error)) as told:
            node.execute()
        assert told.value is error


def hostile_copy(base: Path, dataset: Path, change: tuple[str, str]) -> Path:
    """A dataset in the input folder with something else in its metadata."""
    folder = base / "input" / "hostile"
    shutil.copytree(dataset, folder)
    metadata = folder / "metadata.jsonl"
    text = metadata.read_text(encoding="utf-8")
    assert change[0] in text
    metadata.write_text(text.replace(*change), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        ("olis cat", f"olis {MARKUP}"),
        ("olis cat", f"{MARKUP} cat"),
        ('"a"', json.dumps(MARKUP)),
        ('"text": "', f'"text": "{MARKUP} {LINK}'),
        ('"file_name": "', f'"file_name": "{MARKUP}'),
        ('"mask_path": "', f'"mask_path": "../{MARKUP}'),
        ('"id": "a"', f'"id": "{MARKUP}"'),
        ("{", f"{MARKUP}{{"),
    ],
)
def test_a_set_with_markup_anywhere_in_its_metadata_is_shown_plainly(
    comfy: Comfy, shown: list[str], drawn_dataset: Path, change: tuple[str, str]
) -> None:
    folder = hostile_copy(comfy.base, drawn_dataset, change)
    run(comfy, "MudiLoadSubjectSet", shown, name=folder.name)
    shutil.rmtree(folder)


LIVE_IMAGE = "<img src=x onerror=hacked.push(1)>"
"""Runs as soon as a page takes it for markup, and can be the name of a file."""
SHOWN_IMAGE = "‹img src=x onerror=hacked.push(1)›"


def with_a_hostile_photo(base: Path, dataset: Path, photo: str) -> Path:
    """A dataset with markup for a photo's name, and a mask of it that there is something to say about."""
    name = f"{LIVE_IMAGE}.png"
    folder = hostile_copy(base, dataset, (photo, name))
    for file in folder.rglob(f"*{photo}"):
        file.rename(file.with_name(file.name.replace(photo, name)))
    (mask,) = folder.rglob(f"*mask*{name}")
    with Image.open(mask) as drawn:
        shape = Image.new("L", drawn.size)
        shape.paste(255, (0, 0, drawn.width // 2, drawn.height))
    shape.save(mask)
    return folder


def test_photos_with_markup_for_names_are_shown_plainly(
    comfy: Comfy, shown: list[str], drawn_dataset: Path, drawn_subjects: SubjectSet
) -> None:
    name = f"{LIVE_IMAGE}.png"
    folder = with_a_hostile_photo(comfy.base, drawn_dataset, drawn_subjects.subjects[0].photos[0].name)
    assert run(comfy, "MudiLoadSubjectSet", shown, name=folder.name) is not None
    assert f"{SHOWN_IMAGE}.png" in shown[-1]
    (folder / "metadata.jsonl").unlink()
    about = PngInfo()
    for key in ("Description", "workflow", "prompt"):
        about.add_text(key, MARKUP)
    Image.new("RGB", (64, 64), "red").save(folder / name, pnginfo=about)
    for other in ("<b>.heic", "mask_<b>.png", "<b>"):
        (folder / other).mkdir() if other == "<b>" else (folder / other).write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(folder / "<b>" / "a.png")
    (folder / name.replace(".png", ".txt")).write_text(MARKUP)
    assert run(comfy, "MudiLoadPhotos", shown, folder=folder.name) is not None
    assert "‹b›.heic" in shown[-1] and f"{SHOWN_IMAGE}.png" in shown[-1]
    (folder / name).write_text(MARKUP)
    assert run(comfy, "MudiLoadPhotos", shown, folder=folder.name) is None
    shutil.rmtree(folder)


def test_names_of_files_and_folders_are_refused_plainly(comfy: Comfy, shown: list[str]) -> None:
    assert run(comfy, "MudiLoadSubjectSet", shown, name=MARKUP) is None
    assert run(comfy, "MudiLoadPhotos", shown, folder=MARKUP) is None
    prompt = {"text": "", "kind": "", "every_order": False, "negative": ""}
    assert run(comfy, "MudiSubjectPrompt", shown, lora_name=MARKUP, **prompt) is None
    assert run(comfy, "MudiMiniPhotos", shown, pair=MARKUP, count=1, side=96, seed=0) is None
    assert comfy.node("MudiTrainLora").validate_inputs(name=MARKUP) is not True
    assert not is_live(comfy.node("MudiTrainLora").validate_inputs(name=MARKUP), links=True)


def a_lora(base: Path, subjects: SubjectSet, name: str = "hostile", **about: str) -> Path:
    path = base / "models" / "loras" / f"{name}.safetensors"
    own = lora_metadata(TrainConfig.of(resolution=192).described(), subjects, base="sdxl.safetensors", plan_hash="")
    save_file({"x": torch.zeros(1)}, path, {**own, **about})
    return path


PROMPT = {"text": "", "kind": "", "every_order": False, "negative": ""}


@pytest.mark.parametrize("base", [MARKUP, "x" * 300, "a\x1b[2Jb", "two\nlines"])
def test_a_lora_whose_base_is_no_name_is_refused(
    comfy: Comfy, shown: list[str], drawn_subjects: SubjectSet, base: str
) -> None:
    path = a_lora(comfy.base, drawn_subjects, mudi_base=base)
    assert run(comfy, "MudiSubjectPrompt", shown, lora_name=path.name, **PROMPT) is None
    path.unlink()


def test_a_lora_with_markup_anywhere_in_its_metadata_is_shown_plainly(
    comfy: Comfy, graph: Graph, kept: None, shown: list[str], drawn_subjects: SubjectSet
) -> None:
    """Each text of it by itself: as a name, as a base, as what it was trained with, and as a LoRA to start from."""
    given = everything(comfy, graph)
    training, settings = given.inputs("train"), given.inputs("settings")
    path = a_lora(comfy.base, drawn_subjects)
    with safe_open(path, framework="pt") as file:
        keys = list(file.metadata())
    assert len(keys) > 5
    for key in keys:
        for value in (MARKUP + LINK, json.dumps([MARKUP, MARKUP]), json.dumps({MARKUP: MARKUP})):
            path = a_lora(comfy.base, drawn_subjects, **{key: value})
            run(comfy, "MudiSubjectPrompt", shown, lora_name=path.name, **PROMPT)
            run(comfy, "MudiSubjectPrompt", shown, lora_name=path.name, subjects=drawn_subjects, **PROMPT)
        started = run(comfy, "MudiTrainSettings", shown, **{**settings, "start_from": path.name})
        run(comfy, "MudiTrainLora", shown, **{**training, "settings": started.result[0]})
    save_file({MARKUP: torch.zeros(1)}, path, {MARKUP: MARKUP})
    run(comfy, "MudiTrainLora", shown, **{**training, "settings": started.result[0]})
    path.write_bytes(MARKUP.encode())
    run(comfy, "MudiTrainLora", shown, **{**training, "settings": started.result[0]})
    run(comfy, "MudiSubjectPrompt", shown, lora_name=path.name, **PROMPT)
    path.unlink()


def test_names_that_are_markup_are_no_choices(comfy: Comfy, drawn_dataset: Path, drawn_subjects: SubjectSet) -> None:
    """The menus of ComfyUI's frontend take a choice for markup."""
    host = comfy.module("host")
    lora, folder = a_lora(comfy.base, drawn_subjects, LIVE_IMAGE), comfy.base / "input" / LIVE_IMAGE
    shutil.copytree(drawn_dataset, folder)
    photos, model = folder.with_name(f"2 {LIVE_IMAGE}"), comfy.base / "models" / "owlv2" / LIVE_IMAGE
    shutil.copytree(drawn_dataset, photos)
    (photos / "metadata.jsonl").unlink()
    model.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (model / file).touch()
    assert LIVE_IMAGE + ".safetensors" in comfy.core("folder_paths").get_filename_list("loras")
    for choices in (host.loras(), host.datasets(), host.photo_folders(), host.eye_choices("detector")):
        assert not any("<" in choice for choice in choices)
    lora.unlink()
    for one in (folder, photos, model):
        shutil.rmtree(one)


def test_a_stopped_training_with_markup_in_its_metadata_is_shown_plainly(
    comfy: Comfy, graph: Graph, kept: None, shown: list[str]
) -> None:
    given = everything(comfy, graph)
    training = {**given.inputs("train"), "name": "hostile_run", "steps": 2}
    management = comfy.core("comfy.model_management")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comfy.module("host.page"), "say", lambda words: management.interrupt_current_processing("1 / 2" in words)
        )
        with pytest.raises(management.InterruptProcessingException):
            comfy.run("MudiTrainLora", **training)
    management.interrupt_current_processing(False)
    (stopped,) = (comfy.base / "output" / "mudi" / "hostile_run").glob("stopped_*")
    with safe_open(stopped, framework="pt") as file:
        about = dict(file.metadata())
    config = {name: {MARKUP: LINK} for name in json.loads(about["config"])}
    save_file(load_file(stopped), stopped, {**about, "config": json.dumps({**config, MARKUP: MARKUP})})
    run(comfy, "MudiTrainLora", shown, **{**training, "steps": 1})
    assert any("‹img/src=x" in line for line in shown)
    shutil.rmtree(stopped.parent)


@pytest.mark.parametrize("key", ["_attn_implementation", MARKUP, "hidden_size", "model_type"])
def test_a_model_folder_with_markup_in_its_settings_is_shown_plainly(
    comfy: Comfy, shown: list[str], drawn_subjects: SubjectSet, key: str
) -> None:
    photos = [drawn_subjects.subjects[0].photos[0].image[None]]
    for kind, run_it in (
        ("owlv2", lambda: run(comfy, "MudiDetectSubjects", shown, photos=photos, query=["cat"], detector=["evil"],
                              threshold=[0.1], which=["best"], download=[False])),
        ("sams", lambda: run(comfy, "MudiSamMask", shown, photos=photos, segmenter=["evil.safetensors"],
                             boxes=[[{"x": 8, "y": 8, "width": 40, "height": 40}]], download=[False])),
    ):  # fmt: skip
        folder = comfy.base / "models" / kind
        (folder / "evil").mkdir(parents=True)
        (folder / "evil" / "config.json").write_text(json.dumps({key: MARKUP, "architectures": [MARKUP]}))
        for file in (folder / "evil" / "model.safetensors", folder / "evil.safetensors"):
            save_file({MARKUP: torch.zeros(1)}, file, {MARKUP: MARKUP})
        assert run_it() is None
        shutil.rmtree(folder)


def test_no_progress_is_left_as_a_result(comfy: Comfy, shown: list[str], random_mini: None) -> None:
    pair = comfy.module("mini").PAIR_CHOICES[0]
    for node_id, inputs in (("MudiMiniCheckpoint", {}), ("MudiMiniPhotos", {"pair": pair, "count": 1, "side": 96})):
        run(comfy, node_id, shown, **inputs, **({"seed": 0} if inputs else {}))
        assert any(re.search(r"\d+ / \d+", line) for line in shown)
        assert not re.search(r"\d+ / \d+", shown[-1]), shown[-1]


QUEUE = """graph => {
    app.extensionManager.toast.removeAll()
    window.hacked ??= []
    window.ended = null
    for (const kind of ['execution_success', 'execution_error'])
        app.api.addEventListener(kind, () => { window.ended ??= kind }, {once: true})
    app.loadApiJson(graph, 'hostile')
}"""
SAID = """() => [
    document.body.innerText, ...[...document.querySelectorAll('textarea')].map(one => one.value)
].join('\\n')"""


def queued(page: Page, graph: Graph, words: str) -> None:
    """The page shows these words once a graph has run there; no script has run, and no markup has come alive."""
    page.evaluate(QUEUE, graph)
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("() => window.ended || document.querySelector('[role=dialog]')")
    page.wait_for_timeout(1000)
    assert page.evaluate("() => hacked.length") == 0
    assert page.evaluate("() => document.querySelectorAll('img[src=x]').length") == 0
    said = page.evaluate(SAID)
    assert words in said, said
    page.keyboard.press("Escape")


def test_nothing_in_a_file_runs_as_a_script_in_the_real_page(
    page: Page, comfyui_server: Server, drawn_dataset: Path, drawn_subjects: SubjectSet
) -> None:
    base = comfyui_server.base
    assert page.evaluate(
        """async live => {
        window.hacked = []
        document.createElement('div').innerHTML = live
        await new Promise(done => setTimeout(done, 500))
        return hacked.splice(0).length
    }""",
        LIVE_IMAGE,
    )  # it would run
    load = {"1": {"class_type": "MudiLoadSubjectSet", "inputs": {"name": "hostile"}}}
    folder = hostile_copy(base, drawn_dataset, ("olis cat", f"olis {LIVE_IMAGE}"))
    queued(page, load, SHOWN_IMAGE)
    shutil.rmtree(folder)
    folder = with_a_hostile_photo(base, drawn_dataset, drawn_subjects.subjects[0].photos[0].name)
    queued(page, load, f"{SHOWN_IMAGE}.png")
    (folder / "metadata.jsonl").unlink()
    for name in (f"{LIVE_IMAGE}.png", f"2 {LIVE_IMAGE}.heic"):
        Image.new("RGB", (64, 64)).save(folder / name, format="PNG")
    queued(page, {"1": {"class_type": "MudiLoadPhotos", "inputs": {"folder": "hostile"}}}, f"2 {SHOWN_IMAGE}.heic")
    shutil.rmtree(folder)

    sink = {"class_type": "PreviewAny", "inputs": {"source": ["1", 3]}}
    lora = a_lora(base, drawn_subjects, mudi_base=LIVE_IMAGE)
    asked = {"1": {"class_type": "MudiSubjectPrompt", "inputs": {**PROMPT, "lora_name": lora.name}}, "2": sink}
    queued(page, asked, "hostile.safetensors does not name its subjects")
    a_lora(base, drawn_subjects)
    queued(page, changed(asked, **{"1": {"text": LIVE_IMAGE}}), SHOWN_IMAGE)
    lora.unlink()
