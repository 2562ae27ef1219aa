"""What the nodes share: conversions, names, folders, models, progress and Cancel; and the catalogue itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coloured import coloured
from comfyui import Comfy

from mudi_core.eyes.weights import MissingWeights
from mudi_core.subjects.storage import read_subjects, write_subjects
from mudi_core.types import Detections

NODES = {
    "MudiLoadPhotos": ("Load Photos (MuDI)", "MuDI/1 subjects"),
    "MudiSubjectFromPhotos": ("Subject from Photos (MuDI)", "MuDI/1 subjects"),
    "MudiDetectSubjects": ("Detect Subjects (MuDI)", "MuDI/1 subjects"),
    "MudiSamMask": ("SAM Mask (MuDI)", "MuDI/1 subjects"),
    "MudiSubject": ("Subject (MuDI)", "MuDI/1 subjects"),
    "MudiLoadSubjectSet": ("Load Subject Set (MuDI)", "MuDI/1 subjects"),
    "MudiSaveSubjectSet": ("Save Subject Set (MuDI)", "MuDI/1 subjects"),
    "MudiMakePriors": ("Make Priors (MuDI)", "MuDI/2 train"),
    "MudiSegMixDataset": ("Seg-Mix Dataset (MuDI)", "MuDI/2 train"),
    "MudiTrainLora": ("Train LoRA (MuDI)", "MuDI/2 train"),
    "MudiTrainSettings": ("Train Settings (MuDI)", "MuDI/2 train"),
    "MudiTrainPreview": ("Train Preview (MuDI)", "MuDI/2 train"),
    "MudiSubjectPrompt": ("Subject Prompt (MuDI)", "MuDI/3 generate"),
    "MudiLayout": ("Layout (MuDI)", "MuDI/3 generate"),
    "MudiAskLayout": ("Layout from Prompt (MuDI)", "MuDI/3 generate"),
    "MudiLayoutParts": ("Layout Parts (MuDI)", "MuDI/3 generate"),
    "MudiInitLatent": ("Init Latent (MuDI)", "MuDI/3 generate"),
    "MudiSamplerSettings": ("Sampler Settings (MuDI)", "MuDI/3 generate"),
    "MudiDetail": ("Detail Subjects (MuDI)", "MuDI/3 generate"),
    "MudiNoise": ("Noise (MuDI)", "MuDI/3 generate"),
    "MudiFuseLoras": ("Fuse LoRAs (MuDI)", "MuDI/2 train"),
    "MudiSubjectsFromLoras": ("Subjects from LoRAs (MuDI)", "MuDI/2 train"),
    "MudiBestPictures": ("Best Pictures (MuDI)", "MuDI/2 train"),
    "MudiLoraSubject": ("LoRA Subject (MuDI)", "MuDI/3 generate"),
    "MudiSeparateLoras": ("Separate LoRAs (MuDI)", "MuDI/3 generate"),
    "MudiRegionalPrompts": ("Regional Prompts (MuDI)", "MuDI/3 generate"),
    "MudiLayoutGuidance": ("Layout Guidance (MuDI)", "MuDI/3 generate"),
    "MudiTrainResidual": ("Train Residual Token (MuDI)", "MuDI/2 train"),
    "MudiResidualToken": ("Residual Token (MuDI)", "MuDI/3 generate"),
    "MudiReferenceAdapter": ("Reference Adapter (MuDI)", "MuDI/3 generate"),
    "MudiCompare": ("D&C Score (MuDI)", "MuDI/4 compare"),
    "MudiSeeds": ("Seeds (MuDI)", "MuDI/4 compare"),
    "MudiFindSeed": ("Find Best Seed (MuDI)", "MuDI/4 compare"),
    "MudiWatermark": ("Watermark (MuDI)", "MuDI/5 mark"),
    "MudiFindWatermark": ("Find Watermark (MuDI)", "MuDI/5 mark"),
    "MudiMiniCheckpoint": ("Mini Checkpoint (MuDI)", "MuDI/mini"),
    "MudiMiniPhotos": ("Mini Photos (MuDI)", "MuDI/mini"),
    "MudiMiniLora": ("Mini LoRA (MuDI)", "MuDI/mini"),
}
"""These are in people's workflows: a node keeps its id."""


