"""Hostile inputs for everything that reads what came from elsewhere; see `python -m scripts.fuzz --help`."""
