"""What an image-text model saw of a scene's objects: features of the views in which each is largest."""

from collections.abc import Mapping, Sequence

import numpy as np


class ViewFeatures:
    """For each object the features of its most visible views, at most `limit` of them.

    Args:
        limit: Views of an object.
    """

    def __init__(self, limit: int):
        self.limit = limit
        # Object -> pixels and feature of each of its views, the most visible first.
        self._views: dict[int, list[tuple[int, np.ndarray]]] = {}

    def wanted(self, index: int, pixels: int) -> bool:
        """Whether a view of so many pixels would be among an object's most visible ones; `NONE` is a new object."""
        views = self._views.get(index, [])
        return pixels > 0 and (len(views) < self.limit or pixels > views[-1][0])

    def add(self, index: int, pixels: int, feature: np.ndarray) -> None:
        """Adds a view of an object: the pixels that it has there, and its feature float [D] of unit length."""
        views = [*self._views.get(index, []), (int(pixels), np.asarray(feature, dtype=np.float32))]
        self._views[index] = sorted(views, key=lambda view: -view[0])[: self.limit]

    def mean(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean feature of objects.

        Args:
            ids: int [N].

        Returns:
            The M of them that have views, int64 [M], and float32 [M, D] of unit length.
        """
        found = [index for index in np.asarray(ids).tolist() if index in self._views]
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)
        means = np.stack([np.mean([feature for _, feature in self._views[index]], axis=0) for index in found])
        return np.array(found, dtype=np.int64), means / np.linalg.norm(means, axis=1, keepdims=True)

    def forget(self, ids: np.ndarray) -> None:
        """Forgets objects."""
        for index in ids.tolist():
            self._views.pop(index, None)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that is kept, as arrays of one row a view; {} without any."""
        rows = [(index, *view) for index, views in self._views.items() for view in views]
        if not rows:
            return {}
        ids, pixels, features = zip(*rows, strict=True)
        return {
            "ids": np.array(ids, dtype=np.int64),
            "pixels": np.array(pixels, dtype=np.int64),
            "features": np.stack(features),
        }

    @classmethod
    def from_state(cls, limit: int, state: Mapping[str, np.ndarray]) -> "ViewFeatures":
        """The features of a `state`."""
        result = cls(limit)
        if state:
            for index, pixels, feature in zip(state["ids"].tolist(), state["pixels"], state["features"], strict=True):
                result.add(index, int(pixels), feature)
        return result
