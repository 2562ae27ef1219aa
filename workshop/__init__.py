"""How the embedded weights were made and judged. Not part of the published pack."""
