"""Rendered RGB-D frames of furnished rooms (extra `rooms`); `dataset.build_dataset` is the way in."""
