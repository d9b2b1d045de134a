"""Where a segment is and how large: its centroid and boxes.

Depth sensors leave stray points around an object's outline, and one of them is enough to move a box's face. So a face
leaves the outermost points on its side out.
"""

from typing import Any

import numpy as np


# Share of a segment's points beyond each face. What lies apart from a segment is taken away before (`mask_parts`); of
# what is left to leave out, more costs more than it saves: model_cards/results/real_frames_boxes.json.
OUTERMOST = 0.0025


def bounding_box(points: np.ndarray, outermost: float = OUTERMOST) -> np.ndarray:
    """Corners along the axes, float64 [6]: min x, y, z, max x, y, z.

    Args:
        points: float [N, 3] metres, at least one.
        outermost: Share of the points beyond each face.
    """
    # What numpy.quantile gives, several times as fast for the few points of a segment.
    ordered = np.sort(np.asarray(points, dtype=np.float64).T)
    below, share = divmod(outermost * (ordered.shape[1] - 1), 1)
    below = int(below)
    low, next_low = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    high, next_high = ordered[:, -1 - below], ordered[:, max(-2 - below, -ordered.shape[1])]
    return np.concatenate([low + share * (next_low - low), high + share * (next_high - high)])


def oriented_box(points: np.ndarray) -> dict[str, np.ndarray]:
    """The box along the principal axes of the points.

    Args:
        points: float [N, 3] metres, at least one.

    Returns:
        `center` float64 [3]; `rotation` float64 [3, 3], proper, its columns are the box's axes, the longest spread
        first; `size` float64 [3] along them.
    """
    points = np.asarray(points, dtype=np.float64)
    mean = points.mean(axis=0)
    _, axes = np.linalg.eigh((points - mean).T @ (points - mean))
    axes = axes[:, ::-1]
    # One sign for each axis, or equal points could give different boxes; then a rotation, not a mirroring.
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(3)] < 0, -1, 1)
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    low, high = bounding_box((points - mean) @ axes).reshape(2, 3)
    return {"center": mean + axes @ ((low + high) / 2), "rotation": axes, "size": high - low}


def describe_points(points: np.ndarray) -> dict[str, Any]:
    """`centroid`, `box_3d` and `oriented_box_3d` of a segment as lists of numbers, None without points.

    Args:
        points: float [N, 3] metres.
    """
    if not len(points):
        return {"centroid": None, "box_3d": None, "oriented_box_3d": None}
    oriented = {name: value.tolist() for name, value in oriented_box(points).items()}
    centroid = np.mean(points, axis=0, dtype=np.float64).tolist()
    return {"centroid": centroid, "box_3d": bounding_box(points).tolist(), "oriented_box_3d": oriented}
