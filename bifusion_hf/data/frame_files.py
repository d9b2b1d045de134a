"""Reads a frame from the files that cameras and tools write: colour, depth, intrinsics, pose, superpoints."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..labels import NONE
from ..superpoints.masks import superpoints_from_masks
from .frames import RGBDFrame, depth_in_metres


def read_frame(
    image: str | Path,
    depth: str | Path,
    intrinsics: str | Path | Sequence[float],
    *,
    depth_scale: float | None = None,
    pose: str | Path | None = None,
    superpoints: str | Path | None = None,
) -> RGBDFrame:
    """The frame of a colour and a depth file.

    Args:
        image: Any picture that Pillow reads, registered to the depth image.
        depth: See `read_depth`.
        intrinsics: fx, fy, cx, cy in pixels of the depth image, or a file for `read_intrinsics`.
        depth_scale: Units per metre of integer depth.
        pose: See `read_pose`.
        superpoints: A map for `read_label_map`, or a folder of masks for `superpoints_from_masks`.

    Returns:
        The frame, named after the image file.

    Raises:
        ValueError: A file's content is malformed; the message names the file.
        OSError: A file is missing or cannot be read.
    """
    path = Path(image)
    with Image.open(path) as file:
        colors = np.asarray(file.convert("RGB"))
    frame = RGBDFrame(
        colors,
        read_depth(depth, depth_scale),
        read_intrinsics(intrinsics),
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
    """Depth in metres, float64 [H, W], of a one-channel PNG, TIFF, PGM, ... or of a `.npy` array.

    Args:
        path: The file.
        depth_scale: Units per metre; needed for integers (1000 for millimetres, 5000 for TUM RGB-D).
        integer_scale: That of integers by the convention of the layout that the file is of; floats are metres there.

    Raises:
        ValueError: Not one channel, or integers without a scale.
    """
    values = _read_array(path)
    if values.ndim != 2:
        raise ValueError(
            f"{path}: depth has shape {values.shape}; expected one channel [H, W] (not a coloured picture)"
        )
    if depth_scale is None and not np.issubdtype(values.dtype, np.floating):
        depth_scale = integer_scale
    return depth_in_metres(values, depth_scale, str(path))


def read_intrinsics(source: str | Path | Sequence[float]) -> np.ndarray:
    """Intrinsics, float64 [3, 3].

    Args:
        source: fx, fy, cx, cy; or a file: a JSON object with `fx`, `fy`, `cx`, `cy`, with `intrinsics`, `K` or
            `camera_matrix` (3x3, or 9 numbers row by row), or with `intrinsic_matrix` (9 numbers column by column, as
            Open3D writes); or 3x3 or 4x4 numbers as text (as ScanNet exports) or `.npy`.

    Raises:
        ValueError: None of these.
    """
    if not isinstance(source, str | Path):
        values = np.asarray(source, dtype=np.float64)
        if values.shape != (4,):
            raise ValueError(f"intrinsics are {list(source)}; expected the four numbers fx fy cx cy")
        fx, fy, cx, cy = values
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    expected = "fx, fy, cx, cy, or a 3x3 matrix as intrinsics, K, camera_matrix or intrinsic_matrix"
    content = _read_numbers(source)
    if isinstance(content, dict):
        lower = {str(key).lower(): value for key, value in content.items()}
        names = ("fx", "fy", "cx", "cy")
        if all(name in lower for name in names):
            return read_intrinsics([_number(lower[name], source) for name in names])
        for name in ("intrinsics", "k", "camera_matrix", "intrinsic_matrix"):
            if name in lower:
                matrix = _matrix(lower[name], source)
                flat = matrix.size == 9 and matrix.ndim == 1
                matrix = matrix.reshape(3, 3) if flat else matrix
                return _three_by_three(matrix.T if flat and name == "intrinsic_matrix" else matrix, source)
        raise ValueError(f"{source}: has the keys {sorted(content)}; expected {expected}")
    return _three_by_three(_matrix(content, source), source)


def _three_by_three(matrix: np.ndarray, path: str | Path) -> np.ndarray:
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"{path}: intrinsics have shape {matrix.shape}; expected 3x3 (or 4x4)")
    return matrix[:3, :3]


def read_pose(path: str | Path) -> np.ndarray:
    """A camera-to-world matrix, float64 [4, 4], as text, `.npy` or a JSON list.

    Raises:
        ValueError: Of another shape. Whether it is rigid is for `RGBDFrame` to check.
    """
    matrix = _matrix(_read_numbers(path), path)
    if matrix.shape != (4, 4):
        raise ValueError(f"{path}: pose has shape {matrix.shape}; expected 4x4, camera to world")
    return matrix


def read_label_map(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Ids, int32 [H, W], -1 = none: of a `.npy` array as they are, of a picture with one added (0 = none).

    Raises:
        ValueError: Not integers of that shape.
    """
    values = _read_array(path)
    if values.shape != shape or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{path}: has shape {values.shape} and dtype {values.dtype}; expected integers {shape}")
    return values.astype(np.int32) + (0 if Path(path).suffix == ".npy" else NONE)


def _read_array(path: str | Path) -> np.ndarray:
    if Path(path).suffix == ".npy":
        return _load_npy(path)
    with Image.open(path) as file:
        return np.asarray(file)


def _load_npy(path: str | Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a .npy array ({error})") from None


def _read_numbers(path: str | Path) -> Any:
    """Content of a JSON, `.npy` or text file of numbers."""
    path = Path(path)
    if path.suffix == ".npy":
        return _load_npy(path)
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        return [[float(word) for word in line.replace(",", " ").split()] for line in _lines(path)]
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot be read as {'JSON' if path.suffix == '.json' else 'numbers'}: {error}"
        ) from None


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _matrix(values: Any, path: str | Path) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: is no matrix of numbers (rows of different length, or something else)") from None


def _number(value: Any, path: str | Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {value!r} is no number") from None
