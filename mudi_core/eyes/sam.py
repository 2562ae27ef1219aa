"""Segment Anything (Kirillov et al., arXiv 2304.02643) turns a box into a mask, with segment-anything's predictor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..levels import to_bytes
from ..tensor_file import BadWeights, read_foreign

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Width of the image encoder -> the model's name in segment-anything."""


class SamSegmenter:
    """A `Segmenter`: one mask per box, the one that SAM returns for an unambiguous prompt."""

    def __init__(self, sam: Sam, device: torch.device) -> None:
        from segment_anything import SamPredictor

        self.model = sam.to(device).eval()
        self.predictor = SamPredictor(self.model)
        self.limits = ""
        """A sentence about what it cannot cut out; errors show it when a mask is empty."""

    @torch.no_grad()
    def __call__(self, image: Tensor, xyxy: Tensor) -> Tensor:
        height, width = image.shape[:2]
        if len(xyxy) == 0:
            return torch.zeros(0, height, width)
        self.predictor.set_image(to_bytes(image))
        boxes = self.predictor.transform.apply_boxes_torch(xyxy.float().cpu(), (height, width))
        masks, _, _ = self.predictor.predict_torch(
            point_coords=None, point_labels=None, boxes=boxes.to(self.predictor.device), multimask_output=False
        )
        self.predictor.reset_image()  # free the features of the picture: 4 MB that are not needed again
        inside: Tensor = masks[:, 0]
        return inside.float().cpu()


def load(path: Path, device: torch.device) -> SamSegmenter:
    """Read Meta's checkpoint (``.pth``) or the same tensors as ``.safetensors``: vit_b, vit_l or vit_h.

    The tensors themselves tell which. Raise `BadWeights` when the file is damaged or is none of these.
    """
    from segment_anything import sam_model_registry

    state = _read(path)
    patches = state.get("image_encoder.patch_embed.proj.weight")
    name = SIZES.get(len(patches)) if patches is not None else None
    if name is None:
        raise BadWeights(
            f"{path} is not a Segment Anything checkpoint (vit_b, vit_l or vit_h). SAM 2 is another model."
        )
    sam = sam_model_registry[name]()
    try:
        sam.load_state_dict(state)
    except RuntimeError as error:
        raise BadWeights(
            f"{path} begins like a SAM {name} but is not one: {str(error).splitlines()[-1].strip()}"
        ) from None
    return SamSegmenter(sam, device)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadWeights(f"There is no file {path}: name the SAM checkpoint itself, such as sam_vit_b_01ec64.pth.")
    return read_foreign(path, "SAM checkpoint")
