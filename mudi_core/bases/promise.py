"""What a base model promises to the rest of the library."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

EncodeImage = Callable[[Tensor], Tensor]
"""Float ``[b,h,w,3]``, 0..1 -> the VAE's mode ``[b,c,h/8,w/8]``, unscaled."""
EncodeText = Callable[[list[str]], tuple[Tensor, Tensor]]
"""``n`` captions -> context ``[n,77,d]`` and pooled ``[n,p]``; ``p`` is 0 for SD 1.5 and 2, which have none."""
