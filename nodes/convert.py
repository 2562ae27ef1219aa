"""ComfyUI's IMAGE, MASK, BOUNDING_BOX, CLIP and VAE become the library's values, and the other way round.

Formats change only here. Nothing that comes in is written to.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..mudi_core.levels import Levels, stacked
from ..mudi_core.types import Detections, MudiError
from .sockets import BoundingBox

if TYPE_CHECKING:
    from ..mudi_core.bases.promise import Conditions, EncodeImage, EncodeText

log = logging.getLogger(__name__)


_WHOLE = " (whole)"
"""Ends the names of values that ComfyUI keeps without a batch dimension, such as the ids of tokens."""


class BadModel(MudiError):
    """A MODEL, CLIP or VAE that this pack cannot use. The message says which it can."""


class BadImages(MudiError):
    """A value that is not a picture, or pictures that cannot be one batch."""


class BadBoxes(MudiError):
    """A value that is not a box."""


def pictures(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return every picture of an IMAGE batch or of a list of batches: float ``[h, w, 3]``, 0..1, on the CPU.

    Alpha is dropped. Raise `BadImages` where there is no picture, or one without pixels or with NaN.
    """
    batches = [images] if isinstance(images, Tensor) else list(images)
    found: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise BadImages(f"Expected pictures, got {_kind(batch)}. Check the node that they come from.")
        if batch.ndim not in (3, 4) or batch.shape[-1] not in (1, 3, 4):
            raise BadImages(f"Expected pictures [batch, height, width, channels], got a tensor {list(batch.shape)}.")
        batch = batch if batch.ndim == 4 else batch[None]
        for image in (batch[place] for place in range(len(batch))):
            rgb = image[..., :3] if image.shape[-1] >= 3 else image.expand(-1, -1, 3)
            found.append(_values(rgb, f"Picture {len(found) + 1}"))
    if not found:
        raise BadImages("There is no picture: the batch is empty. Check the node that the pictures come from.")
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _values(values: Tensor, which: str) -> Tensor:
    """Return values in 0..1 as float32 on the CPU, copied only where needed.

    Raise `BadImages` for none, for NaN and infinity, and for whole numbers up to 255.
    """
    if isinstance(values, Levels) and values.bytes is not None:
        return values
    if not values.numel():
        raise BadImages(f"{which} has no pixels ({values.shape[1]}x{values.shape[0]} px). Leave it out.")
    plain = values.detach().to("cpu", torch.float32)
    lowest, highest = float(plain.amin()), float(plain.amax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise BadImages(
            f"{which} holds values that are not numbers (NaN or infinity). Make it again; a VAE in fp16 can cause this."
        )
    if highest > 1 and not values.is_floating_point():
        raise BadImages(
            f"{which} has whole numbers up to {highest:g}, where ComfyUI has 0 to 1: all would be white. Look at the "
            "node before this one."
        )
    return plain if 0 <= lowest and highest <= 1 else plain.clamp(0, 1)


def image_batch(pictures: Sequence[Tensor]) -> Tensor:
    """Return pictures ``[h, w, 3]`` of one size as an IMAGE ``[b, h, w, 3]``. Raise `BadImages` where sizes differ."""
    sizes = sorted({(image.shape[1], image.shape[0]) for image in pictures})
    if len(sizes) != 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes) or "none at all"
        raise BadImages(f"A batch needs pictures of one size; these are {listed}. Give them as a list instead.")
    return stacked(pictures)


