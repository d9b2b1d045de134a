"""Clouds that were not made from the image (an ESAM `.bin`, a LiDAR sweep, a scan): projected once, here.

After this reader such a sample is like any other: its points know their pixels, and nothing is projected again.
"""

from typing import TYPE_CHECKING

import numpy as np

from .augmentation import Sample
from .frames import RGBDFrame
from .gravity import CAMERA, POSE


if TYPE_CHECKING:
    from ..processing_bifusion import BiFusionProcessor

# A point is seen where the depth image agrees with its distance this well: metres, and a fraction of the distance.
DEPTH_TOLERANCE = 0.05
RELATIVE_DEPTH_TOLERANCE = 0.02


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


def visible_points(
    pixels: np.ndarray,
    depth: np.ndarray,
    frame: RGBDFrame,
    tolerance: float = DEPTH_TOLERANCE,
    relative_tolerance: float = RELATIVE_DEPTH_TOLERANCE,
) -> np.ndarray:
    """Which projected points the camera sees, by the depth image at their pixel.

    Args:
        pixels: [N, 2] of `project_points`.
        depth: [N] metres.
        frame: Gives the depth image.
        tolerance: Metres by which the two may differ.
        relative_tolerance: What is allowed instead where it is more, as a fraction of the distance.

    Returns:
        bool [N]. A point that is outside the image, behind the camera or another surface, or at a pixel without a
        measurement, is not visible.
    """
    height, width = frame.depth.shape
    inside = (depth > 0) & ((pixels >= 0) & (pixels < 1)).all(axis=1)
    columns, rows = np.floor(np.where(inside[:, None], pixels, 0) * np.array([width, height])).astype(np.int64).T
    measured = frame.depth[rows, columns]
    agrees = np.abs(measured - depth) <= np.maximum(tolerance, relative_tolerance * depth)
    return inside & (measured > 0) & agrees


def prepare_cloud(
    points: np.ndarray,
    colors: np.ndarray,
    superpoints: np.ndarray,
    frame: RGBDFrame,
    processor: "BiFusionProcessor",
    *,
    instance: np.ndarray | None = None,
    semantic: np.ndarray | None = None,
    rng: np.random.Generator | None = None,
    depth_tolerance: float = DEPTH_TOLERANCE,
) -> Sample:
    """The sample of a cloud with the image of a frame.

    Args:
        points: float [P, 3] metres, z up; see `project_points`.
        colors: uint8 [P, 3] RGB.
        superpoints: int [P], not negative.
        frame: Image, depth, intrinsics and pose; its own labels and superpoints are not used.
        processor: Samples `num_points` of the points and resizes the image.
        instance: int [P], -1 = none.
        semantic: int [P], class index, -1 = unlabelled.
        rng: Source of the sampling; None = a new generator of the processor's `sampling_seed`.
        depth_tolerance: Metres of the depth-consistency test.

    Returns:
        As of `BiFusionProcessor.prepare_frame`. Points that are not visible have a place in [0, 1] and
        `point_visible` False. `pixel_indices` are -1 and `superpoint_map` is None: the points are no pixels, so
        post-processing gives no pixel map.

    Raises:
        ValueError: A shape, type or value is malformed, or no point is visible; the message names the frame.
    """
    name = frame.frame_id
    points, colors = np.asarray(points), np.asarray(colors)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError(f"{name}: points has shape {points.shape}; expected finite [P, 3] metres")
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(
            f"{name}: colors has shape {colors.shape} and dtype {colors.dtype}; expected uint8 {points.shape}"
        )
    labels = {"superpoints": superpoints, "instance": instance, "semantic": semantic}
    labels = {key: None if value is None else np.asarray(value) for key, value in labels.items()}
    for key, value in labels.items():
        if value is not None and (value.shape != points.shape[:1] or not np.issubdtype(value.dtype, np.integer)):
            raise ValueError(
                f"{name}: {key} has shape {value.shape} and dtype {value.dtype}; expected integers {points.shape[:1]}"
            )
    if superpoints is None or labels["superpoints"].min() < 0:
        raise ValueError(f"{name}: superpoints are missing or negative; expected one, 0 or more, for every point")
    pixels, depth = project_points(points, frame)
    visible = visible_points(pixels, depth, frame, depth_tolerance)
    if not visible.any():
        raise ValueError(
            f"{name}: none of {len(points)} points agrees with the depth image; expected pose, intrinsics and depth "
            "of the cloud's own frame"
        )
    chosen = processor.choose_points(np.arange(len(points)), rng)
    positions = points[chosen].astype(np.float64)
    offset = positions.mean(axis=0)
    places = np.where(np.isfinite(pixels[chosen]), pixels[chosen], 0.5)
    sample = {
        "points": (positions - offset).astype(np.float32),
        "point_rgb": colors[chosen],
        "point_pixels": np.clip(places, 0, 1).astype(np.float32),
        "point_visible": visible[chosen],
        "superpoint_ids": np.unique(labels["superpoints"][chosen], return_inverse=True)[1].astype(np.int64),
        "image": processor.resize(frame.image, name),
        "camera_rotation": frame.camera_rotation.astype(np.float32),
        "point_offset": offset.astype(np.float32),
        "point_rotation": np.eye(3, dtype=np.float32),
        "up_source": CAMERA if frame.camera_to_world is None else POSE,
        "pixel_indices": np.full(len(chosen), -1, dtype=np.int64),
        "depth_size": frame.depth.shape,
        "superpoint_map": None,
        "frame_id": name,
    }
    instance, semantic = (None if labels[key] is None else labels[key][chosen] for key in ("instance", "semantic"))
    sample.update(processor.point_labels(instance, semantic, name))
    return sample
