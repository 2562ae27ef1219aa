"""The library: photos in, subjects, training, layouts and scores out; knows nothing of ComfyUI."""
