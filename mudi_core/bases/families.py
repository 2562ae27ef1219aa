"""The usual settings for each kind of base model, so that nobody has to set them by hand.

A new family is one entry here, plus the module that reads its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

EMBEDDED = "mini"
"""The name that a user types for the base model that comes with the package."""
EMBEDDED_FLUX = "mini-flux"
"""The same for the flow transformer that comes with it."""
BUILT_IN = (EMBEDDED, EMBEDDED_FLUX)
"""The names of all base models in the package; every other base model is a file or a folder."""
OTHER = "other"
"""The entry of kinds that no entry is known for."""


@dataclass(frozen=True)
class Sampling:
    """How pictures of a kind of base model are usually sampled, in the words of ComfyUI's KSampler."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    source: str = "ComfyUI's template"
    side: int = 1024
    """Side in pixels of a square picture."""

    def preview(self) -> Sampling:
        """Return the same for a quick look: at most 25 steps."""
        return replace(self, steps=min(self.steps, 25))


@dataclass(frozen=True)
class Family:
    """A kind of base model."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of a training that differ from the defaults of `TrainConfig`."""
    residual: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training of a residual token that differ from `jobs.residual.USUAL`."""
    pictures: Mapping[str, Any] = field(default_factory=lambda: {"batch_size": 1})
    """Settings of pictures that differ from the defaults of `GenerateConfig`."""
    layout: Mapping[str, Any] = field(default_factory=dict)
    """Settings of compositions and starts that differ from the defaults of `LayoutConfig`."""
    shift: float | None = None
    """How far the noise levels of a flow's training are moved towards noise (SD 3, equation 23); None: as the model's
    own sampling does. A level is ``sigmoid(N(0, 1))`` before."""
    guidance: float | None = None
    """The distilled guidance that the network reads in training; None: what it reads when nobody sets it."""
    remark: str = ""
    """A sentence to tell whoever trains this kind."""
    eye: str | None = None
    """The detector, segmenter and embedder for its pictures; None: the first of each role in the table of eyes."""
    threshold: float = 0.25
    """Least confidence of the detector in pictures of this model, 0..1."""
    photo_threshold: float = 0.25
    """The same in photos, which show one subject each."""
    cut_out: bool = False
    """Compare pictures with the cut-out subjects instead of the whole photos."""
    prior_prompt: str | None = None
    """The prompt for pictures of other members of a class, such as "a photo of {}"; None: the official code's."""
    file_names: Literal["diffusers", "sd", "sgm", "flux"] = "diffusers"
    """The names of the layers in LoRA files, as kohya's scripts write them: `lora.names.Style`. ComfyUI, A1111, Forge
    and diffusers read SDXL's in both styles; kohya's own scripts, and LyCORIS in them, only Stability's."""
    bf16: bool = True
    """Whether it computes in bfloat16 on cards that can."""
    captions: str = "sentence"
    """How its texts are usually written: a style of Seg-Mix's captions."""
    scenes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Where its pictures can play, as prompts say it: to learn from, and to check with; None: anywhere."""
    sampling: Sampling = Sampling(25, 4.0, "euler", "simple", "general")
    """For finished pictures."""
    diffusers: Literal["kohya", "own", "none"] = "kohya"
    """Which LoRAs of this kind diffusers reads: those with kohya's names, only those in a form of its own, or none."""


def _flow(*modules: str, **settings: Any) -> dict[str, Any]:
    """Settings of a flow transformer's training: without DCO (the official FLUX code), 512 px, which fit on a card.

    ``modules``: attention and MLP of its picture's stream; not modulation, embedders or the text's own parts.
    """
    return {
        "resolution": 512, "steps": 2000, "dco_beta": 0.0, "batch_size": 1, "accumulation": 4,
        "target_modules": modules, **settings,
    }  # fmt: skip


