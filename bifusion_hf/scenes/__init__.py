"""From posed frames to a room: persistent objects, merged frame by frame."""

from .merging import GeometricMerging, LearnedMerging, NoMerging
from .session import SceneObject, SceneSession


__all__ = ["GeometricMerging", "LearnedMerging", "NoMerging", "SceneObject", "SceneSession"]
