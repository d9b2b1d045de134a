"""From posed frames to a room: persistent objects, merged frame by frame."""

from .merging import GeometricMerging, LearnedMerging, NoMerging
from .objects import SceneMatch, SceneObject
from .session import SceneSession


__all__ = ["GeometricMerging", "LearnedMerging", "NoMerging", "SceneMatch", "SceneObject", "SceneSession"]
