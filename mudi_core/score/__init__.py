"""From a picture to a score: Detect-and-Compare, fidelity."""
