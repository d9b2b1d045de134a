"""What a session tells of a scene's objects."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene.

    Args:
        id: Its id in the maps of all frames.
        label_id: Label of the network.
        label: Its name.
        score: In [0, 1]: the mean score of its views times the share of the frames that saw its voxels and agreed.
        box_3d: float64 [6], min x, y, z, max x, y, z in metres of the world.
        num_views: Frames in which it was found.
        points: float32 [P, 3] metres, one for each voxel that it owns.
        colors: uint8 [P, 3] RGB.
        name: What to call it: its label; or where all have the same one, the semantic class of its points, if that is
            probable enough.
        semantic_label: The most probable semantic class, None for a network without a semantic head.
        semantic_probability: Its mean probability over points and views.
    """

    id: int
    label_id: int
    label: str
    score: float
    box_3d: np.ndarray
    num_views: int
    points: np.ndarray
    colors: np.ndarray
    name: str
    semantic_label: str | None = None
    semantic_probability: float = 0.0


@dataclass(frozen=True, eq=False)
class SceneMatch:
    """An object that a text may mean.

    Args:
        item: The object.
        similarity: Cosine of the features of text and object; it compares objects, not texts.
    """

    item: SceneObject
    similarity: float
