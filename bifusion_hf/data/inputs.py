"""Frames from what users hold in memory: arrays, tensors, PIL images, files, one by one or as columns of a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..io.images import read_color, read_values
from ..io.mapped import in_memory
from .camera_files import read_camera
from .frames import RGBDFrame, depth_in_metres


def frame_from_arrays(
    image: Any, depth: Any, intrinsics: Any, *, depth_scale: float | None = None, frame_id: str = "frame", **optional
) -> RGBDFrame:
    """A frame from arrays, tensors, PIL images or files.

    Args:
        image: uint8 [H, W, 3] RGB, or a picture for `read_color`.
        depth: [H, W], divided by `depth_scale`; without one it must be floating point, in metres. Or a file for
            `read_depth`.
        intrinsics: [3, 3], or a mapping or file for `read_camera`.
        depth_scale: Units per metre.
        frame_id: Name used in messages.
        optional: Further fields of `RGBDFrame`.

    Raises:
        ValueError: Integer depth without `depth_scale`, or whatever `RGBDFrame` refuses.
    """
    fields = {name: None if value is None else to_array(value) for name, value in optional.items()}
    if isinstance(image, str | Path):
        image = read_color(image)
    elif isinstance(image, Image.Image):
        image = read_color(image, f"{frame_id}: image")
    if isinstance(depth, str | Path):
        # What reads files brings scikit-image along.
        from .frame_files import read_depth

        depth = read_depth(depth, depth_scale)
    else:
        name = f"{frame_id}: depth"
        depth = read_values(depth, name) if isinstance(depth, Image.Image) else in_memory(to_array(depth), name)
        depth = depth_in_metres(depth, depth_scale, frame_id)
    if isinstance(intrinsics, Mapping | str | Path):
        camera = read_camera(intrinsics)
        intrinsics = camera.of_depth(depth.shape) if depth.ndim == 2 else camera.intrinsics
    return RGBDFrame(to_array(image), depth, to_array(intrinsics), frame_id=frame_id, **fields)


def to_array(value: Any) -> np.ndarray:
    """An array of an array, a list, or a tensor on any device, with gradient or without; bfloat16 becomes float32."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def frames_from_columns(columns: Mapping[str, Any]) -> list[RGBDFrame]:
    """The frames of a batch, or one frame.

    Args:
        columns: Arguments of `frame_from_arrays`; where `image` is a list or an array of four axes, each a list or a
            stacked array with one entry a frame. `intrinsics` and `depth_scale` may be one for all; None stands for
            an argument that is not given.

    Raises:
        ValueError: Columns of different length, or a malformed frame.
    """
    columns = {name: value for name, value in columns.items() if value is not None}
    if _is_batch(columns["image"]):
        count = len(columns["image"])
        for name, axes in (("intrinsics", 2), ("depth_scale", 0)):
            if name in columns and _is_single(columns[name], axes):
                columns[name] = [columns[name]] * count
    else:
        count = 1
        columns = {name: [value] for name, value in columns.items()}
    columns.setdefault("frame_id", [f"frame {index}" for index in range(count)])
    for name, values in columns.items():
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries; expected one for each of {count} images")
    return [frame_from_arrays(**{name: values[index] for name, values in columns.items()}) for index in range(count)]


def _is_batch(images: Any) -> bool:
    if isinstance(images, str | Path | Image.Image):
        return False
    return isinstance(images, Sequence) or images.ndim > 3


def _is_single(value: Any, axes: int) -> bool:
    """Whether a column is one value of so many axes, and not one for each frame."""
    if isinstance(value, Mapping | str | Path | torch.Tensor | np.ndarray):
        return getattr(value, "ndim", 0) <= axes
    if isinstance(value, Sequence) and any(isinstance(item, Mapping | str | Path | torch.Tensor) for item in value):
        return False
    return np.ndim(value) <= axes
