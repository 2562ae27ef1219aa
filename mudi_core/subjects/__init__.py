"""From photos to subjects: find them, cut them out, name them, save them."""
