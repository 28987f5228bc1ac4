"""A synthetic H&E slide with its truth."""
