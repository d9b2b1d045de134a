"""The real benchmark: how well a checkpoint does on labelled frames of real cameras, which are for measuring only."""
