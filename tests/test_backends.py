"""Laws of the detectors, segmenters and embedders, on the libraries' own classes at toy size and once at full size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import BitImageProcessor

from mudi_core import eyes as backends
from mudi_core.eyes import EYES, dinov2, dreamsim, owlv2, sam
from mudi_core.eyes.pixels import CLIP, IMAGENET, middle, stretched, to_square
from mudi_core.eyes.weights import MissingWeights
from mudi_core.tensor_file import BadWeights
from mudi_core.types import MudiError
from mudi_core.vocabulary import tokenizer

CPU = torch.device("cpu")
QUERIES = ("dog", "red robot")


def picture(width: int, height: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def owlv2_model():
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    small = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Owlv2ForObjectDetection(
        Owlv2Config(
            text_config={"hidden_size": 16, **small},
            vision_config={"hidden_size": 32, "image_size": 64, "patch_size": 16, **small},
            projection_dim=16,
        )
    )
    torch.manual_seed(0)
    for parameter in model.parameters():  # the library's own start saturates every box and score of so small a model
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def detector(owlv2_model):
    return owlv2.Owlv2Detector(owlv2_model, tokenizer("!", 16), CPU, nms=None)


def as_model_output(xyxy, width, height):
    """Pixel boxes as the model would give them: centre and size in fractions of the padded square."""
    boxes = torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4)
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1) / max(width, height)


@pytest.mark.parametrize("width, height", [(64, 64), (100, 40), (31, 200), (4000, 3000)])
def test_a_predicted_box_maps_back_to_the_pixels_it_came_from(width, height):
    box = [0.25 * width, 0.5 * height, 0.75 * width, height]
    found = owlv2.read_boxes(
        torch.zeros(1, 1), as_model_output(box, width, height), ("x",), 0.3, (width, height), nms=None
    )
    torch.testing.assert_close(found.xyxy, torch.tensor([box]), atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("width, height", [(100, 40), (40, 100), (64, 64)])
def test_boxes_inside_the_picture_are_those_of_transformers(owlv2_model, detector, width, height):
    processor = pytest.importorskip("transformers").Owlv2ImageProcessor()
    whole = SimpleNamespace(logits=torch.zeros(1, 1, 1), pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]))
    (square,) = processor.post_process_object_detection(whole, threshold=0.0, target_sizes=[(height, width)])
    if square["boxes"][0, 2] != square["boxes"][0, 3]:
        pytest.skip("this transformers stretches the boxes of pictures that are not square (its issue 27205)")
    image = picture(width, height)
    pixels = owlv2.prepare(image, 64)
    text = detector.tokenizer(list(QUERIES), padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = owlv2_model(pixel_values=pixels, **text)
    (theirs,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])
    order = theirs["scores"].argsort(descending=True, stable=True)
    limit = torch.tensor([width, height, width, height], dtype=torch.float32)
    clipped = torch.minimum(theirs["boxes"][order].clamp(min=0), limit)
    inside = (clipped[:, 2:] - clipped[:, :2]).min(dim=1).values >= 1

    ours = detector(image, QUERIES, 0.0)

    torch.testing.assert_close(ours.xyxy, clipped[inside])
    torch.testing.assert_close(ours.confidence, theirs["scores"][order][inside])
    assert list(ours.labels) == [QUERIES[i] for i in theirs["labels"][order][inside].tolist()]


def test_preparing_fills_the_square_from_the_top_left_and_the_rest_with_grey():
    image = torch.zeros(50, 100, 3)
    image[20:30, 60:80] = 1.0
    prepared = owlv2.prepare(image, 64)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in CLIP)
    values = prepared[0] * std + mean
    assert prepared.shape == (1, 3, 64, 64)
    torch.testing.assert_close(values[:, 32:], torch.full((3, 32, 64), 0.5))
    assert values[:, 15, 45].min() > 0.9  # the middle of the white patch, at 0.64 times its place
    assert values[:, 5, 5].max() < 0.1


def test_preparing_matches_transformers_on_a_square_picture():
    processor = pytest.importorskip("transformers").Owlv2ImageProcessor(size={"height": 64, "width": 64})
    image = functional.interpolate(picture(8, 8).permute(2, 0, 1)[None], 128, mode="bicubic").clamp(0, 1)
    theirs = processor(images=(image[0] * 255).round().to(torch.uint8), return_tensors="pt")["pixel_values"]
    ours = owlv2.prepare(image[0].permute(1, 2, 0), 64)
    assert (ours - theirs).abs().max() < 0.1  # another antialiasing filter, in units of a standard deviation
    assert (ours - theirs).abs().mean() < 0.02


@pytest.mark.parametrize("width, height", [(64, 64), (90, 20), (20, 90)])
def test_detections_are_sorted_inside_the_picture_and_above_the_threshold(detector, width, height):
    everything = detector(picture(width, height), QUERIES, 0.0)
    assert len(everything) > 1
    middle = float(everything.confidence.median())
    found = detector(picture(width, height), QUERIES, middle)
    assert found.confidence.tolist() == [c for c in everything.confidence.tolist() if c >= middle]
    assert everything.confidence.tolist() == sorted(everything.confidence.tolist(), reverse=True)
    assert everything.xyxy.min() >= 0 and (everything.xyxy.max(dim=0).values[2:] <= torch.tensor([width, height])).all()
    assert (everything.xyxy[:, 2:] > everything.xyxy[:, :2]).all()


def test_nothing_above_the_threshold_still_tells_the_best_confidence(detector):
    nothing = detector(picture(64, 48), QUERIES, 1.0)
    best = detector(picture(64, 48), QUERIES, 0.0)
    assert len(nothing) == 0 and nothing.xyxy.shape == (0, 4)
    assert nothing.best_confidence == pytest.approx(float(best.confidence[0]))


def test_the_order_of_the_queries_does_not_matter(detector):
    one, other = (detector(picture(64, 64), queries, 0.0) for queries in (QUERIES, QUERIES[::-1]))
    torch.testing.assert_close(one.xyxy, other.xyxy)
    torch.testing.assert_close(one.confidence, other.confidence)
    assert one.labels == other.labels


def test_a_box_in_the_padding_is_none():
    output = as_model_output([[10, 10, 30, 30], [10, 70, 30, 90]], 100, 50)
    found = owlv2.read_boxes(torch.tensor([[0.0], [5.0]]), output, ("x",), 0.0, (100, 50), nms=None)
    assert len(found) == 1 and found.best_confidence == pytest.approx(0.5)


@pytest.mark.parametrize("nms, kept", [(None, [0, 1, 2]), (0.5, [1, 2]), (0.9, [0, 1, 2])])
def test_suppression_keeps_the_more_confident_of_two_boxes_on_one_thing(nms, kept):
    boxes = [[0, 0, 40, 40], [0, 0, 40, 50], [60, 0, 90, 40]]
    found = owlv2.read_boxes(
        torch.tensor([[1.0, -9], [-9, 2.0], [0.0, -9]]), as_model_output(boxes, 100, 100), QUERIES, 0, (100, 100), nms
    )
    assert sorted(found.xyxy.round().int().tolist()) == sorted(boxes[i] for i in kept)
    assert found.labels[0] == "red robot"


def test_a_query_longer_than_the_model_reads_is_warned_of(detector, caplog):
    detector(picture(32, 32), ["very " * 30 + "long dog"], 0.9)
    assert "first words" in caplog.text


def test_owlv2_is_the_same_after_a_trip_to_disk(owlv2_model, detector, tmp_path):
    owlv2_model.save_pretrained(tmp_path)
    loaded = owlv2.load(tmp_path, CPU)
    loaded.nms = None
    one, other = (d(picture(50, 70), QUERIES, 0.0) for d in (detector, loaded))
    torch.testing.assert_close(one.xyxy, other.xyxy)
    torch.testing.assert_close(one.confidence, other.confidence)


def tiny_sam(embed_dim: int = 16):
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=1, embed_dim=embed_dim, img_size=64, num_heads=2, patch_size=16, out_chans=16, qkv_bias=True
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=16, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=4
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=16, num_heads=2),
            transformer_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


BOXES = torch.tensor([[5.0, 5, 30, 25], [10, 3, 40, 30], [0, 0, 20, 10]])


@pytest.mark.parametrize("width, height", [(64, 64), (100, 40), (30, 130)])
def test_a_mask_per_box_in_the_size_of_the_picture(width, height):
    segmenter = sam.SamSegmenter(tiny_sam(), CPU)
    masks = segmenter(picture(width, height), BOXES)
    assert masks.shape == (3, height, width) and masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert segmenter(picture(width, height), torch.zeros(0, 4)).shape == (0, height, width)


def test_a_mask_depends_on_its_own_box_only():
    segmenter = sam.SamSegmenter(tiny_sam(), CPU)
    together = segmenter(picture(64, 48), BOXES)
    alone = torch.cat([segmenter(picture(64, 48), box[None]) for box in BOXES])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


@pytest.fixture
def sam_file(tmp_path, monkeypatch):
    """A checkpoint whose width is vit_b's, and a vit_b that is otherwise as small as possible."""
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: tiny_sam(768))
    path = tmp_path / "sam_vit_b.pth"
    torch.save(tiny_sam(768).state_dict(), path)
    return path


