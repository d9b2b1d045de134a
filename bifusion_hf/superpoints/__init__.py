"""Over-segmentation of a frame into superpoints."""
