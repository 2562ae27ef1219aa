"""The detector, segmenter and embedder of the embedded family: small OWLv2, SAM and DINOv2 in the real classes.

Every `build_*` makes a model with fresh weights (training starts there), every `load_*` a trained model; the rest of
the library uses `load_detector`, `load_segmenter` and `load_embedder`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..bases import embedded as family
from ..types import VerdictLimits
from ..vocabulary import tokenizer

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from transformers import Dinov2Model, Owlv2ForObjectDetection

    from .dinov2 import Dinov2Embedder
    from .owlv2 import Owlv2Detector
    from .sam import SamSegmenter

DETECTOR_SIDE = 128
SAME_BOX = 0.4
"""Two boxes with a higher IoU show one character; characters in the toy world overlap far less."""
QUERY_LENGTH = 16
"""Most tokens of a query, as in OWLv2."""
SEGMENTER_SIDE = 128
SEGMENTER_CHANNELS = 64
EMBEDDER_SIDE = 112
EMBEDDER_PATCH = 14
VERDICT_LIMITS = VerdictLimits(own=0.8, alike=0.86)
"""Chosen on the development pairs of `benchmarks/verdicts.py --choose`, validated on others without it: limits of the
grid at which 5 of 100 mixes of any kind or fewer pass, but of patterns (13), and most right pictures (88)."""


def build_owlv2() -> Owlv2ForObjectDetection:
    """Build a small OWLv2 with 8 x 8 patches; its word vectors are fixed random ones and are not stored."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    text: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": QUERY_LENGTH,
    }
    vision: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": DETECTOR_SIDE,
        "patch_size": 16,
    }
    model = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=64))
    family.set_word_vectors(model, seed=2)
    return model


def build_sam() -> Sam:
    """Build a small SAM with 16 x 16 patches of 8 pixels; its masks have half the side of the picture."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    patches = SEGMENTER_SIDE // 8
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=SEGMENTER_SIDE,
            patch_size=8,
            embed_dim=96,
            depth=3,
            num_heads=3,
            out_chans=SEGMENTER_CHANNELS,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=SEGMENTER_CHANNELS,
            image_embedding_size=(patches, patches),
            input_image_size=(SEGMENTER_SIDE, SEGMENTER_SIDE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=SEGMENTER_CHANNELS, mlp_dim=128, num_heads=4),
            transformer_dim=SEGMENTER_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
    )


def build_dinov2() -> Dinov2Model:
    """Build a small DINOv2 with 8 x 8 patches of 14 pixels."""
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=EMBEDDER_SIDE,
            patch_size=EMBEDDER_PATCH,
        )
    )


def load_owlv2() -> Owlv2ForObjectDetection:
    """Return the trained small OWLv2."""
    return family.load(build_owlv2(), "owlv2")


def load_sam() -> Sam:
    """Return the trained small SAM."""
    return family.load(build_sam(), "sam")


def load_dinov2() -> Dinov2Model:
    """Return the trained small DINOv2."""
    return family.load(build_dinov2(), "dinov2")


def load_detector(path: Path | None = None, device: torch.device | None = None) -> Owlv2Detector:
    """Return the trained detector: it knows "character" (toy, animal, ...), the species, and a species with a colour.

    It comes with the package and stays on the CPU, whatever path and device are given; so do the other two.
    """
    from .owlv2 import Owlv2Detector

    detector = Owlv2Detector(load_owlv2(), tokenizer("!", QUERY_LENGTH), torch.device("cpu"), SAME_BOX)
    detector.limits = "The embedded detector knows drawn toys only: for photos choose OWLv2."
    return detector


def load_segmenter(path: Path | None = None, device: torch.device | None = None) -> SamSegmenter:
    """Return the trained segmenter of drawn toys; path and device do not matter."""
    from .sam import SamSegmenter

    segmenter = SamSegmenter(load_sam(), torch.device("cpu"))
    segmenter.limits = "The embedded segmenter knows drawn toys only: for photos choose a SAM."
    return segmenter


def load_embedder(path: Path | None = None, device: torch.device | None = None) -> Dinov2Embedder:
    """Return the trained embedder: it tells characters apart by their looks, in any pose and place."""
    from .dinov2 import Dinov2Embedder

    embedder = Dinov2Embedder(load_dinov2(), torch.device("cpu"), EMBEDDER_SIDE)
    embedder.verdict_limits = VERDICT_LIMITS
    return embedder
