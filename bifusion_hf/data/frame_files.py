"""Reads a frame from the files that cameras and tools write: colour, depth, intrinsics, pose, superpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..io.images import read_color, read_values
from ..labels import NONE
from ..superpoints.masks import superpoints_from_masks
from .camera_files import as_matrix, load_array, read_camera, read_intrinsics, read_numbers
from .frames import RGBDFrame, depth_in_metres


__all__ = ["read_depth", "read_frame", "read_intrinsics", "read_label_map", "read_pose"]


def read_frame(
    image: str | Path,
    depth: str | Path,
    intrinsics: str | Path | Sequence[float] | Mapping[str, Any],
    *,
    depth_scale: float | None = None,
    pose: str | Path | None = None,
    superpoints: str | Path | None = None,
) -> RGBDFrame:
    """The frame of a colour and a depth file.

    Args:
        image: A picture for `read_color`, registered to the depth image.
        depth: See `read_depth`.
        intrinsics: fx, fy, cx, cy in pixels of the depth image, or whatever else `read_camera` takes.
        depth_scale: Units per metre of integer depth.
        pose: See `read_pose`.
        superpoints: A map for `read_label_map`, or a folder of masks for `superpoints_from_masks`.

    Returns:
        The frame, named after the image file.

    Raises:
        ValueError: A file is missing or malformed; the message names it.
        OSError: A file of numbers cannot be read.
    """
    path = Path(image)
    colors, metres = read_color(path), read_depth(depth, depth_scale)
    frame = RGBDFrame(
        colors,
        metres,
        read_camera(intrinsics).of_depth(metres.shape),
        None if pose is None else read_pose(pose),
        frame_id=path.stem,
    )
    if superpoints is not None:
        if Path(superpoints).is_dir():
            frame.superpoints = superpoints_from_masks(superpoints, frame.image, frame.depth, frame.intrinsics)
        else:
            frame.superpoints = read_label_map(superpoints, frame.depth.shape)
    return frame


def read_depth(
    path: str | Path, depth_scale: float | None = None, *, integer_scale: float | None = None
) -> np.ndarray:
    """Depth in metres, float64 [H, W], of a one-channel PNG, TIFF, PGM, ... or of a `.npy` or `.npz` array.

    Args:
        path: The file.
        depth_scale: Units per metre; needed for integers (1000 for millimetres, 5000 for TUM RGB-D).
        integer_scale: That of integers by the convention of the layout that the file is of; floats are metres there.

    Raises:
        ValueError: Not one channel, or integers without a scale.
    """
    values = _read_array(path)
    if values.ndim != 2:
        raise ValueError(f"{path}: depth has shape {values.shape}; expected one channel [H, W]")
    if depth_scale is None and not np.issubdtype(values.dtype, np.floating):
        depth_scale = integer_scale
    return depth_in_metres(values, depth_scale, str(path))


def read_pose(path: str | Path) -> np.ndarray:
    """A camera-to-world matrix, float64 [4, 4], as text, `.npy` or a JSON list.

    Raises:
        ValueError: Of another shape. Whether it is rigid is for `RGBDFrame` to check.
    """
    matrix = as_matrix(read_numbers(path), path)
    if matrix.size == 16 and 1 in matrix.shape:
        matrix = matrix.reshape(4, 4)
    if matrix.shape != (4, 4):
        raise ValueError(f"{path}: pose has shape {matrix.shape}; expected 4x4, camera to world")
    return matrix


def read_label_map(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Ids, int32 [H, W], -1 = none: of a `.npy` array as they are, of a picture with one added (0 = none).

    Args:
        path: The file.
        shape: (H, W) that it must have; None = any.

    Raises:
        ValueError: Not integers of that shape.
    """
    values = _read_array(path, palette=True)
    fits = values.ndim == 2 if shape is None else values.shape == shape
    if not fits or not np.issubdtype(values.dtype, np.integer):
        expected = "[H, W]" if shape is None else shape
        raise ValueError(f"{path}: has shape {values.shape} and dtype {values.dtype}; expected integers {expected}")
    return values.astype(np.int32) + (0 if Path(path).suffix == ".npy" else NONE)


def _read_array(path: str | Path, *, palette: bool = False) -> np.ndarray:
    """The numbers of a picture, or a `.npy` or `.npz` array, of which `depth` is taken where there are several."""
    if Path(path).suffix in (".npy", ".npz"):
        return load_array(path, ("depth",))
    return read_values(path, palette=palette)
