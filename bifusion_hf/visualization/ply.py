"""Point clouds as binary little-endian PLY, which MeshLab, CloudCompare, Blender and Open3D read."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..io.atomic import new_file
from .colors import instance_colors


_TYPES = {"uchar": "u1", "int": "<i4", "float": "<f4"}


def write_ply(
    path: str | Path,
    points: np.ndarray,
    colors: np.ndarray,
    *,
    instance: np.ndarray | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Writes coloured points.

    Args:
        path: The file.
        points: float [N, 3] metres; stored as float32.
        colors: uint8 [N, 3] RGB.
        instance: int [N], -1 = none; stored as the vertex property `instance`.
        names: Of instances; stored as comments `instance ID NAME`, in ASCII, other characters by number.

    Raises:
        ValueError: An array is malformed.
    """
    points, colors = np.asarray(points), np.asarray(colors)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points has shape {points.shape}; expected [N, 3]")
    if colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(f"colors has shape {colors.shape} and dtype {colors.dtype}; expected uint8 {points.shape}")
    columns = [(axis, "float", points[:, i]) for i, axis in enumerate("xyz")]
    columns += [(name, "uchar", colors[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    if instance is not None:
        instance = np.asarray(instance)
        if instance.shape != points.shape[:1] or not np.issubdtype(instance.dtype, np.integer):
            raise ValueError(
                f"instance has shape {instance.shape} and dtype {instance.dtype}; expected integers {points.shape[:1]}"
            )
        columns.append(("instance", "int", instance))
    vertices = np.empty(len(points), dtype=[(name, _TYPES[kind]) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    header = ["ply", "format binary_little_endian 1.0"]
    for index, name in (names or {}).items():
        # A line break would end the comment.
        header.append(
            f"comment instance {index} {' '.join(name.split())}".encode("ascii", "backslashreplace").decode()
        )
    header.append(f"element vertex {len(points)}")
    header += [f"property {kind} {name}" for name, kind, _ in columns]
    with new_file(path) as partial:
        partial.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode("ascii") + vertices.tobytes())


def color_by_instance(point_colors: np.ndarray, instance: np.ndarray, colors: np.ndarray | None = None) -> np.ndarray:
    """One colour per instance; points without one keep their own.

    Args:
        point_colors: uint8 [N, 3] RGB.
        instance: int [N], -1 = none.
        colors: uint8 [K, 3], the colour of each instance; `instance_colors` by default.

    Returns:
        uint8 [N, 3].
    """
    if colors is None:
        colors = instance_colors(int(np.max(instance, initial=-1)) + 1)
    result = np.array(point_colors, dtype=np.uint8)
    result[instance >= 0] = colors[instance[instance >= 0]]
    return result
