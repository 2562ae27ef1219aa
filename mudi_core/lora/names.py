"""What the programs that write LoRAs call a layer, and the one name that it has here.

Here a layer has kohya's name with diffusers' path: ``lora_unet_down_blocks_1_attentions_0_..._to_q``, and
``lora_te1_text_model_...``, ``lora_te2_...`` in the text encoders. Other networks than U-Nets keep their own path.
"""

from __future__ import annotations

import re
from typing import Literal

UNET, TEXT = "lora_unet_", ("lora_te1_", "lora_te2_")

Style = Literal["diffusers", "sd", "sgm", "flux"]
"""How kohya's scripts name the layers of a kind of model: blocks of a U-Net as in diffusers, ``down_blocks_1_...``; the
same with SD's one text encoder, ``lora_te_``; or SDXL's blocks as in Stability's code, ``input_blocks_4_1_...``. "flux"
is diffusers' names of FLUX's layers as ComfyUI reads them, ``lora_transformer_``."""

_ENDINGS = tuple(
    (re.compile(rf"(?P<layer>.+?){ending}", re.DOTALL), part)
    for ending, part in (
        (r"\.(lora_(?:down|up|mid)\.weight)", None),
        (r"\.(?:lora|lora_linear_layer)\.(down|up)\.weight", "lora_{}.weight"),
        (r"_lora\.(down|up)\.weight", "lora_{}.weight"),
        (r"\.lora_A(?:\.[^.]+)?\.weight|\.lora_A", "lora_down.weight"),
        (r"\.lora_B(?:\.[^.]+)?\.weight|\.lora_B", "lora_up.weight"),
        (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "dora_scale"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)?\.(alpha)", None),
        (r"\.(dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))(?:\.[^.]+)?", None),
        (r"\.([ab][12]\.weight|diff)", None),
    )
)
"""How keys end, and the name of the part in `change.KINDS`; None: the ending itself."""


def split(key: str) -> tuple[str, str] | None:
    """Return the layer of a file's key, by the file's name of it, and the part, as in `change.KINDS`.

    None for a key that belongs to no kind of change known here.
    """
    for pattern, part in _ENDINGS:
        if match := pattern.fullmatch(key):
            found = match.groups()[1:]
            return match["layer"], part.format(*found) if part else next(filter(None, found))
    return None


_WRAPPERS = ("base_model.model.", "module.", "model.")
_TEXT = (
    (1, ("lora_te2_", "text_encoder_2.", "te2.", "text_encoders.clip_g.transformer.")),
    (
        0,
        ("lora_te1_", "lora_te_", "text_encoder.", "te1.", "text_encoders.clip_l.transformer.",
         "text_encoders.clip_h.transformer."),
    ),
)  # fmt: skip
_NETWORK = (
    "lora_unet__", "lora_unet_", "unet.", "diffusion_model.", "lora_transformer_", "transformer.", "lycoris_",
)  # fmt: skip
_OF_UNETS = ("down_blocks_", "up_blocks_", "mid_block_", "input_blocks_", "output_blocks_", "middle_block_")
_TEXT_PATH = re.compile(r"(text_model_)?encoder_layers_")
_OLD_TEXT = {f"self_attn_to_{old}": f"self_attn_{new}_proj" for old, new in zip("qkv", "qkv", strict=True)} | {
    "self_attn_to_out": "self_attn_out_proj"
}


def our_name(layer: str) -> str:
    """Translate the name that a file has for a layer, without the part that `split` takes off."""
    layer = _bare(layer)
    for encoder, prefixes in _TEXT:
        for prefix in prefixes:
            if layer.startswith(prefix):
                return TEXT[encoder] + _text_path(_bare(layer[len(prefix) :]))
    prefix = next((one for one in _NETWORK if layer.startswith(one)), "")
    path = _bare(layer[len(prefix) :])
    if _TEXT_PATH.match(path.replace(".", "_")):  # a program that trains one text encoder alone gives it no prefix
        return TEXT[0] + _text_path(path)
    if ".processor." in path:
        path = path.replace(".processor.", ".")
    flat = path.replace(".", "_")
    if flat.startswith(_OF_UNETS) and flat.endswith(("attn1_to_out", "attn2_to_out")):  # HiDream's has no place 0
        flat += "_0"
    return UNET + _of_sgm(flat)