def test_sam_is_the_same_from_pth_and_safetensors(sam_file):
    from safetensors.torch import save_file

    other = sam_file.with_suffix(".safetensors")
    save_file({key: value.clone() for key, value in tiny_sam(768).state_dict().items()}, other)
    one, two = (sam.load(path, CPU)(picture(64, 40), BOXES) for path in (sam_file, other))
    assert torch.equal(one, two)
    assert torch.equal(one, sam.SamSegmenter(tiny_sam(768), CPU)(picture(64, 40), BOXES))


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_encoder.patch_embed.proj.weight": Attack()}, tmp_path / "sam.pth")
    with pytest.raises(BadWeights, match="sam.pth"):
        sam.load(tmp_path / "sam.pth", CPU)
    assert not (tmp_path / "attacked").exists()


def spoil(kind: str, path: Path) -> Path:
    if kind == "missing":
        return path.with_name("elsewhere.pth")
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:2000])
    if kind == "text":
        path.write_text("<html>404</html>")
    if kind == "other model":
        torch.save({"layer.weight": torch.zeros(3)}, path)
    if kind == "tensors missing":
        state = torch.load(path, weights_only=True)
        state.pop("mask_decoder.iou_token.weight")
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["missing", "cut off", "text", "other model", "tensors missing"])
def test_a_bad_sam_file_is_named(sam_file, kind):
    path = spoil(kind, sam_file)
    with pytest.raises(BadWeights, match=path.name):
        sam.load(path, CPU)


