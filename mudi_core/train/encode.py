"""Images and captions through a VAE and text encoders: in batches, each once, and cached on disk by content."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..bases.promise import Conditions, EncodeImage, EncodeText
from ..types import MudiError
from .cache import Cache, content_key

OnEncoded = Callable[[str, int, int], None]
"""``(stage, done, total)``; the stages are "images" and "captions"."""

_PIXELS_AT_ONCE = 2 * 1024 * 1024
_CAPTIONS_AT_ONCE = 16


class BadEncoding(MudiError):
    """A VAE or text encoder whose output cannot be used for training."""


class Encoder:
    """The VAE and the text encoders of a checkpoint, with a cache of their outputs.

    The key of a cached output is the content and the encoder's output for a fixed probe, so another VAE or text encoder
    never finds these files.
    """

    def __init__(self, encode_image: EncodeImage, encode_text: EncodeText, cache: Cache) -> None:
        self._encode_image, self._encode_text, self._cache = encode_image, encode_text, cache
        self._image_probe = self._text_probe = ""
        self._names: set[str] = set()
        """The names of the tensors that the text encoders return for a caption."""
        if cache.folder is not None:
            self._image_probe = content_key(*self._latents([torch.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3)]))
            conditions = self._conditions(["a photo"])[0]
            self._names = set(conditions)
            self._text_probe = content_key(*(part for one in conditions.items() for part in one))

    @property
    def identity(self) -> str:
        """Return a text that differs for other encoders, or "" without a cache."""
        return self._image_probe + self._text_probe

    def images(
        self, images: Iterable[Tensor], sizes: Sequence[tuple[int, int]], on_step: OnEncoded | None
    ) -> tuple[Tensor, ...]:
        """Encode images ``[h, w, 3]`` one by one: return latents ``[c, ..., h/f, w/f]``, float32 on the CPU.

        ``sizes``: width and height of each image, in pixels; ``f`` is the factor by which the VAE shrinks them. Raise
        `BadEncoding`.
        """
        # One block for all: many small ones between large pictures would fragment the memory.
        latents, done = [torch.empty(0)] * len(sizes), 0
        waiting: list[tuple[int, Tensor, str]] = []

        def keep(i: int, latent: Tensor) -> None:
            nonlocal done
            if done == 0:
                latents[:] = _room(latent, sizes[i], sizes)
            if latent.shape != latents[i].shape:
                raise _other_size(latent, sizes[i])
            latents[i].copy_(latent)
            done += 1

        def flush() -> None:
            encoded = self._latents([image for _, image, _ in waiting])
            for (i, _, key), latent in zip(waiting, encoded, strict=True):
                keep(i, latent)
                self._cache.write(key, {"latent": latent})
            waiting.clear()

        for i, image in enumerate(images):
            if waiting and sizes[waiting[0][0]] != sizes[i]:
                flush()
            key = content_key(self._image_probe, image) if self._cache.folder is not None else ""
            if cached := self._cached(key, {"latent"}):
                keep(i, cached["latent"])
            else:
                waiting.append((i, image, key))
            at_once = max(1, min(32, _PIXELS_AT_ONCE // (sizes[i][0] * sizes[i][1])))
            if len(waiting) == at_once or (waiting and i == len(sizes) - 1):
                flush()
            if on_step is not None:
                on_step("images", done, len(sizes))
        return tuple(latents)

    def texts(self, captions: Sequence[str], on_step: OnEncoded | None) -> tuple[Conditions, ...]:
        """Return the conditions of captions on the CPU, in float32 but for whole numbers. Raise `BadEncoding`."""
        keys = [content_key(self._text_probe, caption) for caption in captions]
        done: dict[int, Conditions] = {
            i: cached for i, key in enumerate(keys) if (cached := self._cached(key, self._names))
        }
        todo = [i for i in range(len(captions)) if i not in done]
        for first in range(0, len(todo), _CAPTIONS_AT_ONCE):
            batch = todo[first : first + _CAPTIONS_AT_ONCE]
            for i, conditions in zip(batch, self._conditions([captions[i] for i in batch]), strict=True):
                done[i] = conditions
                self._cache.write(keys[i], dict(conditions))
            if on_step is not None:
                on_step("captions", len(done), len(captions))
        return tuple(done[i] for i in range(len(captions)))

    def _latents(self, images: list[Tensor]) -> Tensor:
        with torch.no_grad():
            latents = self._encode_image(torch.stack(images).float()).detach().to("cpu", torch.float32)
        if not latents.isfinite().all():
            raise BadEncoding(
                "The VAE returned NaN for a training image. SDXL's VAE overflows in float16: load it in float32 or "
                "bfloat16."
            )
        return latents

    def _conditions(self, captions: list[str]) -> list[Conditions]:
        with torch.no_grad():
            answers = self._encode_text(captions)
        found = [{name: _kept(value) for name, value in one.items()} for one in answers]
        if not all(value.isfinite().all() for one in found for value in one.values()):
            raise BadEncoding("The text encoders returned NaN. Load them in float32 or bfloat16.")
        return list(found)

    def _cached(self, key: str, names: set[str]) -> dict[str, Tensor] | None:
        found = self._cache.read(key) if key else None
        return found[0] if found is not None and found[0].keys() == names else None


def _kept(value: Tensor) -> Tensor:
    """Return a copy on the CPU, in float32 unless it holds whole numbers, such as token ids."""
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype).clone()


def _room(latent: Tensor, size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return parts of one block, without values, for the latents of all ``sizes``; ``latent`` is of one ``size``."""
    *inner, height, width = latent.shape
    shrinks = size[0] // width
    if (width * shrinks, height * shrinks) != size:
        raise _other_size(latent, size)
    shapes = [(*inner, h // shrinks, w // shrinks) for w, h in sizes]
    numbers = [math.prod(shape) for shape in shapes]
    parts = torch.split(torch.empty(sum(numbers)), numbers)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _other_size(latent: Tensor, size: tuple[int, int]) -> BadEncoding:
    return BadEncoding(
        f"The VAE makes latents of {list(latent.shape[-2:])} from images of {size[0]}x{size[1]} px. Training needs one "
        "that shrinks every image by the same whole number: choose another resolution, such as a multiple of 64."
    )
