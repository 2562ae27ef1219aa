"""Images and captions through a VAE and text encoders: in batches, each once, and kept on disk by content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..types import MudiError
from .tensor_file import BadTensorFile, read_tensors, write_tensors

log = logging.getLogger(__name__)

EncodeImage = Callable[[Tensor], Tensor]
"""Float ``[b,h,w,3]``, 0..1 -> the VAE's mode ``[b,c,h/8,w/8]``, unscaled."""
EncodeText = Callable[[list[str]], tuple[Tensor, Tensor]]
"""``n`` captions -> context ``[n,77,d]`` and pooled ``[n,p]``."""

_PIXELS_AT_ONCE = 2 * 1024 * 1024
_CAPTIONS_AT_ONCE = 16


class BadEncoding(MudiError):
    """A VAE or text encoder whose answer cannot be trained on."""


class Encoder:
    """Both encoders of a checkpoint, with an optional folder of what they said before.

    A file's name is the SHA-256 of the content and of the encoder's answer to a fixed probe, so another VAE or another
    text encoder never finds the first one's files.
    """

    def __init__(
        self, encode_image: EncodeImage, encode_text: EncodeText, cache_dir: Path | None, size: tuple[int, int]
    ) -> None:
        """``size``: width and height of the images, in pixels."""
        self._encode_image, self._encode_text = encode_image, encode_text
        self._cache_dir, self._size = cache_dir, size

    def images(self, images: Iterable[Tensor], total: int, on_step: Callable[[str, int, int], None] | None) -> Tensor:
        """Latents ``[total, c, h/8, w/8]``, float32 on the CPU, of ``total`` images ``[h,w,3]`` drawn one by one."""
        width, height = self._size
        at_once = max(1, min(32, _PIXELS_AT_ONCE // (width * height)))
        probe = self._probe(lambda: [self._latents([torch.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3)])])
        # One block for all: many small ones between large pictures would leave the memory full of holes.
        latents, done = torch.empty(0), 0
        waiting: list[tuple[int, Tensor, Path | None]] = []

        def keep(i: int, latent: Tensor) -> None:
            nonlocal latents, done
            if done == 0:
                latents = torch.empty(total, *latent.shape)
            latents[i] = latent
            done += 1

        def flush() -> None:
            encoded = self._latents([image for _, image, _ in waiting])
            if encoded.shape[2:] != (height // 8, width // 8):
                raise BadEncoding(
                    f"The VAE makes latents of {list(encoded.shape[2:])} from images of {width}x{height} px; training "
                    "needs one that shrinks 8 times, as SDXL's does."
                )
            for (i, _, file), latent in zip(waiting, encoded, strict=True):
                keep(i, latent)
                self._write(file, {"latent": latent})
            waiting.clear()

        for i, image in enumerate(images):
            file = self._file(probe, image, repr(tuple(image.shape)).encode())
            if kept := self._read(file, {"latent"}):
                keep(i, kept["latent"])
            else:
                waiting.append((i, image, file))
            if len(waiting) == at_once or (waiting and i == total - 1):
                flush()
            if on_step is not None:
                on_step("images", done, total)
        return latents

    def texts(self, captions: Sequence[str], on_step: Callable[[str, int, int], None] | None) -> tuple[Tensor, Tensor]:
        """Contexts ``[m,77,d]`` and pooled ``[m,p]``, float32 on the CPU, of ``m`` different captions."""
        probe = self._probe(lambda: self._contexts(["a photo"]))
        files = [self._file(probe, caption.encode()) for caption in captions]
        done = {i: kept for i, file in enumerate(files) if (kept := self._read(file, {"context", "pooled"}))}
        todo = [i for i in range(len(captions)) if i not in done]
        for first in range(0, len(todo), _CAPTIONS_AT_ONCE):
            batch = todo[first : first + _CAPTIONS_AT_ONCE]
            contexts, pooled = self._contexts([captions[i] for i in batch])
            for i, context, pool in zip(batch, contexts, pooled, strict=True):
                done[i] = {"context": context.clone(), "pooled": pool.clone()}
                self._write(files[i], done[i])
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

    def _probe(self, answer: Callable[[], Iterable[Tensor]]) -> bytes:
        if self._cache_dir is None:
            return b""
        return b"".join(value.contiguous().numpy().tobytes() for value in answer())

    def _file(self, *content: bytes | Tensor) -> Path | None:
        if self._cache_dir is None:
            return None
        digest = hashlib.sha256()
        for part in content:
            part = part if isinstance(part, bytes) else part.contiguous().numpy().tobytes()
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return Path(self._cache_dir) / f"{digest.hexdigest()}.safetensors"

    def _read(self, file: Path | None, keys: set[str]) -> dict[str, Tensor] | None:
        if file is None or not file.exists():
            return None
        try:
            tensors, _ = read_tensors(file)
        except BadTensorFile as error:
            log.warning("%s It is made again.", error)
            return None
        return tensors if tensors.keys() == keys else None

    def _write(self, file: Path | None, tensors: dict[str, Tensor]) -> None:
        if file is not None:
            write_tensors(file, tensors, {})
