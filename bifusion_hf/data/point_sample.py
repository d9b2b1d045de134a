"""Sampled points of a frame, each tied to its pixel, in the coordinates of the network."""

from typing import Any

import numpy as np

from ..superpoints.numbering import renumber_superpoints
from .augmentation import resize_image
from .frames import RGBDFrame
from .gravity import upright_axes


def points_of_pixels(
    frame: RGBDFrame,
    pixels: np.ndarray,
    superpoints: np.ndarray,
    *,
    estimate_up: bool = False,
    reference_depth: float = 0.0,
) -> dict[str, Any]:
    """The points of chosen pixels.

    Args:
        frame: The frame.
        pixels: int [N], flat indices of measured pixels, ascending.
        superpoints: int [H, W] of the depth image, -1 = none; all pixels of `pixels` lie in one.
        estimate_up: Turn the points of a frame without a pose upright by what they show, if that is clear enough.
        reference_depth: Metres; points whose median depth is smaller are enlarged to it.

    Returns:
        The entries of `BiFusionProcessor.prepare_frame` that tell of points and their pixels, without labels.
    """
    height, width = frame.depth.shape
    positions = frame.unproject(pixels).astype(np.float64)
    offset = positions.mean(axis=0)
    camera_rotation, turn, up_source = upright_axes(frame, estimate_up)
    scale = max(1.0, reference_depth / np.median(frame.depth.reshape(-1)[pixels]))
    rows, columns = np.divmod(pixels, width)
    centres = np.stack([(columns + 0.5) / width, (rows + 0.5) / height], axis=1)
    superpoint_map, superpoint_ids = renumber_superpoints(superpoints, pixels)
    return {
        "points": (scale * ((positions - offset) @ turn.T)).astype(np.float32),
        "point_rgb": resize_image(frame.image, (height, width)).reshape(-1, 3)[pixels],
        "point_pixels": centres.astype(np.float32),
        "point_visible": np.ones(len(pixels), dtype=bool),
        "superpoint_ids": superpoint_ids,
        "camera_rotation": camera_rotation.astype(np.float32),
        "point_offset": offset.astype(np.float32),
        "point_rotation": turn.astype(np.float32),
        "point_scale": np.float32(scale),
        "up_source": up_source,
        "pixel_indices": pixels.astype(np.int64),
        "depth_size": (height, width),
        "superpoint_map": superpoint_map,
    }
