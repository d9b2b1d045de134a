"""Labels of a frame's pixels from the annotated mesh of its scan."""

import numpy as np
from scipy.spatial import cKDTree

from ..frames import RGBDFrame
from .annotations import VertexLabels


# A pixel takes the label of the nearest surface sample within this distance, in metres. It is the depth test too: what
# hides the annotated surface from the camera lies farther in front of it. Depth noise grows with distance, so beyond
# NEAR_RANGE metres the limit grows in proportion.
MAX_DISTANCE = 0.05
NEAR_RANGE = 2.0
# A room needs some hundred thousand samples; a mesh in millimetres, or a damaged one, billions.
MAX_SAMPLES = 20_000_000


class MeshLabels:
    """The annotated surface of a scan, ready to label frames.

    Its samples are the vertices, and points inside the triangles that are larger than the samples should be apart;
    each of these has the label of the triangle's nearest corner.

    Args:
        vertices: float [V, 3] metres, in the frame of the poses.
        faces: int [F, 3].
        labels: Annotation of the vertices.
        max_distance: Largest distance in metres between a pixel's point and the surface sample that labels it.

    Raises:
        ValueError: The mesh has no vertices, or not as many as there are labels, or is too large to be in metres.
    """

    def __init__(
        self, vertices: np.ndarray, faces: np.ndarray, labels: VertexLabels, max_distance: float = MAX_DISTANCE
    ):
        if len(vertices) == 0 or len(vertices) != len(labels.instance):
            raise ValueError(
                f"mesh has {len(vertices)} vertices, {len(labels.instance)} of them with labels; expected all"
            )
        if not max_distance > 0:
            raise ValueError(f"max_distance is {max_distance}; expected metres above 0")
        points, sources = _inner_samples(vertices, faces, max_distance)
        self._tree = cKDTree(np.concatenate([vertices, points]))
        sources = np.concatenate([np.arange(len(vertices)), sources])
        self._instance = labels.instance[sources]
        self._raw_ids = labels.raw_ids[sources]
        self._max_distance = max_distance

    def label(self, frame: RGBDFrame) -> tuple[np.ndarray, np.ndarray]:
        """Labels of a frame's pixels.

        Args:
            frame: With a pose, in the frame of the mesh.

        Returns:
            `instance` int32 [H, W] (object id, -1 = none) and `raw_ids` int32 [H, W] (0 = none). Pixels without a
            measurement, and those farther from the surface than the limit, have none.

        Raises:
            ValueError: The frame has no pose.
        """
        if frame.camera_to_world is None:
            raise ValueError(f"{frame.frame_id}: camera_to_world is None; expected a pose in the frame of the mesh")
        valid = frame.depth > 0
        limit = self._max_distance * np.maximum(1, frame.depth[valid] / NEAR_RANGE)
        distance, nearest = self._tree.query(
            frame.unproject(np.flatnonzero(valid)), distance_upper_bound=float(limit.max())
        )
        found = distance <= limit
        valid[valid] = found
        instance = np.full(frame.depth.shape, -1, dtype=np.int32)
        raw_ids = np.zeros(frame.depth.shape, dtype=np.int32)
        instance[valid] = self._instance[nearest[found]]
        raw_ids[valid] = self._raw_ids[nearest[found]]
        return instance, raw_ids


def _inner_samples(vertices: np.ndarray, faces: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Points inside large triangles, float64 [S, 3], and for each the vertex whose label it has, int64 [S].

    A triangle is cut into n x n like ones, n chosen so that no edge of theirs is longer than the spacing; their
    corners are the samples.
    """
    corners = vertices[faces]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    longest = edges.max(axis=1) / spacing
    if (longest.astype(np.float64) ** 2).sum() / 2 > MAX_SAMPLES:
        raise ValueError(f"mesh has edges of {edges.max():g} m; expected the mesh of a room, in metres")
    cuts = np.ceil(longest).astype(np.int64)
    points, sources = [np.empty((0, 3))], [np.empty(0, dtype=np.int64)]
    for count in np.unique(cuts[cuts > 1]):
        first, second = np.divmod(np.arange((count + 1) ** 2), count + 1)
        weights = np.stack([first, second, count - first - second], axis=1)[first + second <= count]
        # The corners of the triangle are vertices already.
        weights = weights[weights.max(axis=1) < count]
        chosen = cuts == count
        points.append(np.einsum("sc,fcx->fsx", weights / count, corners[chosen]).reshape(-1, 3))
        sources.append(faces[chosen][:, weights.argmax(axis=1)].reshape(-1))
    return np.concatenate(points), np.concatenate(sources)
