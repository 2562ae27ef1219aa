"""The LoRA on a model's layers, and its file."""
