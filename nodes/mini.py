"""Mini Checkpoint and Mini Photos: the embedded model for every stock node, and photos to train it with."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy import sdxl_clip
from comfy_api.latest import io

from ..mudi_core.bases import embedded as family
from ..mudi_core.bases.families import EMBEDDED
from ..mudi_core.toy.world import PAIRS, photo
from . import host
from .host import widgets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CATEGORY = "MuDI/mini"
PAIR_CHOICES = [f"{i}: {a.token} {a.class_noun} and {b.token} {b.class_noun}" for i, (a, b) in enumerate(PAIRS)]


class MiniSDXL(comfy.supported_models.SDXL):  # type: ignore[misc]
    """The embedded U-Net as ComfyUI describes SDXL's."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    mudi_base = EMBEDDED
    """What is usual for it stands in the table of families under this name."""


class MiniCheckpoint(io.ComfyNode):  # type: ignore[misc]
    """Give MODEL, CLIP and VAE of the embedded family."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMiniCheckpoint",
            display_name="Mini Checkpoint (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="A tiny model of SDXL's architecture that comes with MuDI. It draws toy characters at "
            f"{family.SIZE}x{family.SIZE} px in seconds, without a graphics card and without a download: to try out "
            "and to learn a workflow with.",
            search_aliases=["checkpoint", "load checkpoint", "mini", "tiny sdxl", "demo"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip=f"The mini model. Its pictures are {family.SIZE}x{family.SIZE} px."
                ),
                io.Clip.Output(display_name="clip", tooltip="The mini model's two text encoders."),
                io.Vae.Output(display_name="vae", tooltip="The mini model's VAE."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        parts: list[Any] = []
        with host.progress()("loading") as update:
            for load in (load_model, load_clip, load_vae):
                parts.append(load())
                update(len(parts), 3)
        return io.NodeOutput(*parts, ui=host.preview([], cls, f"for pictures of {family.SIZE}x{family.SIZE} px"))


class MiniPhotos(io.ComfyNode):  # type: ignore[misc]
    """Draw photos of two similar characters that the embedded family has never seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="MudiMiniPhotos",
            display_name="Mini Photos (MuDI)",
            category=CATEGORY,
            has_intermediate_output=True,
            description="Photos of two similar toy characters that the mini model has never seen: they stand "
            "for the photos of your own two subjects.",
            search_aliases=["photos", "example", "dataset", "demo", "toy"],
            inputs=[
                io.Combo.Input("pair", options=PAIR_CHOICES, tooltip="Which two characters."),
                io.Int.Input("count", default=5, min=1, max=32, tooltip="Photos of each character."),
                io.Int.Input("side", default=320, min=96, max=1024, step=8, tooltip="Width and height in pixels."),
                widgets.seed("Decides poses, places and light."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="photos_a", is_output_list=True, tooltip="Photos of the first character, one by one."
                ),
                io.Image.Output(
                    display_name="photos_b", is_output_list=True, tooltip="Photos of the second character, one by one."
                ),
                io.String.Output(display_name="token_a", tooltip="The first one's name, a word without meaning."),
                io.String.Output(display_name="class_a", tooltip="What the first character is."),
                io.String.Output(display_name="token_b", tooltip="The second one's name, a word without meaning."),
                io.String.Output(display_name="class_b", tooltip="What the second character is."),
            ],
        )

    @classmethod
    def execute(cls, pair: str, count: int, side: int, seed: int) -> io.NodeOutput:
        host.check_choice("pair", pair, PAIR_CHOICES)
        first, second = PAIRS[PAIR_CHOICES.index(pair)]
        photos: list[list[torch.Tensor]] = []
        with host.progress()("drawing photos") as update:
            for spec in (first, second):
                drawn = []
                for number in range(count):
                    pixels = photo(spec.character, random.Random(f"{seed}/{spec.token}/{number}"), side).image
                    drawn.append(torch.from_numpy(pixels.copy())[None].float() / 255)
                    update(len(photos) * count + number + 1, 2 * count)
                photos.append(drawn)
        said = f"{count} photos each of {first.token} {first.class_noun} and {second.token} {second.class_noun}"
        names = (first.token, first.class_noun, second.token, second.class_noun)
        return io.NodeOutput(*photos, *names, ui=host.preview([], cls, said))


def load_model() -> Any:
    """Return the embedded U-Net as a MODEL."""
    unet = family.load_unet()
    config = MiniSDXL(unet_config(unet.config))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    _set_groups(model.diffusion_model, unet.config["norm_num_groups"])
    state = unet.state_dict()
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    model.load_model_weights({names[name]: value for name, value in state.items()}, "")
    return comfy.model_patcher.ModelPatcher(model, host.device(), comfy.model_management.unet_offload_device())


def unet_config(config: Any) -> dict[str, Any]:
    """Return ComfyUI's configuration of a diffusers U-Net. Each of its levels has attention everywhere or nowhere."""
    layers = config["layers_per_block"]
    depths = [
        depth if "CrossAttn" in block else 0
        for depth, block in zip(config["transformer_layers_per_block"], config["down_block_types"], strict=True)
    ]
    widths = config["block_out_channels"]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "transformer_depth_middle": depths[-1],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config["use_linear_projection"],
        "use_temporal_attention": False,
        "context_dim": config["cross_attention_dim"],
        "num_classes": "sequential",
        "adm_in_channels": config["projection_class_embeddings_input_dim"],
        "legacy": False,
        "use_checkpoint": False,
    }


def load_clip() -> Any:
    """Return the embedded text encoders as a CLIP."""
    encoders = dict(zip(("clip_l", "clip_g"), family.load_text_encoders(), strict=True))
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    options: dict[str, Any] = {
        f"{name}_model_config": {key: getattr(encoder.config, key) for key in kept}
        for name, encoder in encoders.items()
    }
    target = comfy.supported_models_base.ClipTarget(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel)
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={**options, "dtype": torch.float32},
    )
    for name, encoder in encoders.items():
        getattr(clip.cond_stage_model, name).load_sd(_text_state(encoder))
    return clip


def _text_state(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the encoder's weights by their names in the original files, in every release of transformers."""
    state = encoder.state_dict()
    return {name if name.startswith("text_") else f"text_model.{name}": value for name, value in state.items()}


def load_vae() -> Any:
    """Return the embedded autoencoder as a VAE."""
    autoencoder = family.load_vae()
    config = autoencoder.config
    widths = config["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": 256,
        "in_channels": config["in_channels"],
        "out_ch": config["out_channels"],
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    vae = comfy.sd.VAE(
        sd=autoencoder.state_dict(),
        config={"params": {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}},
        dtype=torch.float32,
    )
    _set_groups(vae.first_stage_model, config["norm_num_groups"])
    return vae


def _set_groups(model: torch.nn.Module, groups: int) -> None:
    """Set the number of groups: ComfyUI builds every group normalization with 32, whatever the weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = groups
