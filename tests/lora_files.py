"""Makes `tests/lora_files/`: LoRAs of one layer each by the code of LyCORIS and of kohya's scripts, random weights.

    PYTHONPATH=LYCORIS:SD_SCRIPTS python tests/lora_files.py

LYCORIS is a folder with LyCORIS (4.1.3), SD_SCRIPTS a checkout of kohya-ss/sd-scripts (48d368f). Beside the tensors
under the program's own names each file has ``weight``, the layer's, and ``merged``, what the program makes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = Path(__file__).parent / "lora_files"
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_1_resnets_0_conv1"


def linear() -> nn.Module:
    return nn.Linear(12, 8, bias=False)


def square() -> nn.Module:
    return nn.Linear(8, 8, bias=False)


def conv() -> nn.Module:
    return nn.Conv2d(6, 8, 3, padding=1, bias=False)


def filled(module: Any) -> Any:
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return module


def lycoris() -> dict[str, tuple[str, Any, Any]]:
    """Name of the file -> the layer's name and weight, LyCORIS' module for it."""
    from lycoris.modules.full import FullModule
    from lycoris.modules.glora import GLoRAModule
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    wanted = {
        "lora": (LoConModule, linear, {"alpha": 2.0}),
        "locon": (LoConModule, conv, {"alpha": 2.0}),
        "locon_tucker": (LoConModule, conv, {"alpha": 1.0, "use_tucker": True}),
        "dora_rows": (LoConModule, linear, {"alpha": 2.0, "weight_decompose": True, "wd_on_out": True}),
        "dora_columns": (LoConModule, linear, {"alpha": 2.0, "weight_decompose": True, "wd_on_out": False}),
        "dora_conv": (LoConModule, conv, {"alpha": 2.0, "weight_decompose": True, "wd_on_out": False}),
        "loha": (LohaModule, linear, {"alpha": 2.0}),
        "loha_conv": (LohaModule, conv, {"alpha": 2.0}),
        "loha_tucker": (LohaModule, conv, {"alpha": 2.0, "use_tucker": True}),
        "lokr": (LokrModule, linear, {"alpha": 2.0, "factor": 2, "lora_dim": 1}),
        "lokr_whole": (LokrModule, linear, {"alpha": 2.0, "factor": 2, "lora_dim": 100}),
        "lokr_both": (LokrModule, linear, {"alpha": 2.0, "factor": 4, "lora_dim": 1, "decompose_both": True}),
        "lokr_conv": (LokrModule, conv, {"alpha": 2.0, "factor": 2}),
        "lokr_tucker": (LokrModule, conv, {"alpha": 2.0, "factor": 2, "lora_dim": 1, "use_tucker": True}),
        # LyCORIS 4.1.3 multiplies GLoRA by its scale twice: alpha is the rank.
        "glora": (GLoRAModule, linear, {"alpha": 4.0}),
        "glora_square": (GLoRAModule, square, {"alpha": 4.0}),
        "glora_conv": (GLoRAModule, conv, {"alpha": 4.0}),
        "full": (FullModule, linear, {}),
    }
    made = {}
    for name, (kind, layer, settings) in wanted.items():
        base = layer()
        here = CONV if base.weight.ndim == 4 else LAYER
        if kind is not FullModule:
            settings = {"lora_dim": 4, **settings}
        module, weight = kind(here, base, 1.0, **settings), base.weight.detach().clone()
        module.apply_to()
        made[name] = here, weight, (base, filled(module))
    return made


def seen(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """The weight that a layer acts as: its answers to inputs with a single 1 (of a picture, those in the middle).

    LyCORIS 4.1.3 trains and answers as here; what its ``get_merged_weight`` returns has LoHa's and LoKr's scale twice.
    """
    wide = weight[0].numel()
    with torch.no_grad():
        if weight.ndim == 2:
            return layer(torch.eye(wide)).T
        lit = torch.eye(wide).reshape(wide, *weight.shape[1:])
        return layer(lit)[:, :, 1, 1].T.reshape(weight.shape)


def kohya() -> dict[str, tuple[str, Any, Any]]:
    """The same of kohya's scripts."""
    from networks.lora import LoRAModule

    made = {}
    for name, layer, here in (("kohya", linear, LAYER), ("kohya_conv", conv, CONV)):
        base = layer()
        module = filled(LoRAModule(here, base, 1.0, 4, 2.0))
        weight = base.weight.detach().clone()
        module.apply_to()
        made[name] = here, weight, (base, module)
    return made


def main() -> None:
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    for name, (here, weight, (layer, module)) in {**lycoris(), **kohya()}.items():
        state = module.custom_state_dict() if hasattr(module, "custom_state_dict") else module.state_dict()
        tensors = {f"{here}.{part}": value for part, value in state.items() if "org" not in part}
        write(name, tensors, weight, seen(layer, weight))


def write(name: str, tensors: dict[str, torch.Tensor], weight: torch.Tensor, merged: torch.Tensor) -> None:
    every = {**tensors, "weight": weight.detach(), "merged": merged.detach()}
    plain = {key: value.detach().float().contiguous().clone() for key, value in every.items()}
    save_file(plain, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()
