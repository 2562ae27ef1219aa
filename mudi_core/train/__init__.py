"""Subjects become a LoRA: `plan` draws and encodes every sample, `loop` takes the steps, `lora` writes the file."""