def dinov2_model(**changes):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    return Dinov2Model(Dinov2Config(**(size | changes)))


@pytest.fixture(scope="module")
def embedder():
    return dinov2.Dinov2Embedder(dinov2_model(), CPU, side=28)


def test_embeddings_have_unit_length_and_do_not_depend_on_company(embedder):
    images = [picture(*size, seed=seed) for seed, size in enumerate([(30, 50), (28, 28), (60, 20)] * 6)]
    together = embedder(images)
    assert together.shape == (18, 24)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(18))
    torch.testing.assert_close(together, torch.cat([embedder([image]) for image in images]), atol=1e-5, rtol=1e-4)
    assert embedder([]).shape == (0, 24)


def test_an_embedding_is_the_mean_of_all_tokens(embedder):
    image = picture(28, 28)
    mean, std = map(torch.tensor, IMAGENET)
    with torch.no_grad():
        pixels = ((image - mean) / std).permute(2, 0, 1)[None]
        tokens = embedder.model(pixel_values=pixels).last_hidden_state
    assert tokens.shape[1] == 5  # one for the picture, four patches
    torch.testing.assert_close(embedder([image]), functional.normalize(tokens.mean(dim=1), dim=1))


def test_a_picture_stands_in_the_middle_of_white(embedder):
    wide = picture(28, 12)
    square = torch.ones(28, 28, 3)
    square[8:20] = wide
    torch.testing.assert_close(embedder([wide]), embedder([square]))


