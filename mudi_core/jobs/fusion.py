"""What a fusion of LoRAs is told, what it asks of a base model, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Literal, Protocol

from torch import Tensor, nn

from ..lora.change import Change
from ..lora.concepts import CannotFuse
from ..lora.fuse import Errors
from ..lora.reading import Matched
from ..lora.wear import Worn

Method = Literal["fuse", "text", "sum"]
"""How LoRAs become one: every layer fused; only the text encoders and the layers that read the text, the others added
up; or all added up, as stacked loaders do."""


@dataclass(frozen=True)
class FuseConfig:
    """How to fuse. Raises `CannotFuse`, which names the setting and its range."""

    method: Method = "fuse"
    rank: int = 0
    """Most ranks of a layer; 0: all that the concepts have together, which is exact."""
    pictures: int = 1
    """Pictures of each concept that the layers are listened to on."""
    steps: int = 20
    rows: int = 4096
    """Inputs of each layer that are kept of each picture, of all steps together."""
    ridge: float | None = None
    """Lambda of `lora.fuse.Fusion`; None: its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("rank", 0, 1024), ("pictures", 1, 16), ("steps", 1, 200), ("rows", 64, 1_000_000)):
            if not least <= getattr(self, name) <= most:
                raise CannotFuse(f"{name} is {getattr(self, name)}; it must be {least} to {most}.")
        if self.ridge is not None and not 0 <= self.ridge <= 1:
            raise CannotFuse(f"ridge is {self.ridge:g}; it must be 0 to 1.")

    def described(self) -> dict[str, str]:
        """Return the settings as texts, for a file's metadata."""
        return {key: str(value) for key, value in asdict(self).items()}


class FusionBase(Protocol):
    """A base model that LoRAs are fused for."""

    @property
    def name(self) -> str:
        """Its name for users."""

    @property
    def family(self) -> str:
        """kohya's name of its architecture."""

    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """Return rows of the weight and values in each, of every layer that a LoRA may change, by our name."""

    def linear_layers(self) -> Mapping[str, nn.Module]:
        """Return the linear layers of the network and the text encoders, by our name."""

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer without any LoRA."""

    def wearing(self, *loras: Worn) -> AbstractContextManager[None]:
        """Inside the block the network and the text encoders have these changes."""

    def read(self, captions: Sequence[str]) -> None:
        """Let the text encoders read captions."""

    def words(self, captions: Sequence[str], names: Sequence[str]) -> Tensor:
        """Return what the network reads of these names and of the end of each caption: float ``[n, d]``."""

    def paint(self, caption: str, steps: int, seed: int, number: int, on_step: Callable[[int, int], None]) -> None:
        """Sample picture ``number`` of a seed, without guidance."""


@dataclass(frozen=True, eq=False)
class Fused:
    """One LoRA of several."""

    changes: Mapping[str, Change]
    errors: Mapping[str, tuple[Errors, Errors]]
    """By part of the model: of the plain sum, and of this LoRA. Empty where nothing was measured."""
    matched: tuple[Matched, ...]
    """What fits of each concept."""
    added_up: int
    """Layers whose changes are added up, since they are no linear layers or were never called."""

    def relative(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return for each concept the error of the plain sum and of this LoRA over all layers; None: not measured."""
        if not self.errors:
            return None
        plain, ours = zip(*self.errors.values(), strict=True)
        return reduce(Errors.__add__, plain).relative, reduce(Errors.__add__, ours).relative

    def state(self) -> dict[str, Tensor]:
        """Return its tensors by our names of the layers."""
        return {key: value for name, change in self.changes.items() for key, value in change.tensors(name).items()}
