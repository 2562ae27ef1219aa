"""Parts worn in a MODEL's attention, put on when the network is called.

A wrapper of ComfyUI's ``apply_model`` holds them all and composes them around whatever other nodes have put there by
then, before or after. So the order of nodes does not matter, nothing of ours stands at a key where another pack could
stumble over it, and what other MODELs share is as it was after every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy.ldm.modules import attention
from torch import Tensor

from ...mudi_core.attention.beside import beside_attention
from ...mudi_core.attention.call import Call
from ...mudi_core.attention.layer import Layer, Part
from ...mudi_core.attention.lora import loras_of
from .blocks import Key, blocks_of
from .timed import Timed, Worn


def with_part(model: Any, part: Part, start: float = 0.0, end: float = 1.0) -> Any:
    """Return a clone of the MODEL that also wears a part, from one share of the sampling to another, 0..1.

    Raise `BadModel` for a MODEL whose attention is not SD's or SDXL's.
    """
    return _Worn.on(model, Timed(part, start, end), blocks=blocks_of(model))


@dataclass(frozen=True, eq=False)
class _Worn(Worn[Part]):
    """Everything of ours that a U-Net wears in its attention."""

    KEY = "mudi_attention"
    blocks: dict[Key, str]

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, concat: Any, context: Any, control: Any, options: dict[str, Any],
        **named: Any,
    ) -> Any:  # fmt: skip
        sampling, now = executor.class_obj.model_sampling, float(sigma.max())
        parts = [one.part for one in self.parts if one.is_on(sampling, now)]
        if not parts:
            return executor(x, sigma, concat, context, control, options, **named)
        for part in parts:
            part.check((x.shape[-2], x.shape[-1]))
        call, network = Call.of(options["cond_or_uncond"], sigma), executor.class_obj.diffusion_model
        options = _Composed(parts, self.blocks, call, options).options()
        with beside_attention(network, loras_of(parts), lambda: call):
            return executor(x, sigma, concat, context, control, options, **named)


@dataclass(eq=False)
class _Composed:
    """The patches of one call."""

    parts: list[Part]
    blocks: dict[Key, str]
    call: Call
    theirs: dict[str, Any]
    """The ``transformer_options`` as other nodes have left them."""
    _layer: Layer | None = None
    """The one that computes."""
    _kinds: list[int] = field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """Return the ``transformer_options`` with our patches: before q, k and v last, and behind them first."""
        self._kinds = list(self.theirs["cond_or_uncond"])
        patches = {name: list(some) for name, some in self.theirs.get("patches", {}).items()}
        replaces = {name: dict(some) for name, some in self.theirs.get("patches_replace", {}).items()}
        loras = loras_of(self.parts)
        for name in ("attn1", "attn2"):
            cross = name == "attn2"
            keys = {
                key
                for key, block in self.blocks.items()
                if (cross and len(loras) < len(self.parts)) or any(part.touches(f"{block}{name}.") for part in loras)
            }
            if not keys:
                continue
            patches[f"{name}_patch"] = [*patches.get(f"{name}_patch", []), self._before(name, keys)]
            patches[f"{name}_output_patch"] = [self._after(keys), *patches.get(f"{name}_output_patch", [])]
            there = replaces.setdefault(name, {})
            there |= {key: self._attention(there.get(key, there.get(key[:2]))) for key in keys}
        return {**self.theirs, "patches": patches, "patches_replace": replaces}

    def _before(self, name: str, keys: set[Key]) -> Callable[..., Any]:
        def patch(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            key = _key(extra)
            if key not in keys:
                return n, context, value
            height, width = extra["activations_shape"][-2:]
            cross = name == "attn2"
            self._layer = Layer(self.parts, self.call, f"{self.blocks[key]}{name}.", cross, (height, width))
            return self._layer.before(n, context, context if value is None else value)

        return patch

    def _attention(self, theirs: Any) -> Callable[..., Tensor]:
        def replace(q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
            assert self._layer is not None
            heads = extra["n_heads"]

            def plain(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...]) -> Tensor:
                precision = extra["attn_precision"]
                found: Tensor = attention.optimized_attention(
                    q, k, v, heads, attn_precision=precision, transformer_options=extra
                )
                return found

            def other(q: Tensor, k: Tensor, v: Tensor, rows: tuple[int, ...]) -> Tensor:
                found: Tensor = theirs(q, k, v, {**extra, "cond_or_uncond": self._of(rows)})
                return found

            return self._layer.attention(q, k, v, heads, plain, None if theirs is None else other)

        return replace

    def _after(self, keys: set[Key]) -> Callable[..., Tensor]:
        def patch(n: Tensor, extra: dict[str, Any]) -> Tensor:
            return self._layer.after(n) if self._layer is not None and _key(extra) in keys else n

        return patch

    def _of(self, rows: tuple[int, ...]) -> list[int]:
        """Return ``cond_or_uncond`` of some rows, of whole prompts."""
        each = len(self.call.pictures) // len(self._kinds)
        return [kind for place, kind in enumerate(self._kinds) if place * each in rows]


def _key(extra: dict[str, Any]) -> Key:
    place, number = extra["block"][:2]
    return place, number, extra["block_index"]