def test_a_side_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="14"):
        dinov2.Dinov2Embedder(dinov2_model(), CPU, side=30)


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (100, 100), (256, 90)])
def test_the_official_way_cuts_the_middle_as_transformers_does(size):
    width, height = size
    image = functional.interpolate(torch.rand(1, 3, 12, 12), (height, width), mode="bicubic")[0].clamp(0, 1)
    image = (image.permute(1, 2, 0) * 255).round() / 255
    processor = BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3)
    theirs = processor((image * 255).byte().numpy(), do_normalize=False, return_tensors="pt")["pixel_values"]
    ours = middle(image, 224)
    assert ours.shape == theirs.shape == (1, 3, 224, 224)
    assert (ours - theirs).abs().max() < 3 / 255  # theirs is rounded to bytes in between


def test_official_models_see_pictures_as_the_official_code_shows_them(tmp_path, monkeypatch):
    dinov2_model().save_pretrained(tmp_path)
    wide = torch.rand(40, 90, 3)
    plain, official = dinov2.load(tmp_path, CPU, side=28), dinov2.load_official(tmp_path, CPU)
    assert torch.allclose(official.framed(wide, 28), middle(wide, 28)) and official.side == 224
    assert torch.equal(plain.framed(wide, 28), to_square(wide, 28))
    assert stretched(wide, 28).shape == (1, 3, 28, 28)
    assert torch.allclose(stretched(torch.full((9, 4, 3), 0.3), 28), torch.full((1, 3, 28, 28), 0.3))
    assert {(name, eye.role) for name, eye in EYES if eye.official} == {
        ("owlv2-official", "detector"), ("dinov2-official", "embedder"), ("dreamsim-official", "embedder"),
        ("clip-b32", "embedder"), ("clip-b32", "text scorer"), ("clip-b32-2.5", "text scorer"),
        ("dino-s16", "embedder"),
    }  # fmt: skip


def test_dinov2_is_the_same_after_a_trip_to_disk(embedder, tmp_path):
    dinov2_model().save_pretrained(tmp_path)
    assert torch.equal(dinov2.load(tmp_path, CPU, side=28)([picture(9, 9)]), embedder([picture(9, 9)]))


@pytest.mark.parametrize(
    "load, damage",
    [(owlv2.load, "no folder"), (owlv2.load, "bad config")]
    + [(dinov2.load, damage) for damage in ("no folder", "no weights", "cut off", "other model", "bad config")],
)
def test_a_bad_model_folder_is_named(tmp_path, load, damage):
    folder = tmp_path / "model"
    if damage != "no folder":
        from transformers import BertConfig, BertModel

        config = BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8
        )
        (BertModel(config) if damage == "other model" else dinov2_model()).save_pretrained(folder)
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    if damage == "cut off":
        (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    if damage == "bad config":
        (folder / "config.json").write_text("{")
    with pytest.raises(BadWeights, match="model"):
        load(folder, CPU)


@pytest.fixture
def dreamsim_folder(tmp_path):
    for name in dreamsim.CONTENT:
        (tmp_path / name).touch()
    return tmp_path


def test_dreamsim_embeds_with_the_package_where_there_is_one(dreamsim_folder, monkeypatch):
    asked = {}

    def fake(**settings):
        asked.update(settings)
        return SimpleNamespace(embed=lambda batch: batch.mean(dim=(2, 3)) * 7), None

    module = ModuleType("dreamsim")
    module.dreamsim = fake
    monkeypatch.setitem(sys.modules, "dreamsim", module)
    embed = dreamsim.load(dreamsim_folder, CPU)
    vectors = embed([picture(300, 200, seed) for seed in range(17)])
    assert vectors.shape == (17, 3)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(17))
    assert asked["cache_dir"] == str(dreamsim_folder) and asked["device"] == "cpu"


