"""TFDS builders, one file a data set, without TensorFlow; `registry` lists and prepares them."""
