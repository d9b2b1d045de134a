"""What a session keeps of each frame that it has taken in: name, pose, and the map of ids, deflated."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class TakenFrames:
    """The frames of a session in the order in which they came.

    Args:
        ids: Their names.
    """

    ids: list[str] = field(default_factory=list)
    _poses: list[np.ndarray] = field(default_factory=list)
    # Height, width and the deflated values.
    _maps: list[tuple[int, int, bytes]] = field(default_factory=list)

    def add(self, frame_id: str, pose: np.ndarray, segmentation: np.ndarray | None) -> None:
        """Adds one: its pose [4, 4], camera to world, and its map int32 [H, W], which is kept if it is given."""
        self.ids.append(frame_id)
        self._poses.append(pose)
        if segmentation is not None:
            height, width = segmentation.shape
            self._maps.append((height, width, zlib.compress(segmentation.tobytes(), 1)))

    @property
    def poses(self) -> np.ndarray:
        """float64 [F, 4, 4], camera to world."""
        return np.array(self._poses).reshape(-1, 4, 4)

    def segmentation(self, index: int) -> np.ndarray:
        """The map of a frame, int32 [H, W]."""
        height, width, data = self._maps[index]
        return np.frombuffer(zlib.decompress(data), dtype=np.int32).reshape(height, width)

    def state(self) -> dict[str, np.ndarray]:
        """All but the names, as arrays."""
        heights, widths, data = zip(*self._maps, strict=True) if self._maps else ((), (), ())
        return {
            "poses": self.poses,
            "sizes": np.array([heights, widths, [len(part) for part in data]], dtype=np.int64),
            "maps": np.frombuffer(b"".join(data), dtype=np.uint8),
        }

    @classmethod
    def from_state(cls, ids: list[str], state: Mapping[str, np.ndarray]) -> "TakenFrames":
        """The frames of these names whose `state` this is."""
        sizes, data = state["sizes"], state["maps"].tobytes()
        ends = np.cumsum(sizes[2])
        maps = [
            (int(height), int(width), data[end - length : end])
            for (height, width, length), end in zip(sizes.T, ends, strict=True)
        ]
        return cls(list(ids), list(state["poses"]), maps)
