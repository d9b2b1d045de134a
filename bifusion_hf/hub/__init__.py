"""Weights from elsewhere, and releases."""

from .clip import load_clip_weights
from .report import WeightLoadReport
from .sv3d import load_sv3d_weights


__all__ = ["WeightLoadReport", "load_clip_weights", "load_sv3d_weights"]
