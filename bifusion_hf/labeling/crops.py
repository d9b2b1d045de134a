"""What an image-text model sees of an instance: square crops around its mask."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


# Sides of the crops, by the longer side of the mask's box. The first shows the instance alone.
SCALES = (1.1, 1.6, 2.4)
# Pixels; a smaller crop would be mush at a model's size.
MIN_SIDE = 16


def instance_crops(
    image: np.ndarray, mask: np.ndarray, fill: Sequence[int], scales: Sequence[float] = SCALES
) -> list[np.ndarray]:
    """Square crops around a mask, so that no model's own resizing stretches them or cuts them off.

    In the first one the surroundings are painted over, so that it shows nothing else; the others show where the thing
    is. What lies beyond the image has the same plain colour.

    Args:
        image: uint8 [H, W, 3] RGB.
        mask: bool [H, W], not empty.
        fill: uint8 [3], the plain colour.
        scales: See `SCALES`.

    Returns:
        For each scale uint8 [S, S, 3].

    Raises:
        ValueError: The mask is empty, or not of the image's size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask has shape {mask.shape}; expected {image.shape[:2]}, that of the image")
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise ValueError("mask is empty; expected an instance with pixels")
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    longest = max(bottom - top, right - left)
    crops = []
    for number, scale in enumerate(scales):
        side = max(MIN_SIDE, round(longest * scale))
        corner = (round((top + bottom - side) / 2), round((left + right - side) / 2))
        crop = np.empty((side, side, 3), dtype=np.uint8)
        crop[:] = np.asarray(fill, dtype=np.uint8)
        target, source = _overlap(corner, side, mask.shape)
        crop[target] = image[source]
        if number == 0:
            inside = np.zeros((side, side), dtype=bool)
            inside[target] = mask[source]
            # Holes of the depth and a rim that the mask misses belong to what is seen.
            inside = ndimage.binary_dilation(ndimage.binary_fill_holes(inside), iterations=max(1, side // 40))
            crop[~inside] = np.asarray(fill, dtype=np.uint8)
        crops.append(crop)
    return crops


def _overlap(corner: tuple[int, int], side: int, size: tuple[int, int]) -> tuple[tuple, tuple]:
    """Where the part of a square that lies in an image is: in the square, and in the image."""
    target, source = [], []
    for start, length in zip(corner, size, strict=True):
        first, last = max(0, start), min(length, start + side)
        target.append(slice(first - start, last - start))
        source.append(slice(first, last))
    return tuple(target), tuple(source)


def pool_patches(patches: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean of the patches' features over a mask's pixels, of unit length.

    Args:
        patches: float [h, w, D] of the whole image.
        mask: bool [H, W], not empty.

    Returns:
        float [D].
    """
    height, width = patches.shape[:2]
    rows, columns = np.nonzero(mask)
    # The patch in which a pixel's centre lies.
    rows = (2 * rows + 1) * height // (2 * mask.shape[0])
    columns = (2 * columns + 1) * width // (2 * mask.shape[1])
    weights = np.bincount(rows * width + columns, minlength=height * width).astype(patches.dtype)
    pooled = weights @ patches.reshape(height * width, -1)
    return pooled / np.linalg.norm(pooled)
