"""Many frames in, many results out: prediction in shards, by one process, several, or a cluster."""
