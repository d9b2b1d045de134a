"""Colour and label images of the colour camera, brought onto the grid of the depth image.

ScanNet's depth images are already seen from the colour camera ("color and depth are already aligned, so no extrinsic
matrices should be applied", its authors in issue 92 of its repository), so what is left between the two is a scaling
and a shift, which their two intrinsic matrices give.
"""

import numpy as np
from PIL import Image

from ..frames import scale_intrinsics


# The views of registered cameras differ by a few pixels at the borders; more means intrinsics of another image size.
MAX_OVERLAP_ERROR = 0.1


def register_color(
    image: np.ndarray, intrinsics: np.ndarray | None, target_intrinsics: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """A colour image on the pixel grid of another camera at the same place, antialiased.

    Args:
        image: uint8 [H, W, 3].
        intrinsics: [3, 3] of the image, pixel centres at integers; None = both cameras see the same section, so a
            plain resize registers them.
        target_intrinsics: [3, 3] of the grid.
        size: (width, height) of the grid.

    Returns:
        uint8 [height, width, 3]. Border pixels are repeated where the image ends within the grid.

    Raises:
        ValueError: The grid shows another section than the image.
    """
    left, top, right, bottom = _section(image.shape[:2], intrinsics, target_intrinsics, size)
    height, width = image.shape[:2]
    margins = [max(0, int(np.ceil(margin))) for margin in (-left, -top, right - width, bottom - height)]
    padded = np.pad(image, ((margins[1], margins[3]), (margins[0], margins[2]), (0, 0)), mode="edge")
    box = (left + margins[0], top + margins[1], right + margins[0], bottom + margins[1])
    return np.array(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR, box=box))


def register_labels(
    image: np.ndarray, intrinsics: np.ndarray | None, target_intrinsics: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """A label image on the pixel grid of another camera at the same place: the nearest pixel, 0 outside.

    Args:
        image: int [H, W].
        intrinsics: See `register_color`; likewise the rest.
        target_intrinsics: See `register_color`.
        size: See `register_color`.

    Returns:
        int [height, width].

    Raises:
        ValueError: The grid shows another section than the image.
    """
    left, top, right, bottom = _section(image.shape, intrinsics, target_intrinsics, size)
    width, height = size
    columns = np.floor(left + (np.arange(width) + 0.5) * (right - left) / width).astype(np.int64)
    rows = np.floor(top + (np.arange(height) + 0.5) * (bottom - top) / height).astype(np.int64)
    inside = ((rows >= 0) & (rows < image.shape[0]))[:, None] & ((columns >= 0) & (columns < image.shape[1]))
    values = image[np.clip(rows, 0, image.shape[0] - 1)[:, None], np.clip(columns, 0, image.shape[1] - 1)]
    return np.where(inside, values, 0)


def resize_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A depth or label image [H, W] at (width, height), each pixel the nearest one; no values are mixed."""
    rows = ((np.arange(size[1]) + 0.5) * image.shape[0] / size[1]).astype(np.int64)
    columns = ((np.arange(size[0]) + 0.5) * image.shape[1] / size[0]).astype(np.int64)
    return image[rows[:, None], columns]


def _section(
    shape: tuple[int, int], intrinsics: np.ndarray | None, target_intrinsics: np.ndarray, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of the grid in the image, in its pixels (pixel i covers i..i+1)."""
    height, width = shape
    if intrinsics is None:
        intrinsics = scale_intrinsics(target_intrinsics, width / size[0], height / size[1])
    edges = []
    for axis, (length, target_length) in enumerate(((width, size[0]), (height, size[1]))):
        scale = intrinsics[axis, axis] / target_intrinsics[axis, axis]
        low, high = (
            (edge - 0.5 - target_intrinsics[axis, 2]) * scale + intrinsics[axis, 2] + 0.5
            for edge in (0, target_length)
        )
        if not max(abs(low), abs(high - length)) <= MAX_OVERLAP_ERROR * length:
            raise ValueError(
                f"colour image of {width}x{height} shows another section than the depth image: on axis {axis} the "
                f"depth image spans its pixels {low:.1f}..{high:.1f}; expected about 0..{length}. Wrong intrinsics?"
            )
        edges.append((low, high))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
