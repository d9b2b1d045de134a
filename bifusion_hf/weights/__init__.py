"""Weights from elsewhere: the 3D baseline, CLIP, other vision towers."""

from .clip import load_clip_weights
from .report import WeightLoadReport
from .sv3d import load_sv3d_weights
from .vision import load_vision_weights


__all__ = ["WeightLoadReport", "load_clip_weights", "load_sv3d_weights", "load_vision_weights"]
