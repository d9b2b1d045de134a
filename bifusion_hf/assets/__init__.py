"""Paths of what the package carries: sample frames, frames of several sensors, and a sample checkpoint."""

from pathlib import Path


ASSETS = Path(__file__).parent
SAMPLE_FRAMES = ASSETS / "sample_rooms"
# Rendered too, each as another sensor measures it, for the demo page:
# bifusion-render-rooms --val 6 --views 1 --world mixed --sensor mixed --seed 21 --jpeg_quality 90
SENSOR_FRAMES = ASSETS / "sensor_frames"
SAMPLE_CHECKPOINT = ASSETS / "bifusion_tiny_rooms"
