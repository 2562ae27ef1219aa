"""What a method does inside a network's attention, as functions of queries, keys, values and regions.

`layer.Layer` composes everything that is worn at one attention layer. Shapes: ``b`` rows of a call (pictures times
prompts), ``p`` positions of a layer (its height times its width), ``t`` tokens of a prompt, ``c`` channels.
"""

from __future__ import annotations