@pytest.fixture
def host(comfy: Comfy) -> Any:
    return comfy.module("host")


@pytest.fixture
def convert(comfy: Comfy) -> Any:
    return comfy.module("convert")


def test_the_catalogue(comfy: Comfy) -> None:
    schemas = {node_id: node.GET_SCHEMA() for node_id, node in comfy.nodes.items()}
    assert {node_id: (schema.display_name, schema.category) for node_id, schema in schemas.items()} == NODES


@pytest.mark.parametrize("node_id", NODES)
def test_every_input_and_output_is_explained(comfy: Comfy, node_id: str) -> None:
    schema = comfy.node(node_id).GET_SCHEMA()
    assert schema.description
    for socket in [*schema.inputs, *schema.outputs]:
        assert socket.tooltip and socket.tooltip.endswith("."), socket.id
    for seed in (socket for socket in schema.inputs if socket.id == "seed"):
        assert seed.control_after_generate
    node = comfy.node(node_id)
    assert node.GET_NODE_INFO_V1()["output_tooltips"] == [socket.tooltip for socket in schema.outputs]


SEARCHED = {
    "multi subject": {"MudiSubjectFromPhotos", "MudiTrainLora"},
    "character": {
        *("MudiSubjectFromPhotos", "MudiSubject", "MudiTrainLora", "MudiLoraSubject", "MudiSubjectsFromLoras"),
    },
    "consistent character": {"MudiSubjectFromPhotos", "MudiTrainLora"},
    "two characters": {"MudiSubjectFromPhotos", "MudiTrainLora"},
    "dreambooth": {"MudiSubjectFromPhotos", "MudiTrainLora", "MudiMakePriors"},
    "identity": {"MudiSubjectFromPhotos", "MudiTrainLora", "MudiCompare"},
    "regional": {"MudiRegionalPrompts", "MudiLayout", "MudiLayoutParts", "MudiSeparateLoras"},
    "owlv2": {"MudiDetectSubjects"},
    "sam": {"MudiSamMask"},
    "dinov2": {"MudiCompare"},
}
"""What people look for -> the nodes that call themselves so, by name or alias."""


