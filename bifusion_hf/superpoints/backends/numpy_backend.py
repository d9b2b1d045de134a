"""The stages of the over-segmentation in numpy, scipy and scikit-image: what `compiled_backend` is held against."""

import numpy as np
from scipy import ndimage

from ..colour import rgb_to_lab
from ..geometry import camera_coordinates, estimate_normals, surface_links
from ..graph import (
    Links,
    RegionGraph,
    connected_segments,
    cut_at_barred_pairs,
    nearby_pairs,
    number_segments,
    region_pairs,
)


__all__ = [
    "RegionGraph",
    "connected_segments",
    "cut_at_barred_pairs",
    "estimate_normals",
    "link_contrast",
    "nearby_pairs",
    "number_segments",
    "pixel_features",
    "region_means",
    "region_pairs",
    "surface_links",
    "watershed",
]


def pixel_features(
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    links: Links,
    *,
    sigma: float,
    window: int,
    color_scale: float,
    normal_scale: float,
) -> np.ndarray:
    """What pixels are compared by, float32 [6, H, W]: CIE Lab colour and normals, each divided by its scale.

    Args:
        image: uint8 [H, W, 3] RGB.
        depth: float32 [H, W] metres.
        intrinsics: [3, 3] of the depth image.
        links: Of `surface_links`.
        sigma: Pixels by which colour is blurred.
        window: Of `estimate_normals`.
        color_scale: Difference of colour that counts as 1.
        normal_scale: As of normals.
    """
    lab = ndimage.gaussian_filter(rgb_to_lab(image), (sigma, sigma, 0))
    normals = estimate_normals(depth, intrinsics, links, window)
    features = np.concatenate([lab / np.float32(color_scale), normals / np.float32(normal_scale)], axis=-1)
    return np.ascontiguousarray(np.moveaxis(features, -1, 0))


def link_contrast(features: np.ndarray, links: Links) -> tuple[Links, np.ndarray]:
    """How different neighbours are.

    Args:
        features: float32 [C, H, W].
        links: bool [H, W-1] and [H-1, W].

    Returns:
        Squared differences to the right and the lower neighbour, float32 [H, W-1] and [H-1, W]; levels uint16 [H, W]:
        the upper half of the bits of each pixel's largest difference to a neighbour, which is in steps of less than
        one per cent, above all others where a neighbour has no link.
    """
    right, down = features[:, :, 1:] - features[:, :, :-1], features[:, 1:] - features[:, :-1]
    contrast = np.einsum("chw,chw->hw", right, right), np.einsum("chw,chw->hw", down, down)
    right, down = (np.where(link, value, np.inf) for value, link in zip(contrast, links, strict=True))
    largest = np.zeros(features.shape[1:], np.float32)
    np.maximum(largest[:, :-1], right, out=largest[:, :-1])
    np.maximum(largest[:, 1:], right, out=largest[:, 1:])
    np.maximum(largest[:-1], down, out=largest[:-1])
    np.maximum(largest[1:], down, out=largest[1:])
    return contrast, (largest.view(np.uint32) >> 16).astype(np.uint16)


def watershed(levels: np.ndarray, seeds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Floods from seeds, the lowest level first, and of one level what was reached first; seeds come before all else.

    What lies lower than the way to it has the level of the way.

    Args:
        levels: uint16 [H, W].
        seeds: int32 [H, W], 0 = none.
        mask: bool [H, W]; nothing else is flooded.

    Returns:
        int32 [H, W], 0 where no seed reaches.
    """
    # scikit-image is imported only where it is used.
    from skimage import segmentation

    # Seeds of one level would come in the order that its heap happens to have.
    levels = levels.astype(np.int64)
    levels[seeds > 0] = np.arange(-np.count_nonzero(seeds), 0)
    return segmentation.watershed(levels, seeds, mask=mask)


def region_means(
    labels: np.ndarray, features: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, position_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and means of regions.

    Args:
        labels: int [H, W], 0..R-1, negative = none.
        features: float32 [C, H, W].
        depth: float32 [H, W] metres.
        intrinsics: [3, 3] of the depth image.
        position_scale: By which camera coordinates are divided.

    Returns:
        int64 [R] pixels; float64 [R, C + 3], means of the features and of the camera coordinates.
    """
    inside = labels >= 0
    positions = camera_coordinates(depth, intrinsics)[inside] / np.float32(position_scale)
    sizes = np.bincount(labels[inside])
    columns = [*features[:, inside], *positions.T]
    return sizes, np.stack([np.bincount(labels[inside], weights=column) for column in columns], axis=1) / sizes[
        :, None
    ]
