"""Frames from what users hold in memory: arrays, tensors, PIL images, one by one or as columns of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .frames import RGBDFrame, depth_in_metres


def frame_from_arrays(
    image: Any, depth: Any, intrinsics: Any, *, depth_scale: float | None = None, frame_id: str = "frame", **optional
) -> RGBDFrame:
    """A frame from arrays, tensors or PIL images.

    Args:
        image: uint8 [H, W, 3] RGB.
        depth: [H, W], divided by `depth_scale`; without one it must be floating point, in metres.
        intrinsics: [3, 3].
        depth_scale: Units per metre.
        frame_id: Name used in messages.
        optional: Further fields of `RGBDFrame`.

    Raises:
        ValueError: Integer depth without `depth_scale`, or whatever `RGBDFrame` refuses.
    """
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    fields = {name: None if value is None else np.asarray(value) for name, value in optional.items()}
    depth = depth_in_metres(np.asarray(depth), depth_scale, frame_id)
    return RGBDFrame(np.asarray(image), depth, np.asarray(intrinsics), frame_id=frame_id, **fields)


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
            if name in columns and np.ndim(columns[name]) <= axes:
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
    return isinstance(images, Sequence) or (not isinstance(images, Image.Image) and np.ndim(images) > 3)
