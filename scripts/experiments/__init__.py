"""Controlled experiments: cells that differ in one thing, run, compared and reported by one command."""
