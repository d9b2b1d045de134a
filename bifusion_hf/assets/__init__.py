"""Paths of what the package carries: sample frames and a sample checkpoint."""

from pathlib import Path


ASSETS = Path(__file__).parent
SAMPLE_FRAMES = ASSETS / "sample_rooms"
SAMPLE_CHECKPOINT = ASSETS / "bifusion_tiny_rooms"
