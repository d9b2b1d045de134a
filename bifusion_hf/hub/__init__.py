"""Releases: model cards, checks, and the push to the Hub."""