@pytest.mark.parametrize("words", SEARCHED)
def test_what_people_look_for_finds_the_right_nodes(comfy: Comfy, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Older ComfyUI has no search aliases, so it is asked what the nodes declare."""
    monkeypatch.setattr(comfy.module("host"), "schema", SimpleNamespace)
    schemas = {node_id: node.define_schema() for node_id, node in comfy.nodes.items()}
    found = {
        node_id
        for node_id, schema in schemas.items()
        for name in [schema.display_name, *schema.search_aliases]
        if f" {words} " in f" {name.lower()} "
    }
    assert found == SEARCHED[words]


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_is_found_by_other_words_where_comfyui_knows_them(
    comfy: Comfy, host: Any, node_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(host, "schema", lambda **settings: given.append(settings))
    comfy.node(node_id).define_schema()
    assert len(given[0]["search_aliases"]) >= 3


def test_the_first_five_nodes_of_an_artist_are_among_comfyuis_essentials(
    comfy: Comfy, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(host, "schema", lambda **settings: given.append(settings))
    for node_id in comfy.nodes:
        comfy.node(node_id).define_schema()
    found = {one["node_id"] for one in given if one.get("essentials_category") == "Characters"}
    assert found == {"MudiSubjectFromPhotos", "MudiTrainLora", "MudiLayout", "MudiInitLatent", "MudiCompare"}


def test_pictures_come_out_of_batches_and_lists(convert: Any) -> None:
    rgb, rgba, grey = torch.rand(2, 8, 6, 3), torch.rand(1, 4, 4, 4), torch.rand(5, 7, 1)
    assert [tuple(image.shape) for image in convert.pictures([rgb, rgba, grey])] == [
        (8, 6, 3), (8, 6, 3), (4, 4, 3), (5, 7, 3),
    ]  # fmt: skip
    assert torch.equal(convert.pictures(rgb)[1], rgb[1])
    assert torch.equal(convert.image_batch(convert.pictures(rgb)), rgb)
    with pytest.raises(convert.BadImages, match="1, 3, 5, 7"):
        convert.pictures(torch.rand(1, 3, 5, 7))
    with pytest.raises(convert.BadImages, match="4x4, 6x8"):
        convert.image_batch(convert.pictures([rgb, rgba]))


@pytest.mark.parametrize(("node_id", "kind"), [("MudiSamMask", "required"), ("MudiLayout", "optional")])
def test_boxes_are_a_socket_also_where_the_frontend_has_a_widget_for_one(comfy: Comfy, node_id: str, kind: str) -> None:
    name, about = comfy.node(node_id).GET_NODE_INFO_V1()["input"][kind]["boxes"]
    assert name == "BOUNDING_BOX" and about["forceInput"]


def test_masks_come_out_of_batches_and_lists(convert: Any) -> None:
    batch, single = torch.rand(2, 8, 6), torch.rand(4, 4)
    found = convert.masks([batch, single])
    assert [tuple(mask.shape) for mask in found] == [(8, 6), (8, 6), (4, 4)]
    assert torch.equal(found[1], batch[1])


def test_boxes_go_there_and_back(convert: Any) -> None:
    found = Detections(torch.tensor([[1.0, 2, 11, 22], [0, 0, 5, 5]]), torch.tensor([0.75, 0.5]), ("cat", "cat"))
    boxes = convert.boxes(found)
    assert boxes[0] == {"x": 1, "y": 2, "width": 10, "height": 20, "score": 0.75}
    assert torch.equal(convert.xyxy(boxes), found.xyxy)
    assert convert.xyxy([]).shape == (0, 4)


def test_a_schema_without_what_this_comfyui_does_not_know(comfy: Comfy, host: Any) -> None:
    schema = host.schema(node_id="X", display_name="X", from_the_future=True)
    assert schema.node_id == "X" and not hasattr(schema, "from_the_future")


def test_progress_moves_the_bar_and_draws_now_and_then(
    comfy: Comfy, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[int, int]] = []
    shown: list[Any] = []

    def hook(done: int, total: int, preview: Any, node_id: Any) -> None:
        moved.append((done, total))
        shown.append(preview)

    monkeypatch.setattr(comfy.core("comfy.utils"), "PROGRESS_BAR_HOOK", hook)
    monkeypatch.setattr(comfy.core("comfy.utils"), "PROGRESS_THROTTLE_MIN_INTERVAL", 0, raising=False)
    with host.progress(lambda: torch.zeros(8, 6, 3))("working") as update:
        for step in range(3):
            update(step + 1, 3, "words")
    assert moved == [(1, 3), (2, 3), (3, 3)]
    assert shown[0][1].size == (6, 8) and shown[1:] == [None, None]


def test_cancel_ends_the_stage_at_its_next_update(comfy: Comfy, host: Any) -> None:
    management = comfy.core("comfy.model_management")
    done = []
    with pytest.raises(management.InterruptProcessingException), host.progress()("working") as update:
        for step in range(3):
            done.append(step)
            management.interrupt_current_processing(step == 1)
            update(step + 1, 3)
    assert done == [0, 1]


@pytest.mark.parametrize("name", ["two_dogs", "zwei Hunde", "犬と猫", "v1.2"])
def test_a_dataset_lies_in_the_input_folder(comfy: Comfy, host: Any, name: str) -> None:
    assert host.input_folder(name, "dataset") == comfy.base / "input" / name


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "/etc", "C:", ".x", "x.", "nul", "NUL.txt", "a\0b"])
def test_a_dataset_lies_nowhere_else(comfy: Comfy, host: Any, name: str) -> None:
    with pytest.raises(comfy.module("host.folders").BadName, match="dataset"):
        host.input_folder(name, "dataset")


def test_datasets_are_folders_with_metadata_and_others_may_hold_photos(comfy: Comfy, host: Any) -> None:
    for name in ("b_set", "a_set", ".hidden"):
        (comfy.base / "input" / name).mkdir()
        (comfy.base / "input" / name / "metadata.jsonl").touch()
        (comfy.base / "input" / name / "1.png").touch()
    for name, file in (("b_photos", "1.JPG"), ("a_photos", "1.webp"), ("texts", "1.txt"), (".secret", "1.png")):
        (comfy.base / "input" / name).mkdir()
        (comfy.base / "input" / name / file).touch()
    here = {"a_set", "b_set", ".hidden", "a_photos", "b_photos", "texts", ".secret"}
    assert [name for name in host.datasets() if name in here] == ["a_set", "b_set"]
    assert [name for name in host.photo_folders() if name in here] == ["a_photos", "b_photos"]


def test_files_are_numbered_on(host: Any, tmp_path: Path) -> None:
    assert host.numbered(tmp_path, "cats", ".safetensors").name == "cats_00001.safetensors"
    for taken in ("cats_00007.safetensors", "cats_extra_00009.safetensors", "cats_00010.txt", "cats_x.safetensors"):
        (tmp_path / taken).touch()
    assert host.numbered(tmp_path, "cats", ".safetensors").name == "cats_00008.safetensors"


def test_a_loras_folder_that_cannot_be_made(
    comfy: Comfy, host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    folders = comfy.core("folder_paths")
    monkeypatch.setattr(folders, "get_folder_paths", lambda kind: [str(tmp_path / "file" / kind)])
    with pytest.raises(host.ReadOnly, match="loras cannot be written"):
        host.loras_folder()


def test_the_choices_of_models(comfy: Comfy, host: Any) -> None:
    sams, owls = comfy.base / "models" / "sams", comfy.base / "models" / "owlv2" / "my_owl"
    for folder in (sams, owls):
        folder.mkdir(parents=True)
    for file in (sams / "other.pth", sams / "sam_vit_b_01ec64.pth", sams / "readme.md"):
        file.touch()
    for name in ("config.json", "model.safetensors"):
        (owls / name).touch()
    assert host.eye_choices("segmenter") == ["sam-vit-b", "sam-vit-l", "sam-vit-h", "other.pth", host.MINI]
    assert host.eye_choices("detector") == ["owlv2-base", "my_owl", host.MINI]
    assert host.eye_choices("embedder") == ["dinov2-base", "dreamsim", "clip-vit-large", "sface", host.MINI]


def test_every_model_widget_starts_on_one_that_knows_photos(comfy: Comfy) -> None:
    seen = []
    for node in comfy.nodes.values():
        for one in node.GET_SCHEMA().inputs:
            if one.id in ("detector", "segmenter", "embedder"):
                assert one.default == one.options[0] != one.options[-1] == "embedded (drawn toys only)"
                assert "Mini Photos only" in one.tooltip
                checked = node.INPUT_TYPES()["required"][one.id][1]["options"]
                assert "mini (embedded)" in checked, "what older workflows have saved"
                assert "mini (embedded)" not in list(checked) and "another" not in checked
                seen.append(one.id)
    assert sorted(seen) == ["detector"] * 9 + ["embedder"] * 6 + ["segmenter"] * 5


def test_a_missing_model_names_the_folder_and_the_link(comfy: Comfy, host: Any) -> None:
    models = comfy.base / "models"
    with pytest.raises(MissingWeights, match="https://huggingface.co/google/owlv2") as told:
        host.detector("owlv2-base")
    assert str(models / "owlv2") in str(told.value)
    with pytest.raises(MissingWeights, match="sam_vit_h_4b8939.pth") as told:
        host.segmenter("sam-vit-h")
    assert f"into {models / 'sams'}." in str(told.value)
    with pytest.raises(MissingWeights, match="Unpack") as told:
        host.embedder("dreamsim")
    assert str(models / "dreamsim") in str(told.value)
    with pytest.raises(host.MissingModel, match="'gone.pth'"):
        host.segmenter("gone.pth")


def test_a_model_is_kept_for_the_next_node(host: Any, mini_weights: None) -> None:
    first = host.embedder(host.MINI)
    assert host.embedder(host.MINI) is first
    assert type(host.embedder("mini (embedded)")) is type(first)  # as older workflows call it
    assert first([torch.rand(20, 30, 3)]).shape[0] == 1


def test_a_judge_of_faces_needs_no_place_on_a_card(comfy: Comfy, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs in OpenCV, so ComfyUI has nothing to move there."""
    folder = comfy.base / "models" / "faces" / "sface"
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setattr(host.models, "_loaded", {})
    with pytest.raises(MissingWeights, match="face_detection_yunet_2023mar.onnx") as told:
        host.embedder("sface")
    assert f"into {folder}." in str(told.value)
    shutil.copytree(Path(__file__).parent / "faces", folder)
    monkeypatch.setattr(comfy.core("comfy.model_management"), "get_torch_device", lambda: torch.device("cuda"))
    assert host.embedder("sface")([torch.rand(20, 30, 3)]).tolist() == [[0.0] * 128]


def refusing(real: Any, at: str) -> Any:
    def asked(path: Any = ".", *more: Any, **named: Any) -> Any:
        if at in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **named)

    return asked