def _bare(path: str) -> str:
    while wrapper := next((one for one in _WRAPPERS if path.startswith(one)), None):
        path = path[len(wrapper) :]
    return path


def _text_path(path: str) -> str:
    flat = path.replace(".", "_").replace("_processor_", "_")
    if flat.startswith("encoder_layers_"):  # transformers 5 has no "text_model" in SD's encoder
        flat = f"text_model_{flat}"
    for old, new in _OLD_TEXT.items():
        if flat.endswith(old):
            flat = flat.removesuffix(old) + new
    return flat


_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_(\d)_(.+)")
_MIDDLE = re.compile(r"middle_block_(\d)_(.+)")
_IN_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_0": "norm2",
    "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ALONE = {
    "input_blocks_0_0": "conv_in", "out_0": "conv_norm_out", "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip
_PER_LEVEL = 3
"""SD and SDXL have two residual blocks and a downsampler per level on the way down, three residual blocks on the way
up. The way down starts with a convolution that belongs to no level."""


def _of_sgm(path: str) -> str:
    """Translate Stability's path of a layer of SD or SDXL to diffusers'; return other paths unchanged."""
    if path in _ALONE:
        return _ALONE[path]
    if match := _MIDDLE.fullmatch(path):
        place, rest = int(match[1]), match[2]
        if place == 1:
            return f"mid_block_attentions_0_{rest}"
        return f"mid_block_resnets_{place // 2}_{_IN_RESNET.get(rest, rest)}"
    match = _BLOCK.fullmatch(path)
    if match is None or (match[1] == "input" and match[2] == "0"):
        return path
    number, part, rest = int(match[2]), match[3], match[4]
    way, level, place = ("down", *divmod(number - 1, _PER_LEVEL)) if match[1] == "input" else (
        "up", *divmod(number, _PER_LEVEL))  # fmt: skip
    if rest == "op":
        return f"down_blocks_{level}_downsamplers_0_conv"
    if rest == "conv":
        return f"up_blocks_{level}_upsamplers_0_conv"
    if part == "1":
        return f"{way}_blocks_{level}_attentions_{place}_{rest}"
    return f"{way}_blocks_{level}_resnets_{place}_{_IN_RESNET.get(rest, rest)}"


_DIFFUSERS = re.compile(r"(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_(.+)")
_MID = re.compile(r"mid_block_(attentions|resnets)_(\d)_(.+)")
_TO_RESNET = {ours: theirs for theirs, ours in _IN_RESNET.items()}
_TO_ALONE = {ours: theirs for theirs, ours in _ALONE.items()}


def styled(name: str, style: Style) -> str:
    """Return our name of a layer as a file of this style has it."""
    if style == "sd" and name.startswith(TEXT[0]):
        return "lora_te_" + name.removeprefix(TEXT[0])
    if style == "flux" and name.startswith((f"{UNET}transformer_blocks_", f"{UNET}single_transformer_blocks_")):
        return "lora_transformer_" + name.removeprefix(UNET)
    if style != "sgm" or not name.startswith(UNET):
        return name
    path = name.removeprefix(UNET)
    if path in _TO_ALONE:
        return UNET + _TO_ALONE[path]
    if match := _MID.fullmatch(path):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"{UNET}middle_block_{place}_{_TO_RESNET.get(match[3], match[3])}"
    match = _DIFFUSERS.fullmatch(path)
    if match is None:
        return name
    way, level, what, place, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if what == "downsamplers":
        return f"{UNET}input_blocks_{(level + 1) * _PER_LEVEL}_0_op"
    if what == "upsamplers":
        return f"{UNET}output_blocks_{level * _PER_LEVEL + 2}_2_conv"
    number = level * _PER_LEVEL + place
    block = f"input_blocks_{number + 1}" if way == "down" else f"output_blocks_{number}"
    part = 1 if what == "attentions" else 0
    return f"{UNET}{block}_{part}_{_TO_RESNET.get(rest, rest) if part == 0 else rest}"
