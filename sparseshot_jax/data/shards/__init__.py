"""Training tiles cut once into ArrayRecord files, and read from them."""
