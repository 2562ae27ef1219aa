"""The mean-shifted start of a picture (paper, section 4.2)."""