@pytest.mark.parametrize(
    "where", ["input/lost+found", "input", "owlv2", "sams", "dinov2/lost+found", "dinov2", "loras"]
)
def test_no_listing_of_a_widget_raises(comfy: Comfy, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk of its own has a lost+found; one folder that cannot be read took all 22 nodes away."""
    import os

    for folder in ("input/lost+found", "models/dinov2/lost+found", "models/loras/lost+found"):
        (comfy.base / folder).mkdir(parents=True, exist_ok=True)
    for name in ("listdir", "scandir", "stat"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), where))
    for node in comfy.nodes.values():
        assert node.define_schema().node_id == node.GET_SCHEMA().node_id


def test_odd_entries_are_left_out_of_listings(comfy: Comfy, caplog: pytest.LogCaptureFixture) -> None:
    import os

    host, root = comfy.module("host"), comfy.base / "input"
    (root / "circle").symlink_to(root / "circle")
    (root / "nowhere").symlink_to(root / "gone")
    (root / "good").mkdir()
    (root / "good" / "one.heic").write_bytes(b"")
    for name in ("photo.heic", "photo.dng"):
        (root / name[6:]).mkdir()
        (root / name[6:] / name).write_bytes(b"")
    (root / "bytes").mkdir()
    with open(os.fsencode(root / "bytes") + b"/caf\xe9.png", "wb"):
        pass
    (root / "masks_alone").mkdir()
    (root / "masks_alone" / "mask_one.png").write_bytes(b"")
    odd = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(odd)
    try:
        found = host.photo_folders()
        assert {"good", "heic", "dng", "bytes"} <= set(found) and not {"circle", "nowhere", "masks_alone"} & set(found)
        assert all(name.isprintable() and name.encode() for name in found)
        host.datasets()
        host.photo_folders()
        assert caplog.text.count("caf\\udce9") == 1
    finally:
        os.rmdir(odd)
        (root / "circle").unlink()
        (root / "nowhere").unlink()


def test_a_listing_takes_up_what_a_killed_writer_left(comfy: Comfy, tmp_path: Path) -> None:
    root = comfy.base / "input"
    complete, begun = root / "complete", root / "begun"
    for folder in (complete, begun):
        folder.mkdir()
        (folder / ".mudi-lock").touch()
    write_subjects(coloured("red"), tmp_path / "set").rename(complete / ".mudi-complete")
    (begun / ".mudi-stage-01234567").mkdir()
    (begun / ".mudi-stage-01234567" / "red_0.png").touch()
    listed = comfy.module("host").datasets()
    assert "complete" in listed and "begun" not in listed and not begun.exists()
    assert read_subjects(complete).tokens == ("red",)
    assert not [path for path in complete.iterdir() if path.name.startswith(".")]
    shutil.rmtree(complete)


def test_the_line_of_a_stage_that_ended_in_an_error_does_not_count_on(
    comfy: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, said = comfy.module("host.page"), []
    monkeypatch.setattr(page, "say", said.append)
    with pytest.raises(ValueError), page.progress()("encoding") as update:
        update(3, 8)
        raise ValueError
    assert said == ["encoding: 3 / 8", "encoding: stopped at 3 / 8"]
    with page.progress()("encoding") as update:
        update(8, 8)
    assert said[-1] == "encoding: 8 / 8"
