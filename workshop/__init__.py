"""How the embedded weights are made and judged. Not part of the published pack."""
