"""Reference adapters: pictures of subjects that the cross-attention looks at beside the text.

MS-Diffusion (Wang et al., arXiv 2406.07209), IP-Adapter (Ye et al., arXiv 2308.06721) and MIP-Adapter (Huang et al.,
arXiv 2409.17920) by their own files: what an image encoder sees becomes a few tokens for each reference
(`projector`), and these become keys and values of each layer (`adapter`), whose answer is added to the text's (`worn`).
"""

from __future__ import annotations
