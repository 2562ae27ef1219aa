"""ComfyUI's IMAGE, MASK, BOUNDING_BOX, MODEL, CLIP and VAE on the one side, the library's values on the other.

The only place where formats change. What comes in is never written to.
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
    from ..mudi_core.bases.promise import EncodeImage, EncodeText
    from ..mudi_core.bases.quantize import BaseWeights
    from ..mudi_core.train.loss import NoiseSchedule

log = logging.getLogger(__name__)

_PREFIX = "diffusion_model."
_TIME_NUMBERS = 6 * 256
"""What SDXL's U-Net reads beside the pooled caption: size, crop and target size of the image."""


class BadImages(MudiError):
    """Pictures that cannot be one batch, or that are no pictures."""


class BadBoxes(MudiError):
    """Boxes that are none."""


class BadModel(MudiError):
    """A MODEL, CLIP or VAE that this pack cannot use; the sentence says which it can."""


def pictures(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Every picture of an IMAGE batch or of a list of batches, as float ``[h, w, 3]`` on the CPU; alpha is dropped.

    Raises `BadImages` where there is none, or one without pixels or with values that are no numbers.
    """
    batches = [images] if isinstance(images, Tensor) else list(images)
    found: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise BadImages(f"Expected pictures, got {_kind(batch)}. Look at the node before: it gives none.")
        if batch.ndim not in (3, 4) or batch.shape[-1] not in (1, 3, 4):
            raise BadImages(f"Expected pictures [batch, height, width, channels], got a tensor {list(batch.shape)}.")
        batch = batch if batch.ndim == 4 else batch[None]
        for image in (batch[place] for place in range(len(batch))):
            rgb = image[..., :3] if image.shape[-1] >= 3 else image.expand(-1, -1, 3)
            found.append(_values(rgb, f"Picture {len(found) + 1}"))
    if not found:
        raise BadImages("There is no picture: the batch is empty. Look at the node that the pictures come from.")
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _values(values: Tensor, which: str) -> Tensor:
    """Values in 0..1 as float32 on the CPU, copied only where they are not. Raises `BadImages` for NaN and for none."""
    if isinstance(values, Levels) and values.bytes is not None:
        return values
    if not values.numel():
        raise BadImages(f"{which} has no pixels ({values.shape[1]}x{values.shape[0]} px). Leave it out.")
    plain = values.detach().to("cpu", torch.float32)
    lowest, highest = float(plain.amin()), float(plain.amax())
    if math.isnan(lowest):
        raise BadImages(f"{which} holds values that are no numbers (NaN). Make it again; a VAE in fp16 may be why.")
    return plain if 0 <= lowest and highest <= 1 else plain.clamp(0, 1)


def image_batch(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures ``[h, w, 3]`` of one size as an IMAGE ``[b, h, w, 3]``."""
    sizes = sorted({(image.shape[1], image.shape[0]) for image in pictures})
    if len(sizes) != 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes) or "none at all"
        raise BadImages(f"A batch needs pictures of one size; these are {listed}. Give them as a list instead.")
    return stacked(pictures)


