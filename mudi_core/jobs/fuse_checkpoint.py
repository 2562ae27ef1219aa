"""A base model of the command line as one that LoRAs are fused for: diffusers' U-Net and the text encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bases.checkpoint import Checkpoint
from ..bases.sampling import sample
from ..bases.text import places_of
from ..lora.concepts import Concept, fused_metadata
from ..lora.file import save_lora
from ..lora.names import TEXT, UNET
from ..lora.reading import Lora
from ..lora.wear import Worn, layers_of, sizes_of, worn
from ..progress import Progress, silent
from .from_loras import Painting
from .fuse import fuse
from .fusion import FuseConfig, Fused
from .generate import GenerateConfig, draw_noise, generate_plain
from .one_figure import Sample


class CheckpointToFuse:
    """A `fuse.FusionBase`. Afterwards the checkpoint is as it was."""

    def __init__(self, checkpoint: Checkpoint, size: tuple[int, int] | None = None) -> None:
        """``size``: width and height of the pictures that the layers are listened to on; None: the model's own."""
        self._checkpoint = checkpoint
        self._size = size or (checkpoint.side, checkpoint.side)
        self.name, self.family = checkpoint.name, checkpoint.family
        self._networks: dict[str, Any] = {
            UNET: checkpoint.unet,
            **dict(zip(TEXT, checkpoint.text_encoders, strict=False)),
        }
        self._layers = {
            name: layer
            for prefix, network in self._networks.items()
            for name, layer in layers_of(network, prefix).items()
        }

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return rows of the weight and values in each, by our name of every layer."""
        return {
            name: size for prefix, network in self._networks.items() for name, size in sizes_of(network, prefix).items()
        }

    def linear_layers(self) -> dict[str, nn.Module]:
        """Return the linear layers by our name."""
        return {name: layer for name, layer in self._layers.items() if isinstance(layer, nn.Linear)}

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer."""
        weight = self._layers[layer].weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    @contextmanager
    def wearing(self, *loras: Worn) -> Iterator[None]:
        """Inside the block the network and the text encoders have the changes of some LoRAs."""
        with ExitStack() as stack:
            for prefix, network in self._networks.items():
                stack.enter_context(worn(network, *loras, prefix=prefix))
            yield

    def read(self, captions: Sequence[str]) -> None:
        """Send captions through the text encoders, for those who listen to their layers."""
        with torch.no_grad():
            self._checkpoint.encode_text(captions)

    def words(self, captions: Sequence[str], names: Sequence[str]) -> Tensor:
        """Return the context's rows of the names' words and of the end in each caption, ``[n, d]``."""
        with torch.no_grad():
            contexts, _ = self._checkpoint.encode_text(captions)
        tokenizer = self._checkpoint.tokenizers[0]
        rows = []
        for caption, context in zip(captions, contexts, strict=True):
            ids = tokenizer(caption, truncation=True).input_ids
            parts = [tokenizer(name, add_special_tokens=False).input_ids for name in names]
            rows.append(context[places_of(parts, ids) + [len(ids) - 1]])
        return torch.cat(rows)

    def paint(self, caption: str, steps: int, seed: int, number: int, on_step: Callable[[int, int], None]) -> None:
        """Sample a picture, for those who listen to the network's layers."""
        checkpoint, (width, height) = self._checkpoint, self._size
        with torch.no_grad():
            contexts, pooled = (values.to(checkpoint.device) for values in checkpoint.encode_text([caption, ""]))
            noise = draw_noise(seed, number, (1, 4, height // checkpoint.vae_factor, width // checkpoint.vae_factor))
            sample(checkpoint, contexts, pooled, noise, steps, 1.0, lambda step: on_step(step, steps))


def fuse_to_file(
    concepts: Sequence[Concept], checkpoint: Checkpoint, config: FuseConfig, out: Path, progress: Progress = silent
) -> Fused:
    """Fuse LoRAs for a base model and write the file. Raise as `fuse.fuse` and `lora.file.save_lora` do."""
    fused = fuse(concepts, CheckpointToFuse(checkpoint), config, progress)
    about = fused_metadata(
        concepts, config.described(), base=checkpoint.name, family=checkpoint.family, side=checkpoint.side
    )
    save_lora(out, fused.state(), about, style=checkpoint.usual.file_names)
    return fused


@contextmanager
def wearing(
    checkpoint: Checkpoint, lora: Lora | None, strength: float = 1.0, text_strength: float | None = None
) -> Iterator[None]:
    """Inside the block the base model has a LoRA of any kind on it, in its very weights; None: none.

    ``text_strength``: of its part for the text encoders; None: the same. Raise `BadLora` where nothing of it fits.
    """
    if lora is None:
        yield
        return
    base = CheckpointToFuse(checkpoint)
    changes = lora.on(base.sizes(), checkpoint.name).changes
    text = {name: change for name, change in changes.items() if name.startswith(TEXT)}
    network = {name: change for name, change in changes.items() if name not in text}
    with base.wearing((network, strength), (text, strength if text_strength is None else text_strength)):
        yield


def painting(checkpoint: Checkpoint, config: GenerateConfig) -> Painting:
    """Return how a base model paints with a LoRA: by its plain sampler, all but prompt and seed as ``config`` says."""

    @contextmanager
    def paint(concept: Concept) -> Iterator[Sample]:
        with wearing(checkpoint, concept.lora, concept.strength, concept.text_strength):
            yield lambda prompt, seed: generate_plain(checkpoint, replace(config, prompt=prompt, seed=seed))

    return paint
