"""What a cross-attention sees of references, position by position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..attend import apart


def look(q: Tensor, keys: Tensor, values: Tensor, weights: Tensor, heads: int) -> Tensor:
    """Return the attention ``[b, p, c]`` of q ``[b, p, c]`` to references' keys and values ``[b, n, t, c]``.

    ``weights``: float ``[b, p, n]``, 0..1: how much of each reference a position sees. With 0 and 1 it is
    MS-Diffusion's masked attention (section 3.3): one softmax over the tokens of all references that are seen there,
    and nothing where none is. Between, a reference's share in the softmax is smaller, and the whole where the weights
    sum to less than 1.
    """
    tokens = keys.shape[2]
    seen = weights.sum(-1, keepdim=True)
    logs = torch.where(weights > 0, weights.clamp(min=1e-30).float().log(), torch.finfo(torch.float32).min)
    logs = torch.where(seen > 0, logs, 0.0).to(q.dtype).clamp(min=torch.finfo(q.dtype).min)
    bias = logs.repeat_interleave(tokens, -1)[:, None]
    k, v = keys.flatten(1, 2), values.flatten(1, 2)
    found: Tensor = scaled_dot_product_attention(apart(q, heads), apart(k, heads), apart(v, heads), attn_mask=bias)
    return found.transpose(1, 2).flatten(2) * seen.clamp(max=1)
