"""Points that come without their pixels: projected once, when they are read."""

import numpy as np

from .frames import RGBDFrame


def project_points(points: np.ndarray, frame: RGBDFrame) -> tuple[np.ndarray, np.ndarray]:
    """Places of points in a frame's image.

    Args:
        points: float [N, 3] metres, in the world that the frame's pose maps to; without a pose in the camera's axes
            relabelled x right, y forward, z up.
        frame: Gives pose, intrinsics and the size of the image.

    Returns:
        float64 [N, 2], x and y as fractions of width and height (pixel i's centre is at (i + 0.5) / W), inside [0, 1]
        or not; float64 [N], the depth along the optical axis in metres. Places of points of depth 0 or less mean
        nothing.
    """
    points = np.asarray(points, dtype=np.float64)
    if frame.camera_to_world is not None:
        points = points - frame.camera_to_world[:3, 3]
    camera = points @ frame.camera_rotation
    depth = camera[:, 2]
    focal = frame.intrinsics[[0, 1], [0, 1]]
    centre = frame.intrinsics[:2, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        places = camera[:, :2] / depth[:, None] * focal + centre
    height, width = frame.depth.shape
    return (places + 0.5) / np.array([width, height]), depth