def masks(masks: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Every mask of a MASK batch or of a list of batches, as float ``[h, w]`` on the CPU. Raises `BadImages`."""
    batches = [masks] if isinstance(masks, Tensor) else list(masks)
    found: list[Tensor] = []
    for batch in batches:
        if not isinstance(batch, Tensor):
            raise BadImages(f"Expected masks, got {_kind(batch)}. Look at the node before: it gives none.")
        if batch.ndim < 2:
            raise BadImages(f"Expected masks [batch, height, width], got a tensor {list(batch.shape)}.")
        if batch.ndim != 3:
            batch = batch[None] if batch.ndim == 2 else batch.flatten(0, -3)
        found += [_values(batch[place], f"Mask {len(found) + place + 1}") for place in range(len(batch))]
    if not found:
        raise BadImages("There is no mask: the batch is empty. Look at the node that the masks come from.")
    return found


def boxes(detections: Detections) -> list[BoundingBox]:
    """What was found in one image, as BOUNDING_BOX."""
    return [
        {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "score": score}
        for (x0, y0, x1, y1), score in zip(detections.xyxy.tolist(), detections.confidence.tolist(), strict=True)
    ]


def xyxy(boxes: Sequence[BoundingBox]) -> Tensor:
    """The boxes of one image as float ``[n, 4]``."""
    corners = [(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in boxes]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def boxes_per_image(boxes: Any) -> list[list[BoundingBox]]:
    """The boxes of each image, from one box, the boxes of one image, or a list of either, as nodes send them.

    Raises `BadBoxes` for anything else.
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


def encode_image(vae: Any) -> EncodeImage:
    """A VAE as the library's function: images ``[b, h, w, 3]`` to unscaled latents ``[b, 4, h/8, w/8]``.

    Raises `BadModel` for a VAE of another kind than SD's, and on encoding `checkpoint.NoNumbers` where it overflows.
    """
    from ..mudi_core.bases.checkpoint import check_encoded

    channels, shrinks = vae.latent_channels, vae.spacial_compression_encode()
    if (channels, shrinks) != (4, 8):
        raise BadModel(
            f"This VAE makes latents of {channels} channels, {shrinks} times smaller; SD's and SDXL's make 4, 8 times "
            "smaller. Connect the VAE of such a checkpoint."
        )

    def encode(images: Tensor) -> Tensor:
        # Loading may write into weights that were made in inference mode, which is only allowed there.
        with torch.inference_mode():
            latents: Tensor = vae.encode(images)
        return check_encoded(latents.clone())

    return encode


def decoded(vae: Any, samples: Tensor) -> list[Tensor]:
    """The pictures ``[h, w, 3]`` of a sampler's latents. Raises `checkpoint.NoNumbers` where the VAE overflows."""
    from ..mudi_core.bases.checkpoint import check_decoded

    return pictures(check_decoded(vae.decode(samples), samples))


def encode_text(clip: Any) -> EncodeText:
    """A CLIP as the library's function: captions, read to the letter, to contexts ``[n, 77, d]`` and pooled ``[n, p]``.

    ``p`` is 0 for SD's, which has no pooled vectors. Raises `BadModel` for one that is neither SD's nor SDXL's.
    """
    from comfy.sd1_clip import SD1ClipModel

    encoders = clip.cond_stage_model
    alone = isinstance(encoders, SD1ClipModel) and encoders.clip_name in ("l", "h")
    if not alone and not all(hasattr(encoders, part) for part in ("clip_l", "clip_g")):
        raise BadModel(
            f"This CLIP is a {type(encoders).__name__}; SD 1.5 has the encoder L, SD 2 has H, SDXL has two, L and G. "
            "Connect the CLIP of such a checkpoint."
        )

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        contexts, pooled = [], []
        with torch.inference_mode():
            for caption in captions:
                literal = caption.replace("(", "\\(").replace(")", "\\)")  # brackets would weigh the words inside
                context, pool = clip.encode_from_tokens(clip.tokenize(literal), return_pooled=True)
                if context.shape[1] > 77:
                    log.warning("only the first 75 tokens are read of '%s'", caption)
                contexts.append(context[:, :77])
                pooled.append(context[:, 0, :0] if alone else pool)
        return torch.cat(contexts).clone(), torch.cat(pooled).clone()

    return encode


def noise_schedule(model: Any) -> NoiseSchedule:
    """How a MODEL was taught to see noise. Raises `BadModel` when it is not by SD's discrete timesteps.

    A patch that only picks some of the checkpoint's timesteps for the sampler (ModelSamplingDiscrete "lcm") leaves the
    checkpoint's own, all of which are trained.
    """
    from ..mudi_core.train.loss import NoiseSchedule

    sampling = model.get_model_object("model_sampling")
    kind = _prediction(sampling)
    if kind is not None and not _is_whole(sampling):
        own = _own_sampling(model)
        kind, sampling = kind if _picks_from(sampling, own) else None, own
    if kind is None:
        raise BadModel(
            f"This MODEL ({_model_name(model)}) was not taught noise in SD's way (epsilon or v-prediction in discrete "
            "timesteps), or a node before says so (such as ModelSamplingDiscrete), and cannot be trained here. Use an "
            "SD or SDXL checkpoint of the usual kind, and connect it without such a node."
        )
    with torch.inference_mode(False):
        scale = float(model.get_model_object("latent_format").scale_factor)
        return NoiseSchedule(1 / (1 + _sigmas(sampling) ** 2), kind, scale)


def _prediction(sampling: Any) -> str | None:
    """ "epsilon" or "v_prediction" of a model_sampling of discrete timesteps; None for any other."""
    from comfy import model_sampling

    others = (model_sampling.X0, model_sampling.EDM)
    if not isinstance(sampling, model_sampling.ModelSamplingDiscrete) or isinstance(sampling, others):
        return None
    kinds = {model_sampling.EPS: "epsilon", model_sampling.V_PREDICTION: "v_prediction"}
    return next((kinds[base] for base in type(sampling).__mro__ if base in kinds), None)


def _sigmas(sampling: Any) -> Tensor:
    sigmas: Tensor = sampling.sigmas.detach().to("cpu", torch.float32)
    return sigmas.clone()


def _timesteps(sampling: Any) -> Tensor:
    """What the U-Net is told of each of a model_sampling's sigmas."""
    told: Tensor = sampling.timestep(_sigmas(sampling))
    return told.to("cpu", torch.long)


def _is_whole(sampling: Any) -> bool:
    """Whether its sigmas are those of timesteps 0, 1, 2, ...: of all that the U-Net knows."""
    told = _timesteps(sampling)
    return torch.equal(told, torch.arange(len(told)))


def _picks_from(sampling: Any, own: Any) -> bool:
    """Whether a model_sampling is some of the timesteps of another one, with the same noise and the same answer."""
    told = _timesteps(sampling)
    if _prediction(sampling) != _prediction(own) or not _is_whole(own) or int(told.max()) >= len(own.sigmas):
        return False
    return torch.allclose(_sigmas(own)[told], _sigmas(sampling), rtol=1e-3)


def _own_sampling(model: Any) -> Any:
    """The model_sampling of the checkpoint itself, beneath every patch on the MODEL."""
    bare = model.clone()
    bare.object_patches.pop("model_sampling", None)
    return bare.get_model_object("model_sampling")


def family(model: Any) -> str:
    """Kohya's name for a MODEL's kind. Raises `BadModel` when it cannot be trained, as `unet` would, at no cost."""
    from ..mudi_core.bases import sd

    blank, _ = _blank_unet(model)
    if blank.config.addition_embed_type == "text_time":
        return "sdxl_base_v1-0"
    return f"sd_{sd.version(blank)}" + ("_v" if noise_schedule(model).prediction_type == "v_prediction" else "")


def check_text(model: Any, encode_text: EncodeText) -> None:
    """Raises `BadModel` when a MODEL cannot read what a CLIP's `encode_text` makes of a caption."""
    config = model.model.model_config.unet_config
    context, pooled = encode_text([""])
    sizes = _TIME_NUMBERS + pooled.shape[-1] if pooled.shape[-1] else 0
    if (context.shape[-1], sizes) != (config["context_dim"], config.get("adm_in_channels") or 0):
        raise BadModel(
            f"This CLIP is of another kind than this MODEL ({_model_name(model)}), which cannot read what it makes of "
            "captions. Connect the CLIP of the same checkpoint."
        )


def unet(model: Any, device: torch.device, dtype: torch.dtype, base_weights: BaseWeights = "full") -> Any:
    """A diffusers U-Net with a MODEL's weights, LoRAs on the MODEL included, frozen, to be trained on ``device``.

    Weights that are there in ``dtype`` already are shared, not copied; all others, and those that a LoRA on the MODEL
    changes, are copies. They are quantized to ``base_weights`` before they come to ``device``. Raises `BadModel` when
    the MODEL is not of SD's or SDXL's architecture.
    """
    import comfy.lora

    from ..mudi_core.bases.quantize import quantize

    place = device if base_weights == "full" else torch.device("cpu")
    blank, keys = _blank_unet(model)
    patches = model.get_key_patches(_PREFIX)
    state = {}
    for name, key in keys.items():
        weight, convert = patches[key][0]  # as it is without any patch
        with torch.inference_mode():
            if key in model.patches:
                weight = convert(weight.to(place, torch.float32, copy=True), inplace=True)
                weight = comfy.lora.calculate_weight(model.patches[key], weight, key)
            else:
                weight = convert(weight, inplace=False)
            weight = weight.to(place, dtype)
        state[name] = _outside_inference_mode(weight.detach())
    with torch.inference_mode(False):
        blank.load_state_dict(state, assign=True)
        quantize(blank, base_weights)
        return blank.to(device).eval().requires_grad_(False)


def _blank_unet(model: Any) -> tuple[Any, dict[str, str]]:
    """A diffusers U-Net of a MODEL's architecture without values, and for each of its weights the MODEL's key."""
    import comfy.utils
    from diffusers import UNet2DConditionModel

    from ..mudi_core.bases.sdxl import QUANTIZED

    if getattr(model, "injections", None):
        raise BadModel(
            f"This MODEL wears something that training cannot see ({', '.join(model.injections)}), such as a LoRA in "
            "bypass mode. Load the LoRA without bypass, or take it off."
        )
    network, config = model.model.diffusion_model, model.model.model_config.unet_config
    shapes = {_PREFIX + name: value.shape for name, value in network.state_dict().items()}
    scales = [name for name in shapes if name.endswith(QUANTIZED)]
    if scales:
        raise BadModel(
            f"This MODEL ({_model_name(model)}) is stored in few bits, with scales beside its weights (scaled fp8 or "
            f"the like: {scales[0]}), and cannot be trained upon. Load the same checkpoint in fp16, bf16 or plain fp8."
        )
    groups = next((module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)), None)
    of_images = getattr(model.model.model_config, "noise_aug_config", None)  # unCLIP: it reads pictures, not captions
    settings = _diffusers_config(config, groups) if groups and not of_images else None
    if settings is not None:
        with torch.inference_mode(False), torch.device("meta"):
            blank = UNet2DConditionModel(**settings)
        names, wanted = comfy.utils.unet_to_diffusers(config), blank.state_dict()
        keys = {name: _PREFIX + names.get(name, "") for name in wanted}
        if set(keys.values()) == shapes.keys() and all(wanted[name].shape == shapes[keys[name]] for name in wanted):
            return blank, keys
    raise BadModel(
        f"This MODEL ({_model_name(model)}) is not of the architecture of SD 1.5, SD 2 or SDXL, and only such can be "
        "trained here: these themselves, their finetunes (Pony, Illustrious, ...), and the embedded mini model."
    )


