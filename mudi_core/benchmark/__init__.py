"""The benchmark: rival methods under the same trainer, photos, prompts, seeds and noise, as one table and one page."""
