"""Whole slides: opening, reading, writing, and where the tissue is."""
