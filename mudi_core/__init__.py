"""The library: photos in, subjects, training, layouts and scores out; knows nothing of ComfyUI."""

__version__ = "0.1.0"