def masks(masks: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return every mask of MASK batches: float ``[h, w]``, 0..1, on the CPU. Raise `BadImages`."""
    batches = [masks] if isinstance(masks, Tensor) else list(masks)
    found: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise BadImages(f"Expected masks, got {_kind(batch)}. Check the node that they come from.")
        if batch.ndim < 2:
            raise BadImages(f"Expected masks [batch, height, width], got a tensor {list(batch.shape)}.")
        if batch.ndim != 3:
            batch = batch[None] if batch.ndim == 2 else batch.flatten(0, -3)
        found += [_values(batch[place], f"Mask {len(found) + place + 1}") for place in range(len(batch))]
    if not found:
        raise BadImages("There is no mask: the batch is empty. Check the node that the masks come from.")
    return found


def boxes(detections: Detections) -> list[BoundingBox]:
    """Return the boxes of one image as BOUNDING_BOX, in pixels."""
    return [
        {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "score": score}
        for (x0, y0, x1, y1), score in zip(detections.xyxy.tolist(), detections.confidence.tolist(), strict=True)
    ]


def xyxy(boxes: Sequence[BoundingBox]) -> Tensor:
    """Return the boxes of one image as float ``[n, 4]``: left, top, right, bottom, in pixels."""
    corners = [(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in boxes]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def boxes_per_image(boxes: Any) -> list[list[BoundingBox]]:
    """Return the boxes of each image. Nodes send one box, the boxes of one image, or a list of either.

    Raise `BadBoxes` for anything else.
    """
    if isinstance(boxes, dict):
        sides = [boxes.get(side) for side in ("x", "y", "width", "height")]
        if not all(isinstance(side, int | float) and math.isfinite(side) for side in sides):
            raise BadBoxes(f"A box needs the numbers x, y, width and height; one has {', '.join(map(str, sides))}.")
        return [[cast(BoundingBox, boxes)]]
    if not isinstance(boxes, list | tuple):
        raise BadBoxes(f"Expected boxes, got something else ({type(boxes).__name__}). Connect a detector's boxes.")
    if all(isinstance(box, dict) for box in boxes):
        return [[one for box in boxes for one in boxes_per_image(box)[0]]]
    return [one for some in boxes for one in boxes_per_image(some)]


def encode_image(vae: Any, model: Any = None) -> EncodeImage:
    """Return a VAE as an `EncodeImage`: images ``[b, h, w, 3]`` to unscaled latents ``[b, c, ..., h/f, w/f]``.

    Raise `BadModel` for a VAE that does not fit the MODEL, or without a MODEL one that is not SD's or SDXL's; the
    function does where its latents do not, and raises `vae.NoNumbers` where the VAE overflows.
    """
    from ..mudi_core.bases.vae import check_encoded

    channels, shrinks, dimensions = vae.latent_channels, vae.spacial_compression_encode(), None
    if model is not None:
        form = model.get_model_object("latent_format")
        dimensions = form.latent_dimensions
        if channels != form.latent_channels:
            raise BadModel(
                f"This VAE makes latents of {channels} channels, this MODEL reads {form.latent_channels}. Connect the "
                "VAE of the same checkpoint."
            )
    elif (channels, shrinks) != (4, 8):
        raise BadModel(
            f"This VAE makes latents of {channels} channels, {shrinks} times smaller; SD's and SDXL's make 4, 8 times "
            "smaller. Connect the VAE of such a checkpoint; for another kind, such as FLUX, connect its model, too."
        )

    def encode(images: Tensor) -> Tensor:
        # Loading may write into weights that were made in inference mode, which is only allowed there.
        with torch.inference_mode():
            latents: Tensor = vae.encode(images)
        if dimensions not in (None, latents.ndim - 2):
            raise BadModel(
                f"This VAE makes latents of {latents.ndim - 2} dimensions, this MODEL reads {dimensions}. Connect the "
                "VAE of the same checkpoint."
            )
        return check_encoded(latents.clone())

    return encode


def decoded(vae: Any, samples: Tensor) -> list[Tensor]:
    """Return the pictures ``[h, w, 3]`` of a sampler's latents. Raise `vae.NoNumbers` where the VAE overflows."""
    from ..mudi_core.bases.vae import check_decoded

    return pictures(check_decoded(vae.decode(samples), samples))


def encode_text(clip: Any) -> EncodeText:
    """Return a CLIP as an `EncodeText`, which turns captions into what a CONDITIONING would hold of each.

    That is ``cross_attn [n, d]``, ``pooled_output [p]`` where the model reads one, and other tensors and numbers by
    their names there; `conditioning` is the way back. Brackets in a caption do not weigh its words. Raise `BadModel`
    for a CLIP that reads no text.
    """
    from comfy.sd1_clip import SD1ClipModel

    if not hasattr(clip, "encode_from_tokens"):
        raise BadModel("This CLIP reads no captions. Connect the CLIP of the MODEL's checkpoint.")
    encoders = clip.cond_stage_model
    alone = isinstance(encoders, SD1ClipModel) and encoders.clip_name in (
        "l",
        "h",
    )  # SD's
    short = alone or all(hasattr(encoders, part) for part in ("clip_l", "clip_g"))

    def read(caption: str) -> dict[str, Any]:
        literal = caption.replace("(", "\\(").replace(")", "\\)")  # brackets would weigh the words inside
        with torch.inference_mode():
            said: dict[str, Any] = clip.encode_from_tokens(clip.tokenize(literal), return_dict=True)
        said["cross_attn"] = said.pop("cond")
        if short and said["cross_attn"].shape[1] > 77:
            log.warning("only the first 75 tokens are read of '%s'", caption)
            said["cross_attn"] = said["cross_attn"][:, :77]
        return {name: value for name, value in said.items() if not (alone and name == "pooled_output")}

    def encode(captions: list[str]) -> list[Conditions]:
        each = [read(caption) for caption in captions]
        with torch.inference_mode(False):
            return [dict(_kept(*part) for part in one.items() if _is_values(part[1])) for one in each]

    return encode


def conditioning(conditions: Conditions) -> dict[str, Any]:
    """Return what the models' ``extra_conds`` read of a caption, from what `encode_text` made of it."""
    found: dict[str, Any] = {"pooled_output": None}  # ComfyUI's nodes always name it
    for name, value in conditions.items():
        if not name.endswith(_WHOLE):
            found[name] = value[None]
        else:
            found[name.removesuffix(_WHOLE)] = value if value.ndim else value.item()
    return found


def _is_values(value: object) -> bool:
    return isinstance(value, Tensor | int | float) and not isinstance(value, bool)


def _kept(name: str, value: Any) -> tuple[str, Tensor]:
    """Return a value of a CONDITIONING as a tensor, without its batch dimension where it has one."""
    if isinstance(value, Tensor) and value.ndim > 1:
        return name, value[0].clone()
    return name + _WHOLE, torch.as_tensor(value).clone()
