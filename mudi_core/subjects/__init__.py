"""From photos to subjects: find, cut out, name, keep."""