def test_dreamsim_says_what_is_missing(dreamsim_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(dreamsim.MissingPackage, match="pip install dreamsim"):
        dreamsim.load(dreamsim_folder, CPU)
    (dreamsim_folder / "dino_vitb16_pretrain.pth").unlink()
    with pytest.raises(MissingWeights, match="dino_vitb16_pretrain.pth.*https://"):
        dreamsim.load(dreamsim_folder, CPU)


LOADERS = [backends.load_detector, backends.load_segmenter, backends.load_embedder]


@pytest.mark.parametrize("load", LOADERS)
def test_an_unknown_name_is_answered_with_the_known_ones(load):
    with pytest.raises(backends.UnknownBackend, match="'yolo'.*mini"):
        load("yolo", None, CPU)


@pytest.mark.parametrize(
    "load, name",
    [
        (LOADERS[0], "owlv2"),
        (LOADERS[1], "sam-vit-h"),
        (LOADERS[2], "dinov2"),
        (LOADERS[2], "dreamsim"),
        (LOADERS[2], "sface"),
    ],
)
def test_missing_weights_name_the_folder_and_the_link(tmp_path, monkeypatch, load, name):
    monkeypatch.setenv("MUDI_MODELS", str(tmp_path))
    with pytest.raises(MissingWeights, match="https://") as error:
        load(name, None, CPU)
    assert str(tmp_path) in str(error.value) and isinstance(error.value, MudiError)


def test_a_backend_is_loaded_by_name_from_the_default_folder(tmp_path, monkeypatch, owlv2_model):
    monkeypatch.setenv("MUDI_MODELS", str(tmp_path))
    owlv2_model.save_pretrained(tmp_path / "owlv2-base-patch16-ensemble")
    assert isinstance(backends.load_detector("owlv2", None, CPU), owlv2.Owlv2Detector)


def test_the_table_imports_no_model_library():
    code = (
        "import sys, mudi_core.eyes, mudi_core.subjects.find, mudi_core.subjects.storage;"
        "print([m for m in ('transformers', 'segment_anything', 'dreamsim', 'cv2', 'comfy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.full_size
def test_the_real_architectures_go_through_the_same_loaders(tmp_path):
    """OWLv2-base, SAM vit_b and DINOv2-base with random weights, in the files that their makers publish."""
    from segment_anything import sam_model_registry
    from transformers import Dinov2Config, Dinov2Model, Owlv2Config, Owlv2ForObjectDetection

    image = picture(640, 427)
    config = Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}, projection_dim=512)
    Owlv2ForObjectDetection(config).save_pretrained(tmp_path / "owlv2")
    found = backends.load_detector("owlv2", tmp_path / "owlv2", CPU)(image, ["dog"], 0.0)
    assert len(found) > 0 and found.xyxy.max() <= 640

    torch.save(sam_model_registry["vit_b"]().state_dict(), tmp_path / "sam_vit_b_01ec64.pth")
    segmenter = backends.load_segmenter("sam-vit-b", tmp_path / "sam_vit_b_01ec64.pth", CPU)
    assert segmenter(image, torch.tensor([[10.0, 10, 600, 400]])).shape == (1, 427, 640)

    Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(tmp_path / "dinov2")
    vectors = backends.load_embedder("dinov2", tmp_path / "dinov2", CPU)([image, picture(100, 300)])
    assert vectors.shape == (2, 768)
