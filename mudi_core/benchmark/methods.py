"""The methods that a benchmark compares: what each trains, and whether it starts from the subjects' cut-outs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..stage.layout_config import LayoutConfig


@dataclass(frozen=True)
class Rival:
    """One way to make the pictures."""

    title: str
    lora: str
    """The name of the training: rivals with the same name share it."""
    train: Mapping[str, Any]
    """The settings of `TrainConfig` that define it."""
    with_start: bool = False
    """Start from the subjects' cut-outs (paper section 4.2), not from plain noise."""
    general: bool = False
    """Name the subjects by the combo's general noun, not by their own class nouns (paper section 5)."""
    wears: Literal["", "regions", "guidance", "references", "merge"] = ""
    """What acts in attention: Mix-of-Show's regions, Cones 2's layout guidance, a reference adapter where the subjects
    stand, or one whose answers are merged by the subjects' words (MIP-Adapter)."""
    singles: Literal["", "stacked", "fused", "decoupled", "separate"] = ""
    """How LoRAs of single subjects come together; empty: one is trained on all subjects. "decoupled": fused, and then
    trained on compositions of pictures that each LoRA paints of its subject (paper, 5.4 and C.2)."""
    residual: bool = False
    """What is trained is a residual token embedding of each subject (Cones 2), added at its class word."""

    @property
    def zero_shot(self) -> bool:
        """Whether nothing is trained, so that no token means anybody."""
        return not self.lora

    @property
    def by_noun(self) -> bool:
        """Whether prompts name the subjects by their class nouns alone."""
        return self.zero_shot or self.residual

    @property
    def in_attention(self) -> bool:
        """Whether anything acts in the U-Net's attention."""
        return bool(self.wears) or self.singles == "separate"

    @property
    def keeps_places(self) -> bool:
        """Whether what acts in attention is told where each subject stands; MIP's merge goes by words alone."""
        return self.in_attention and self.wears != "merge"


_DREAMBOOTH = {"method": "dreambooth"}
_OTHERS = {
    "regions": Rival("Region control", "dreambooth", _DREAMBOOTH, wears="regions"),
    "guidance": Rival("Layout guidance", "dreambooth", _DREAMBOOTH, wears="guidance"),
    "residual": Rival("Cones 2 residual", "residual", {}, residual=True),
    "cones2": Rival("Cones 2: residual and layout guidance", "residual", {}, wears="guidance", residual=True),
    "references": Rival("Reference adapter", "", {}, wears="references"),
    "merge": Rival("MIP merge", "", {}, wears="merge"),
    "stacked": Rival("Stacked LoRAs", "singles", _DREAMBOOTH, singles="stacked"),
    "fused": Rival("Fused LoRAs", "singles", _DREAMBOOTH, singles="fused"),
    "decoupled": Rival("Fused and decoupled LoRAs", "singles", _DREAMBOOTH, singles="decoupled"),
    "mix_of_show": Rival(
        "Mix-of-Show: fused LoRAs and region control", "singles", _DREAMBOOTH, wears="regions", singles="fused"
    ),
    "separate": Rival("Separate LoRAs", "singles", _DREAMBOOTH, singles="separate"),
}
"""Systems that act at another place than MuDI does, so that its start can join them."""

METHODS: dict[str, Rival] = {
    "textual_inversion": Rival(
        "Textual Inversion",
        "textual_inversion",
        {"method": "dreambooth", "target_modules": (), "learn_tokens": True},
    ),
    "dreambooth": Rival("DreamBooth", "dreambooth", _DREAMBOOTH),
    "custom_diffusion": Rival(
        "Custom Diffusion",
        "custom_diffusion",
        {"method": "dreambooth", "target_modules": ("attn2.to_k", "attn2.to_v"), "learn_tokens": True},
    ),
    "cutmix": Rival("Cut-Mix", "cutmix", {"method": "cutmix"}),
    "segmix": Rival("MuDI without start", "segmix", {"method": "segmix"}),
    "general": Rival(
        "MuDI without descriptive class", "segmix_general", {"method": "segmix"}, with_start=True, general=True
    ),
    "apart": Rival(
        "MuDI without overlap",
        "segmix_apart",
        {"method": "segmix", "layout": LayoutConfig(max_overlap=0.0)},
        with_start=True,
    ),
    "dco": Rival("MuDI with DCO", "segmix_dco", {"method": "segmix", "dco_beta": 1000.0}, with_start=True),
    "mudi": Rival("MuDI", "segmix", {"method": "segmix"}, with_start=True),
    **_OTHERS,
    **{
        f"{name}_start": replace(rival, title=f"{rival.title}, our start", with_start=True)
        for name, rival in _OTHERS.items()
    },
}
"""The rivals by their names in a spec. They share photos, steps, seeds and noise."""