_UNET = ("to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_FLUX = ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "linear1", "linear2")
_LUMINA = tuple(f"layers.*.{part}" for part in ("attention.qkv", "attention.out", "feed_forward.w[123]"))
_COSMOS = (
    "!llm_adapter.*",
    *(f"{part}.{end}_proj" for part in ("self_attn", "cross_attn") for end in ("q", "k", "v", "output")),
    "mlp.layer[12]",
)
_DISTILLED = (
    "{} is distilled to few steps, which training undoes: train on {} where you can, and use the LoRA on either."
)

_SDXL = Sampling(50, 5.0, "euler", "ddim_uniform", "diffusers' pipeline")
_SD = Sampling(20, 8.0, "euler", "normal", side=512)
_FLUX_SAMPLING = Sampling(20, 1.0, "euler", "simple")

FAMILIES: dict[str, Family] = {
    "sdxl_base_v1-0": Family({"resolution": 1024}, file_names="sgm", sampling=_SDXL),
    "sd_v1": Family({"resolution": 512}, file_names="sd", sampling=_SD),
    "sd_v2": Family({"resolution": 512}, file_names="sd", sampling=replace(_SD, source="as SD 1.5")),
    "sd_v2_v": Family({"resolution": 768}, file_names="sd", sampling=replace(_SD, source="as SD 1.5", side=768)),
    # NoobAI and the like. DCO's beta is made for noise; velocities are weighed so that they count as their noise.
    "sdxl_base_v1-0_v": Family(
        {"resolution": 1024}, captions="tags", file_names="sgm",
        sampling=Sampling(28, 5.0, "euler", "normal", "card of NoobAI-XL 1.0; sampler general"),
    ),
    # The official MuDI code for FLUX: 3e-4, rank 32, 2010 steps of 1 x 4 at 512 px, guidance 1, no DCO; figures of 0.9
    # to 1 at least 64 of 1024 px from the border, on canvases of which a quarter is black. Shift: sd-scripts.
    "flux1": Family(
        _flow(*_FLUX, learning_rate=3e-4, black_canvas=0.25),
        layout={"scale": (0.9, 1.0), "margin": (64 / 1024, 256 / 1024)}, shift=3.1582, guidance=1.0,
        captions="FLUX (official)", sampling=_FLUX_SAMPLING,
    ),
    "flux1-schnell": Family(
        _flow(*_FLUX, learning_rate=3e-4, black_canvas=0.25),
        layout={"scale": (0.9, 1.0), "margin": (64 / 1024, 256 / 1024)}, shift=3.1582, captions="FLUX (official)",
        remark=_DISTILLED.format("FLUX.1 schnell", "FLUX.1 dev"), sampling=Sampling(4, 1.0, "euler", "simple"),
    ),
    "chroma": Family(  # musubi: sigmoid, guidance 0
        _flow(*_FLUX), shift=1.0, guidance=0.0, sampling=Sampling(26, 3.5, "euler", "beta"),
    ),
    "flux2": Family(_flow(*_FLUX), guidance=1.0, sampling=_FLUX_SAMPLING),
    "z_image": Family(  # musubi: shift 2, 1e-4, rank 32
        _flow(*_LUMINA), shift=2.0, remark=_DISTILLED.format("Z-Image Turbo", "Z-Image itself"),
        sampling=Sampling(25, 4.0, "res_multistep", "simple"),
    ),
    "lumina2": Family(_flow(*_LUMINA), sampling=Sampling(30, 4.0, "res_multistep", "simple"), diffusers="none"),
    "qwen_image": Family(  # musubi: shift 2.2, 5e-5
        _flow("to_q", "to_k", "to_v", "to_out.0", "img_mlp.net.0.proj", "img_mlp.net.2", learning_rate=5e-5), shift=2.2,
        sampling=Sampling(20, 2.5, "euler", "simple", side=1328),
    ),
    "krea2": Family(  # shift 2.5, 1e-4 to 3e-4, rank 32, 1000 to 3000 steps at 512 px
        _flow("!txtfusion.*", "attn.w[qkvo]", "mlp.gate", "mlp.up", "mlp.down"), shift=2.5,
        remark=_DISTILLED.format("Krea 2 Turbo", "Krea 2 Raw"),
        sampling=Sampling(28, 4.5, "euler", "simple", "diffusers' pipeline"), diffusers="own",
    ),
    "anima": Family(  # sigmoid
        _flow(*_COSMOS, learning_rate=3e-5), shift=1.0, captions="tags", sampling=Sampling(30, 4.0, "euler", "simple"),
        diffusers="own",
    ),
    "cosmos_predict2": Family(
        _flow(*_COSMOS), sampling=Sampling(35, 7.0, "euler", "simple", "diffusers' pipeline"), diffusers="none",
    ),
    "sd3": Family(
        _flow("x_block.attn*.qkv", "x_block.attn*.proj", "x_block.mlp.fc[12]"),
        sampling=Sampling(20, 4.0, "euler", "sgm_uniform"), diffusers="none",
    ),
    "aura_flow": Family(
        _flow("attn.w2[qkvo]", "mlpX.c_*", "single_layers.*.attn.w1[qkvo]", "single_layers.*.mlp.c_*"),
        sampling=Sampling(50, 3.5, "euler", "simple", "diffusers' pipeline"), diffusers="none",
    ),
    "ernie": Family(
        _flow("self_attention.to_[qkv]", "self_attention.to_out.0", "mlp.*"),
        sampling=Sampling(20, 4.0, "euler", "simple"), diffusers="none",
    ),
    OTHER: Family(
        _flow(
            "*_blocks.*", "*blocks.*", "*layers.*", "!*mod*", "!*adaLN*", "!*embed*", "!*adapter*", "!*refiner*",
            "!*guidance*", "!*txt*", "!*text*", "!*context*", "!*experts.*",
        ),
        remark="No usual settings are known for this kind of model, so it is trained with general ones.",
        diffusers="none",
    ),
    EMBEDDED_FLUX: Family(
        _flow(
            *_FLUX, "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",  # diffusers' names of the same
            "single_transformer_blocks.*.proj_mlp", "single_transformer_blocks.*.proj_out",
            resolution=192, steps=300, batch_size=8, accumulation=1, rank=16, learning_rate=1e-3,
        ),
        pictures={"steps": 20, "guidance": 5.0, "gamma": 2.0, "batch_size": 8}, layout={"max_overlap": 0.2}, shift=1.0,
        eye=EMBEDDED, threshold=0.05, photo_threshold=0.03, cut_out=True, prior_prompt="a photo of {}", bf16=False,
        file_names="flux", sampling=Sampling(20, 5.0, "euler", "simple", "as the mini model", 192),
    ),
    EMBEDDED: Family(
        training={
            "resolution": 192,
            "steps": 300,
            "batch_size": 8,
            "rank": 16,
            "learning_rate": 3e-3,
            "lr_schedule": "cosine",
            "lr_warmup": 20,
            "target_modules": _UNET,
            "token_learning_rate": 2e-2,  # the best of 1e-3, 5e-3, 2e-2 and 5e-2
            "dco_beta": 0.0,  # a model this small needs no regularization
        },
        residual={"steps": 200, "learning_rate": 1e-3, "batch_size": 4},
        pictures={"steps": 20, "guidance": 5.0, "gamma": 2.0, "batch_size": 8},
        layout={"max_overlap": 0.2},
        scenes=(
            ("on the beach", "in the meadow", "in the desert", "in the snow", "in a room"),
            ("at night", "simple background"),
        ),
        eye=EMBEDDED,
        threshold=0.05,  # low, because the detector is unsure about the pictures of a small model
        photo_threshold=0.03,
        cut_out=True,
        prior_prompt="a photo of {}",
        bf16=False,
        sampling=Sampling(20, 5.0, "euler", "ddim_uniform", "the demo", 192),
    ),
}  # fmt: skip
"""Families by kohya's name of the architecture, or by the name of a base model in the package. The settings of the
embedded model were chosen only on development pairs (`toy.world.DEV_PAIRS`); those of flow models are what the official
code and the programs that train each use, and were not tried here."""


def usual(base: str | Path, kohya: str = "sdxl_base_v1-0") -> Family:
    """Return the usual settings for a base model.

    A base model with an entry of its own has that entry, any other the entry of its architecture, by kohya's name. SD
    1.x that predicts v has the settings of SD 1.x; kinds without an entry have those of `OTHER`.
    """
    return FAMILIES.get(str(base)) or FAMILIES.get(kohya) or FAMILIES.get(kohya.removesuffix("_v"), FAMILIES[OTHER])
