"""From files to batches: slides, annotations, labels, tiles, the input pipeline."""
