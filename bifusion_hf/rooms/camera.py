"""Where the camera stands and looks, and its rays."""

from dataclasses import dataclass

import numpy as np

from ..data.frames import scale_intrinsics
from .layout import Box, Room, rotation


# A ScanNet-like sensor at 640x480.
_SENSOR_INTRINSICS = np.array([[577.87, 0.0, 319.5], [0.0, 577.87, 239.5], [0.0, 0.0, 1.0]])
_SENSOR_SIZE = (640, 480)


def sensor_intrinsics(width: int, height: int) -> np.ndarray:
    """Intrinsics [3, 3] of the sensor scaled to an image size."""
    return scale_intrinsics(_SENSOR_INTRINSICS, width / _SENSOR_SIZE[0], height / _SENSOR_SIZE[1])


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Args:
        intrinsics: float64 [3, 3], pixel centres at integers.
        pose: float64 [4, 4] camera to world.
        width: Pixels.
        height: Pixels.
    """

    intrinsics: np.ndarray
    pose: np.ndarray
    width: int
    height: int

    def rays(self, dx: float = 0.0, dy: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Origins and directions float32 [H W, 3] of all pixels, shifted by (dx, dy) pixels.

        The directions have length 1 along the optical axis, so that the ray parameter of a hit is its z-depth.
        """
        x = (np.arange(self.width) + dx - self.intrinsics[0, 2]) / self.intrinsics[0, 0]
        y = (np.arange(self.height) + dy - self.intrinsics[1, 2]) / self.intrinsics[1, 1]
        right, down, forward = self.pose[:3, :3].T.astype(np.float32)
        x, y = x.astype(np.float32)[None, :, None], y.astype(np.float32)[:, None, None]
        directions = (x * right + (y * down + forward)).reshape(-1, 3)
        origins = np.broadcast_to(self.pose[:3, 3].astype(np.float32), directions.shape)
        return np.ascontiguousarray(origins), directions


def look_at(position: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """Pose [4, 4], camera to world, of a camera that looks at a point; roll in radians about the optical axis."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([c * right + s * down, -s * right + c * down, forward], axis=1)
    pose[:3, 3] = position
    return pose


def random_pose(room: Room, rng: np.random.Generator) -> np.ndarray | None:
    """A hand-held camera: at the height of a standing or sitting person, off the furniture, looking at some object.

    Returns:
        Pose [4, 4], rounded to 1e-9, or None where no place was found.
    """
    if not room.objects:
        return None
    for _ in range(30):
        height = float(np.clip(rng.normal(1.45, 0.18), 1.05, 1.85))
        position = np.array([*rng.uniform(0.25, [room.width - 0.25, room.depth - 0.25]), height])
        around = Box(position[:2], np.array([0.2, 0.2]), 0.0, (height - 0.25, height + 0.25))
        if not room.is_free(around):
            continue
        item = room.objects[rng.integers(len(room.objects))]
        size = item.mesh.size.astype(np.float64)
        target = item.position + rotation(item.yaw) @ (rng.uniform([-0.4, -0.4, 0.2], [0.4, 0.4, 0.8]) * size)
        # People point the sensor at what stands on the floor and on tables rather than at the ceiling.
        target[2] = min(target[2], 1.6)
        distance = np.linalg.norm(target[:2] - position[:2])
        pitch = np.arctan2(position[2] - target[2], distance)
        if 1.1 < distance < 3.8 and -0.2 < pitch < 0.85:
            # The last bits of sines and norms differ between processors, and with them a data set's hash would.
            return look_at(position, target, rng.normal(0, np.radians(2.5))).round(9)
    return None
