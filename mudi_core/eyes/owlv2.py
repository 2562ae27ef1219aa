"""OWLv2 (Minderer et al., arXiv 2306.09683) finds what a text names, through transformers' own model class.

Pictures are prepared and boxes are read here, because transformers' image processor changed between releases and the
embedded detector has another picture size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from .. import boxes
from ..types import Detections
from .pixels import CLIP, scaled

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, Owlv2ForObjectDetection

log = logging.getLogger(__name__)

GREY = 0.5
"""The colour with which OWLv2's authors fill the square to the right of the picture or below it."""


class Owlv2Detector:
    """A `Detector`: the confidence is the sigmoid of the best query's logit, as in the paper.

    `nms`: drop boxes that overlap a more confident box by more than this IoU, whatever their query; None keeps all, as
    the official Detect-and-Compare does.
    """

    def __init__(
        self,
        model: Owlv2ForObjectDetection,
        tokenizer: CLIPTokenizer,
        device: torch.device,
        nms: float | None = 0.5,
    ) -> None:
        self.model = cast(Any, model)  # the library types neither its configs nor its decorated `to` usefully
        self.model.to(device).eval()
        self.tokenizer = tokenizer
        self.device = device
        self.nms = nms
        self.limits = ""
        """A sentence about what it cannot find; errors show it when nothing was found."""
        self.side = int(self.model.config.vision_config.image_size)
        self.length = int(self.model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def __call__(self, image: Tensor, queries: Sequence[str], threshold: float) -> Detections:
        tokens = self.tokenizer(
            list(queries), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        for query in queries:
            if len(self.tokenizer(query)["input_ids"]) > self.length:
                log.warning("The detector reads only the first words of '%s'. Use fewer words.", query)
        output = self.model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            pixel_values=prepare(image, self.side, self.device),
        )
        return read_boxes(
            output.logits[0].float().cpu(),
            output.pred_boxes[0].float().cpu(),
            queries,
            threshold,
            (image.shape[1], image.shape[0]),
            self.nms,
        )


def prepare(image: Tensor, side: int, device: torch.device | None = None) -> Tensor:
    """Scale a picture ``[h, w, 3]`` into the top left corner of a grey square: return ``[1, 3, side, side]``."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # One colour at a time: a photo of 24 megapixels then takes 0.1 GB in floats and not 0.6 GB, a copy included.
    pixels = torch.cat([_smaller(image[:, :, colour].to(device), size) for colour in range(3)], dim=1)
    pixels = functional.pad(pixels, (0, side - size[1], 0, side - size[0]), value=GREY)
    return scaled(pixels, CLIP)


def _smaller(channel: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(
        channel.float()[None, None], size, mode="bilinear", antialias=True, align_corners=False
    )


def read_boxes(
    logits: Tensor,
    cxcywh: Tensor,
    queries: Sequence[str],
    threshold: float,
    size: tuple[int, int],
    nms: float | None,
) -> Detections:
    """Read the model's output: logits ``[n, queries]``; centres and sizes ``[n, 4]`` in fractions of the square.

    The side of the square is the longer side of the picture (`size`: width, height). Boxes are cut at the picture's
    borders; boxes in the grey part are dropped.
    """
    best, query = logits.max(dim=1)
    confidence = best.sigmoid()
    centre, half = cxcywh[:, :2], cxcywh[:, 2:] / 2
    xyxy = boxes.clip(torch.cat([centre - half, centre + half], dim=1) * max(size), size)
    inside = (xyxy[:, 2:] - xyxy[:, :2]).min(dim=1).values >= 1
    best_confidence = float(confidence[inside].max()) if inside.any() else 0.0
    keep = (inside & (confidence >= threshold)).nonzero()[:, 0]
    keep = keep[confidence[keep].argsort(descending=True, stable=True)]
    if nms is not None:
        keep = keep[_apart(xyxy[keep], nms)]
    labels = tuple(queries[int(index)] for index in query[keep])
    return Detections(xyxy[keep], confidence[keep], labels, best_confidence)


def _apart(xyxy: Tensor, most: float) -> list[int]:
    """Return the boxes left by greedy non-maximum suppression: no two overlap by an IoU above `most`."""
    overlap = boxes.iou(xyxy, xyxy)
    rows: list[int] = []
    for index in range(len(xyxy)):
        if not any(overlap[index, other] > most for other in rows):
            rows.append(index)
    return rows


def load(path: Path, device: torch.device) -> Owlv2Detector:
    """Read an OWLv2 from a folder with ``config.json`` and ``model.safetensors``; the tokenizer comes with the package.

    Raise `BadWeights` when the folder holds something else.
    """
    from transformers import Owlv2ForObjectDetection

    from ..vocabulary import tokenizer
    from .pretrained import read_model

    model = read_model(Owlv2ForObjectDetection, path, "an OWLv2")
    # OWLv2's text model was trained with "!" (id 0) as padding.
    return Owlv2Detector(model, tokenizer("!", model.config.text_config.max_position_embeddings), device)


def load_official(path: Path, device: torch.device) -> Owlv2Detector:
    """Read an OWLv2 as `load` does; it keeps boxes over boxes, of which the official code removes none. Raise
    `BadWeights`."""
    detector = load(path, device)
    detector.nms = None
    return detector
