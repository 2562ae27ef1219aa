"""Every use case, once: a job takes a base, eyes, settings and a progress, and returns values."""