def _diffusers_config(config: dict[str, Any], groups: int) -> dict[str, Any] | None:
    """Settings of diffusers' U-Net for ComfyUI's, where the block types of SD and SDXL can express it."""
    if "channel_mult" not in config:
        return None
    widths = [config["model_channels"] * factor for factor in config["channel_mult"]]
    layers = config["num_res_blocks"]
    per_head, heads = config.get("num_head_channels", -1), config.get("num_heads", -1)
    if len(set(layers)) != 1 or max(per_head, heads) <= 0 or config["in_channels"] != 4:
        return None
    depths = [config["transformer_depth"][level * layers[0]] for level in range(len(widths))]
    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths)
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths))
    settings = {
        "block_out_channels": tuple(widths),
        "layers_per_block": layers[0],
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in depths),
        "attention_head_dim": tuple(width // per_head if per_head > 0 else heads for width in widths),
        "cross_attention_dim": config["context_dim"],
        "norm_num_groups": groups,
        "use_linear_projection": config["use_linear_in_transformer"],
    }
    if config.get("adm_in_channels"):
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_NUMBERS // 6,
            "projection_class_embeddings_input_dim": config["adm_in_channels"],
        }
    return settings


def _outside_inference_mode(weight: Tensor) -> Tensor:
    """The same memory as a tensor that autograd may save: those made in inference mode refuse."""
    if not weight.is_inference():
        return weight
    with torch.inference_mode(False):
        alias = torch.empty(0, dtype=weight.dtype, device=weight.device)
        return alias.set_(weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride())


def _model_name(model: Any) -> str:
    return type(model.model.model_config).__name__
