"""Base models: what they promise, and the models that keep it: SDXL, SD, the embedded family."""
