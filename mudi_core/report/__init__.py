"""Pages, charts and statistics."""
