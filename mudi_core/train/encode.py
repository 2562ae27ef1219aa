"""Images and captions through a VAE and text encoders: in batches, each once, and kept on disk by content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..bases.promise import EncodeImage, EncodeText
from ..types import MudiError
from .cache import Cache, content_key

OnEncoded = Callable[[str, int, int], None]
"""``(stage, done, total)``; the stages are "images" and "captions"."""

_PIXELS_AT_ONCE = 2 * 1024 * 1024
_CAPTIONS_AT_ONCE = 16


class BadEncoding(MudiError):
    """A VAE or text encoder whose answer cannot be trained on."""


class Encoder:
    """Both encoders of a checkpoint, with what they said before.

    A cached answer's key is the content and the encoder's answer to a fixed probe, so another VAE or another text
    encoder never finds the first one's files.
    """

    def __init__(self, encode_image: EncodeImage, encode_text: EncodeText, cache: Cache) -> None:
        self._encode_image, self._encode_text, self._cache = encode_image, encode_text, cache
        self._image_probe = self._text_probe = ""
        if cache.folder is not None:
            self._image_probe = content_key(*self._latents([torch.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3)]))
            self._text_probe = content_key(*self._contexts(["a photo"]))

    @property
    def identity(self) -> str:
        """Tells these encoders from others, where there is a cache."""
        return self._image_probe + self._text_probe

    def images(
        self, images: Iterable[Tensor], sizes: Sequence[tuple[int, int]], on_step: OnEncoded | None
    ) -> tuple[Tensor, ...]:
        """Latents ``[c, h/8, w/8]``, float32 on the CPU, of images ``[h,w,3]`` drawn one by one.

        ``sizes``: width and height of each image, in pixels.
        """
        cells = [width * height // 64 for width, height in sizes]
        # One block for all: many small ones between large pictures would leave the memory full of holes.
        block, latents, done = torch.empty(0), [torch.empty(0)] * len(sizes), 0
        waiting: list[tuple[int, Tensor, str]] = []

        def keep(i: int, latent: Tensor) -> None:
            nonlocal block, done
            if done == 0:
                block = torch.empty(latent.shape[0] * sum(cells))
                parts = torch.split(block, [latent.shape[0] * count for count in cells])
                for place, (part, (width, height)) in enumerate(zip(parts, sizes, strict=True)):
                    latents[place] = part.reshape(-1, height // 8, width // 8)
            latents[i].copy_(latent)
            done += 1

        def flush() -> None:
            width, height = sizes[waiting[0][0]]
            encoded = self._latents([image for _, image, _ in waiting])
            if encoded.shape[2:] != (height // 8, width // 8):
                raise BadEncoding(
                    f"The VAE makes latents of {list(encoded.shape[2:])} from images of {width}x{height} px; training "
                    "needs one that shrinks 8 times, as Stable Diffusion's does."
                )
            for (i, _, key), latent in zip(waiting, encoded, strict=True):
                keep(i, latent)
                self._cache.write(key, {"latent": latent})
            waiting.clear()

        for i, image in enumerate(images):
            if waiting and sizes[waiting[0][0]] != sizes[i]:
                flush()
            key = content_key(self._image_probe, image) if self._cache.folder is not None else ""
            if kept := self._kept(key, {"latent"}):
                keep(i, kept["latent"])
            else:
                waiting.append((i, image, key))
            at_once = max(1, min(32, _PIXELS_AT_ONCE // (sizes[i][0] * sizes[i][1])))
            if len(waiting) == at_once or (waiting and i == len(sizes) - 1):
                flush()
            if on_step is not None:
                on_step("images", done, len(sizes))
        return tuple(latents)

    def texts(self, captions: Sequence[str], on_step: OnEncoded | None) -> tuple[Tensor, Tensor]:
        """Contexts ``[m,77,d]`` and pooled ``[m,p]``, float32 on the CPU, of ``m`` different captions."""
        keys = [content_key(self._text_probe, caption) for caption in captions]
        done = {i: kept for i, key in enumerate(keys) if (kept := self._kept(key, {"context", "pooled"}))}
        todo = [i for i in range(len(captions)) if i not in done]
        for first in range(0, len(todo), _CAPTIONS_AT_ONCE):
            batch = todo[first : first + _CAPTIONS_AT_ONCE]
            contexts, pooled = self._contexts([captions[i] for i in batch])
            for i, context, pool in zip(batch, contexts, pooled, strict=True):
                done[i] = {"context": context.clone(), "pooled": pool.clone()}
                self._cache.write(keys[i], done[i])
            if on_step is not None:
                on_step("captions", len(done), len(captions))
        both = [done[i] for i in range(len(captions))]
        return torch.stack([one["context"] for one in both]), torch.stack([one["pooled"] for one in both])

    def _latents(self, images: list[Tensor]) -> Tensor:
        with torch.no_grad():
            latents = self._encode_image(torch.stack(images).float()).detach().to("cpu", torch.float32)
        if not latents.isfinite().all():
            raise BadEncoding(
                "The VAE answered a training image with NaN. SDXL's VAE overflows in float16: load it in float32 or "
                "bfloat16."
            )
        return latents

    def _contexts(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            context, pooled = self._encode_text(captions)
        context, pooled = (value.detach().to("cpu", torch.float32) for value in (context, pooled))
        if not (context.isfinite().all() and pooled.isfinite().all()):
            raise BadEncoding("The text encoders answered with NaN. Load them in float32 or bfloat16.")
        return context, pooled

    def _kept(self, key: str, names: set[str]) -> dict[str, Tensor] | None:
        found = self._cache.read(key) if key else None
        return found[0] if found is not None and found[0].keys() == names else None
