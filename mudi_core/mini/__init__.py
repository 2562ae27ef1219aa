"""The embedded model family and its toy world."""
