"""Takes the pictures of the nodes' help pages, in the real frontend: python tests/node_pictures.py [MudiLayout ...]

Each node is shown at work on the embedded models, with its neighbours' edges and the wires to them.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from browser import CHROMIUM, QUIET, READY
from comfyui_server import ROOT, serve
from models import random_lora, random_residual
from PIL import Image

from mudi_core.subjects.storage import write_subjects
from mudi_core.toy.world import PAIRS, Actor, Scene, aspect, photo, random_pose, render
from mudi_core.types import Photo, Subject, SubjectSet

if TYPE_CHECKING:
    from playwright.sync_api import Page

MINI = "embedded (drawn toys only)"
MARGIN = 80
"""Pixels beside the node."""


class Placed(NamedTuple):
    """A node of a picture; sockets are linked to the nearest nodes before it that have what they take."""

    kind: str
    values: Mapping[str, Any] = {}


CHECKPOINT = Placed("MudiMiniCheckpoint")
PHOTOS = Placed("MudiMiniPhotos", {"count": 3, "side": 192})
FIND = Placed("MudiDetectSubjects", {"query": "cat", "detector": MINI, "threshold": 0.03, "which": "best"})
CUT = Placed("MudiSamMask", {"segmenter": MINI})
SUBJECT = Placed("MudiSubject", {"token": "olis", "class_noun": "cat"})
SET = Placed("MudiLoadSubjectSet", {"name": "cats"})
DATASET = Placed("MudiSegMixDataset")
LAYOUT = Placed("MudiLayout", {"width": 192, "height": 192, "seed": 3})
START = Placed("MudiInitLatent")
SAMPLER = Placed("KSampler")
OLIS = Placed("MudiLoraSubject", {"lora_name": "olis.safetensors"})
HTA = Placed("MudiLoraSubject", {"lora_name": "hta.safetensors"})
CORGI = Placed("MudiLoraSubject", {"lora_name": "olis.safetensors", "subject": "olis corgi"})
CAT = Placed("MudiLoraSubject", {"lora_name": "other.safetensors", "subject": "hta cat"})
APART = Placed("MudiSeparateLoras")
MASKS = Placed("MaskPreview")
WORDS = Placed("CLIPTextEncode", {"text": "a photo of olis cat and hta cat"})
TWO_CATS = "a photo of a cat and a cat in the meadow"
NOT = Placed("CLIPTextEncode", {"text": ""})
TRAIN = Placed("MudiTrainLora", {"preset": "mini, 192 px", "steps": 20, "rank": 4, "name": "cats"})
PICTURE = Placed("LoadImage", {"image": "both.png"})
MARK = Placed("MudiWatermark")
JUDGES = {"detector": MINI, "embedder": MINI, "threshold": 0.25, "cut_out": True}
ALL_IN_ONE = {**JUDGES, "folder": "rex", "token": "olis", "class_noun": "cat", "segmenter": MINI, "threshold": 0.03}
DETAIL = {**JUDGES, "segmenter": MINI, "threshold": 0.05, "side": 192, "steps": 12, "only_better": False}
PRIORS = {"count": 2, "width": 192, "height": 192, "steps": 12, "threshold": 0.03, "detector": MINI, "segmenter": MINI}
PAINTED = {
    "count": 2,
    "spare": 1,
    "width": 192,
    "height": 192,
    "steps": 12,
    **JUDGES,
    "segmenter": MINI,
    "threshold": 0.03,
}
BEST = {**JUDGES, "prompts": "on the beach", "count": 4, "keep": 2, "least": 1, "steps": 12, "threshold": 0.05}
PLAIN = {"prompt": "a photo of a {}, simple background", "negative": ""}

GRAPHS: dict[str, tuple[Placed, ...]] = {
    "MudiAskLayout": (SET, Placed("MudiAskLayout", {"prompt": WORDS.values["text"], "ask": False}), LAYOUT),
    "MudiBestPictures": (
        *(CHECKPOINT, SET, LAYOUT),
        Placed("MudiBestPictures", BEST),
        TRAIN,
    ),
    "MudiCompare": (SET, PICTURE, Placed("MudiCompare", JUDGES), Placed("SaveImage")),
    "MudiDetail": (CHECKPOINT, SET, PICTURE, Placed("MudiDetail", DETAIL), Placed("PreviewImage")),
    "MudiDetectSubjects": (PHOTOS, FIND, CUT),
    "MudiFindSeed": (
        *(CHECKPOINT, WORDS, NOT, SET, LAYOUT),
        Placed("MudiFindSeed", {**JUDGES, "count": 4, "keep": 2, "steps": 12}),
        Placed("SaveImage"),
    ),
    "MudiFindWatermark": (PICTURE, MARK, Placed("MudiFindWatermark")),
    "MudiFuseLoras": (
        *(CHECKPOINT, CORGI, CAT),
        Placed("MudiFuseLoras", {"width": 192, "height": 192, "steps": 4, "name": "both"}),
        SAMPLER,
    ),
    "MudiInitLatent": (CHECKPOINT, SET, LAYOUT, START, SAMPLER),
    "MudiLayout": (SET, LAYOUT, START),
    "MudiLayoutGuidance": (
        *(CHECKPOINT, SET, LAYOUT),
        Placed("MudiLayoutGuidance", {"prompt": WORDS.values["text"]}),
        MASKS,
    ),
    "MudiLayoutParts": (SET, LAYOUT, Placed("MudiLayoutParts"), Placed("MaskPreview")),
    "MudiLoadPhotos": (Placed("MudiLoadPhotos", {"folder": "rex"}), FIND),
    "MudiLoadSubjectSet": (SET, DATASET),
    "MudiLoraSubject": (CHECKPOINT, SET, LAYOUT, OLIS, HTA, APART, MASKS),
    "MudiMakePriors": (CHECKPOINT, SET, Placed("MudiMakePriors", {**PRIORS, **PLAIN}), DATASET),
    "MudiMiniCheckpoint": (CHECKPOINT, SAMPLER),
    "MudiMiniLora": (CHECKPOINT, SET, Placed("MudiMiniLora"), SAMPLER),
    "MudiMiniPhotos": (PHOTOS, FIND),
    "MudiNoise": (CHECKPOINT, Placed("BasicScheduler"), Placed("MudiNoise"), Placed("SamplerCustomAdvanced")),
    "MudiReferenceAdapter": (CHECKPOINT, SET, LAYOUT, Placed("MudiReferenceAdapter", {"adapter": MINI}), MASKS),
    "MudiRegionalPrompts": (CHECKPOINT, SET, LAYOUT, Placed("MudiRegionalPrompts"), MASKS),
    "MudiSamplerSettings": (CHECKPOINT, SET, Placed("MudiSamplerSettings"), LAYOUT, SAMPLER),
    "MudiResidualToken": (
        *(CHECKPOINT, Placed("CLIPTextEncode", {"text": TWO_CATS})),
        Placed("MudiResidualToken", {"prompt": TWO_CATS, "residual": "olis.safetensors", "occurrence": 1}),
        SAMPLER,
    ),
    "MudiSamMask": (PHOTOS, FIND, CUT, SUBJECT),
    "MudiSaveSubjectSet": (SET, Placed("MudiSaveSubjectSet", {"name": "cats_kept"})),
    "MudiSeeds": (CHECKPOINT, SET, LAYOUT, Placed("MudiSeeds"), SAMPLER),
    "MudiSegMixDataset": (SET, DATASET, TRAIN),
    "MudiSeparateLoras": (CHECKPOINT, SET, LAYOUT, OLIS, HTA, APART, MASKS),
    "MudiSubject": (PHOTOS, FIND, CUT, SUBJECT, Placed("MudiSaveSubjectSet", {"name": "olis"})),
    "MudiSubjectFromPhotos": (
        Placed("MudiSubjectFromPhotos", ALL_IN_ONE),
        Placed("MudiSaveSubjectSet", {"name": "olis"}),
    ),
    "MudiSubjectPrompt": (SET, Placed("MudiSubjectPrompt"), WORDS),
    "MudiSubjectsFromLoras": (
        *(CHECKPOINT, CORGI, CAT),
        Placed("MudiSubjectsFromLoras", PAINTED),
        DATASET,
    ),
    "MudiTrainLora": (CHECKPOINT, SET, DATASET, TRAIN, SAMPLER),
    "MudiTrainPreview": (CHECKPOINT, WORDS, NOT, SET, LAYOUT, Placed("MudiTrainPreview", JUDGES), TRAIN),
    "MudiTrainSettings": (Placed("MudiTrainSettings"), TRAIN),
    "MudiTrainResidual": (
        *(CHECKPOINT, SET),
        Placed("MudiTrainResidual", {"name": "cats", "steps": 6, "resolution": 64, "batch_size": 1}),
        *(Placed("CLIPTextEncode", {"text": TWO_CATS}), Placed("MudiResidualToken", {"prompt": TWO_CATS})),
    ),
    "MudiWatermark": (PICTURE, MARK, Placed("PreviewImage")),
}
AT_REST = {
    "MudiResidualToken",
    "MudiBestPictures",
    "MudiTrainPreview",
    "MudiTrainSettings",
    "MudiNoise",
    "MudiMiniCheckpoint",
    "MudiFindSeed",
    "MudiSeeds",
}
"""They have nothing to show when they have run, or nothing good without a LoRA."""

BUILD = """([placed, gap]) => {
    app.graph.clear()
    // What ran under an id stays with it.
    app.graph.last_node_id = window.used = (window.used ?? 0) + 100
    let x = 200
    const made = []
    for (const [kind, values] of placed) {
        const node = LiteGraph.createNode(kind)
        app.graph.add(node)
        node.pos = [x, 80]
        for (const widget of node.widgets ?? []) {
            if (widget.name in values) widget.value = values[widget.name]
            if (widget.name === 'control_after_generate') widget.value = 'fixed'
        }
        const taken = new Set()
        node.inputs?.forEach((input, slot) => {
            if (input.widget) return
            const nearest = made.toReversed()
            const outputs = nearest.flatMap(one => (one.outputs ?? []).map((output, from) => ({one, from, output})))
            const best = outputs.find(({output}) => output.type === input.type && !taken.has(output))
            if (!best) return
            taken.add(best.output)
            best.one.connect(best.from, node, slot)
        })
        made.push(node)
        x += node.size[0] + gap
    }
}"""
RUN = """async () => {
    const ended = new Promise(done => {
        for (const kind of ['execution_success', 'execution_error'])
            app.api.addEventListener(kind, event => done([kind, event.detail]), {once: true})
    })
    await app.queuePrompt(0, 1)
    return await ended
}"""
SHOW = """([kind, margin]) => {
    const node = app.graph.nodes.findLast(one => one.type === kind)
    const title = LiteGraph.NODE_TITLE_HEIGHT
    const [wide, tall] = node.computeSize()
    node.setSize([Math.max(wide, node.size[0]), Math.max(tall, node.size[1]) + (node.imgs ? 60 : 0)])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [margin - node.pos[0] + 400, 100 - node.pos[1] + title]
    app.canvas.deselectAll()
    app.canvas.setDirty(true, true)
    const area = app.canvas.canvas.getBoundingClientRect()
    const [width, height] = node.size
    return {x: area.x + 400, y: area.y + 84, width: width + 2 * margin, height: height + title + 32}
}"""


def inputs(base: Path) -> None:
    """What the graphs read: photos in ``rex``, the set ``cats``, and a picture of both."""
    subjects, actors = [], []
    for spec, left in zip(PAIRS[0], (0.06, 0.54), strict=True):
        shots = [photo(spec.character, random.Random(f"{spec.token}/{i}"), 320) for i in range(3)]
        photos = tuple(
            Photo(f"{i}.png", torch.from_numpy(shot.image.copy()).float() / 255) for i, shot in enumerate(shots)
        )
        masks = tuple(torch.from_numpy(shot.masks[0]).float() for shot in shots)
        subjects.append(Subject(spec.token, spec.class_noun, photos, masks))
        pose = random_pose(random.Random(spec.token))
        height = 0.4 / aspect(spec.character, pose)
        actors.append(Actor(spec.character, pose, (left, 0.9 - height, left + 0.4, 0.9)))
    folder = base / "input"
    write_subjects(SubjectSet(tuple(subjects)), folder / "cats")
    for name in ("olis", "hta"):
        random_lora(base / "models" / "loras" / f"{name}.safetensors")
    random_lora(base / "models" / "loras" / "other.safetensors", seed=2)
    random_residual(base / "models" / "residual_tokens" / "olis.safetensors", "cat")
    (folder / "rex").mkdir()
    for one in subjects[0].photos:
        Image.fromarray((one.image * 255).byte().numpy()).save(folder / "rex" / one.name)
    Image.fromarray(render(Scene("meadow", 1, tuple(actors)), 192).image).save(folder / "both.png")


def picture(page: Page, kind: str) -> bytes:
    """WebP of one node."""
    page.evaluate(BUILD, [[[one.kind, dict(one.values)] for one in GRAPHS[kind]], MARGIN])
    page.wait_for_timeout(300)
    if kind not in AT_REST:
        ended, detail = page.evaluate(RUN)
        assert ended == "execution_success", detail["exception_message"]
        page.wait_for_timeout(2000)
    clip = page.evaluate(SHOW, [kind, MARGIN])
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    kept = io.BytesIO()
    shot.save(kept, "WEBP", quality=80, method=6)
    return kept.getvalue()


def main(kinds: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as base, sync_playwright() as started:
        for server in serve(Path(base)):
            inputs(server.base)
            for name, value in QUIET.items():
                server.post(f"/api/settings/{name}", value)
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1600, "height": 1300})
            page.set_default_timeout(300_000)
            page.goto(server.url)
            page.wait_for_function(READY)
            for kind in kinds:
                file = ROOT / "web" / "docs" / f"{kind}.webp"
                file.write_bytes(picture(page, kind))
                print(f"{file.relative_to(ROOT)}: {file.stat().st_size // 1024} KB")
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1:] or list(GRAPHS))
