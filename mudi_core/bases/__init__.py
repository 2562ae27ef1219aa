"""The promises of a base model, and those who keep them: SDXL, SD, the embedded family."""
