"""Metrics of whole scenes: average precision of their objects, and how steady the objects' ids are over the frames.

A scene's objects are measured over points that all frames share: the points of a reconstruction's mesh, or one for
each voxel that the frames saw. The rules of the average precision are those of `InstanceAveragePrecision`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from .arrays import integer_array, to_array
from .instance_average_precision import InstanceAveragePrecision


class SceneAveragePrecision:
    """Average precision of the objects of scenes, class-agnostic and, with class names, class-aware too.

    Args:
        class_names: Names of the labels; None = class-agnostic only.
        min_points: Smallest object and prediction that takes part, in points of the scene.
        include_95: See `InstanceAveragePrecision`.
    """

    def __init__(self, class_names: Sequence[str] | None = None, min_points: int = 100, *, include_95: bool = False):
        self.metrics = {"class_agnostic": InstanceAveragePrecision(None, min_points, include_95=include_95)}
        if class_names is not None:
            self.metrics["class_aware"] = InstanceAveragePrecision(class_names, min_points, include_95=include_95)
        self.identity = IdentitySteadiness()

    def update(
        self, pred_masks: Any, pred_scores: Any, pred_labels: Any, gt_instance_ids: Any, gt_labels: Any
    ) -> None:
        """Adds a scene; arguments as of `InstanceAveragePrecision.update`, over the points of the scene."""
        for metric in self.metrics.values():
            metric.update(pred_masks, pred_scores, pred_labels, gt_instance_ids, gt_labels)

    def merge(self, other: "SceneAveragePrecision") -> None:
        """Adds the scenes of another metric, as of another process."""
        for part, metric in self.metrics.items():
            metric.merge(other.metrics[part])
        self.identity.merge(other.identity)

    def compute(self) -> dict[str, Any]:
        """`"class_agnostic"` and perhaps `"class_aware"`, as `InstanceAveragePrecision.compute` gives them, and
        `"identity"`, as `IdentitySteadiness.compute` does where frames were added to it.
        """
        results: dict[str, Any] = {part: metric.compute() for part, metric in self.metrics.items()}
        if self.identity.num_frames:
            results["identity"] = self.identity.compute()
        return results


class IdentitySteadiness:
    """How steady the ids are that objects get in the frames of a sequence."""

    def __init__(self):
        self.num_frames = self.num_objects = self.switches = 0
        self._coverage_sum = self._share_sum = 0.0
        self._num_found = 0
        self._start_scene()

    def _start_scene(self) -> None:
        self._pairs: dict[int, dict[int, int]] = {}
        self._sizes: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def update(self, pred_ids: Any, gt_instance_ids: Any) -> None:
        """Adds a frame of the scene at hand, in the order of time.

        Args:
            pred_ids: int [N], predicted id of each point or pixel, -1 = none.
            gt_instance_ids: int [N], ids that are the same in all frames of the scene, -1 = void.

        Raises:
            ValueError: Not integers of one length.
        """
        truth = integer_array("gt_instance_ids", gt_instance_ids)
        found = integer_array("pred_ids", pred_ids, len(truth))
        self.num_frames += 1
        pairs, counts = np.unique(np.stack([truth, found], axis=1)[truth >= 0], axis=0, return_counts=True)
        for instance in np.unique(pairs[:, 0]).tolist():
            rows = pairs[:, 0] == instance
            self._sizes[instance] = self._sizes.get(instance, 0) + int(counts[rows].sum())
            votes = self._pairs.setdefault(instance, {})
            here = {int(p): int(c) for p, c in zip(pairs[rows, 1], counts[rows], strict=True) if p >= 0}
            for pred, count in here.items():
                votes[pred] = votes.get(pred, 0) + count
            if here:
                leading = max(here, key=lambda pred: (here[pred], -pred))
                self.switches += self._last.get(instance, leading) != leading
                self._last[instance] = leading

    def end_scene(self) -> None:
        """The next frame begins another scene."""
        for instance, size in self._sizes.items():
            votes = self._pairs.get(instance, {})
            found = sum(votes.values())
            self.num_objects += 1
            self._coverage_sum += found / size
            if found:
                self._num_found += 1
                self._share_sum += max(votes.values()) / found
        self._start_scene()

    def merge(self, other: "IdentitySteadiness") -> None:
        """Adds the ended scenes of another metric."""
        for name in ("num_frames", "num_objects", "switches", "_coverage_sum", "_share_sum", "_num_found"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def compute(self) -> dict[str, Any]:
        """Over the ended scenes.

        Returns:
            `"id_share"`: of the points of an object that have an id in their frame, the share that has the object's
            most frequent one, mean over objects; `"coverage"`: the share of an object's points that has any;
            `"id_switches"`: how often an object's leading id in a frame is not that of the frame before in which it
            had one; `"id_switches_per_object"`; `"num_objects"`, `"num_frames"`.
        """

        def mean(total: float, count: int) -> float:
            return total / count if count else float("nan")

        return {
            "id_share": mean(self._share_sum, self._num_found),
            "coverage": mean(self._coverage_sum, self.num_objects),
            "id_switches": self.switches,
            "id_switches_per_object": mean(self.switches, self.num_objects),
            "num_objects": self.num_objects,
            "num_frames": self.num_frames,
        }


def masks_at_vertices(points: np.ndarray, masks: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Masks over the points of all frames, carried to a mesh: a vertex takes those of its nearest point.

    Args:
        points: float [P, 3].
        masks: bool [K, P].
        vertices: float [V, 3], in the same coordinates.

    Returns:
        bool [K, V]. There is no limit to the distance, as in the original's evaluation.

    Raises:
        ValueError: No point, or as many masks' entries as there are no points.
    """
    masks = to_array(masks)
    if len(points) == 0 or masks.ndim != 2 or masks.shape[1] != len(points):
        raise ValueError(f"masks has shape {masks.shape} and points {points.shape}; expected [K, P] and [P, 3], P > 0")
    nearest = cKDTree(points).query(vertices)[1]
    return masks[:, nearest]


def vote_segments(masks: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Whole segments of a mesh for masks over its vertices: those of which more than half of the vertices lie in it.

    Args:
        masks: bool [K, V].
        segments: int [V], segment of each vertex (`segIndices` of ScanNet's `segs.json`).

    Returns:
        bool [K, V].

    Raises:
        ValueError: Not one segment for each vertex.
    """
    masks = to_array(masks)
    segments = integer_array("segments", segments, masks.shape[1])
    _, place, counts = np.unique(segments, return_inverse=True, return_counts=True)
    if not len(masks):
        return masks
    inside = np.stack([np.bincount(place[mask], minlength=len(counts)) for mask in masks])
    return (inside > 0.5 * counts)[:, place]
