"""Training: augment, step, loop, checkpoint, over a mesh of devices."""
