"""Superpoints of a frame: an over-segmentation of colour and geometry, and superpoints from given masks.

A superpoint map is int32 [H, W] of the depth image, ids 0..S-1, -1 exactly where there is no depth.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from .geometry import estimate_normals, surface_links
from .graph import (
    RegionGraph,
    connected_segments,
    cut_at_barred_pairs,
    nearby_pairs,
    number_segments,
    region_pairs,
)


# Differences that count as 1: of CIE Lab colour, of unit normals, of position in metres.
COLOUR_SCALE = 5.0
NORMAL_SCALE = 0.4
POSITION_SCALE = 0.5
BOUNDARY_WEIGHT = 1.0
SIZE_POWER = 0.5
# Small regions that touch nothing they may merge with look this far, as a fraction of their depth.
NEAR_RADIUS = 0.03
# Regions before merging; at least 5 for each that is left.
FIRST_REGIONS = 2000


def segment_superpoints(
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    *,
    num_segments: int = 300,
    min_size: int | None = None,
    color_blur: float = 0.0,
) -> np.ndarray:
    """Over-segments a frame by colour, position and normals.

    A watershed of the colour and normal gradient from a regular grid of seeds, cut at strong depth edges, whose
    regions merge greedily, the most similar first. No strong depth edge (`superpoints_geometry.depth_edges`) runs
    through a segment. Segments are connected; only parts below `min_size` that touch nothing they may merge with (a
    wall seen between leaves) join the nearest segment in space. Deterministic.

    Args:
        image: uint8 [Hc, Wc, 3] RGB; resized to the depth image where it has another size.
        depth: float [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of the depth image, pixel centres at integers.
        num_segments: Number of segments aimed at; frames that holes or foliage cut up have a few more.
        min_size: Smallest segment in pixels; None = H W / 4800 (16 at 320x240). Only what nothing is near to stays
            smaller.
        color_blur: Standard deviation in metres, on a surface that faces the camera, by which colour is blurred
            beforehand: texture finer than about twice this makes no segments.

    Returns:
        int32 [H, W], 0..S-1 in the order of their first pixel, -1 where there is no depth.

    Raises:
        ValueError: An argument is malformed.
    """
    from skimage.segmentation import watershed

    image, depth, intrinsics = _check_frame(image, depth, intrinsics)
    if num_segments < 1:
        raise ValueError(f"num_segments is {num_segments}; expected at least 1")
    if not color_blur >= 0:
        raise ValueError(f"color_blur is {color_blur}; expected metres, at least 0")
    height, width = depth.shape
    if min_size is None:
        min_size = max(1, height * width // 4800)
    valid = depth > 0
    if not valid.any():
        return np.full(depth.shape, -1, np.int32)
    links = surface_links(depth)
    # One "unit" is a pixel at 320x240, so that the result depends little on the resolution.
    unit = max(1.0, float(np.sqrt(height * width / 76800)))
    lab = _blurred(rgb_to_lab(image), depth, 0.5 * unit, color_blur * float(intrinsics[0, 0]))
    normals = estimate_normals(depth, intrinsics, links, window=2 * int(round(1.5 * unit)) + 1)
    pixel_features = np.concatenate([lab / COLOUR_SCALE, normals / NORMAL_SCALE], axis=-1).astype(np.float32)
    contrast = _link_contrast(pixel_features)

    regions = watershed(
        _pixel_contrast(contrast, links), _grid_seeds(valid, max(FIRST_REGIONS, 5 * num_segments)), mask=valid
    )
    across = (~links[0] & valid[:, :-1] & valid[:, 1:], ~links[1] & valid[:-1] & valid[1:])
    regions = cut_at_barred_pairs(connected_segments(np.where(valid, regions, -1), links), depth, links, across)
    members = regions[valid]
    sizes = np.bincount(members)
    positions = _positions(depth, intrinsics)[valid]
    features = np.concatenate([pixel_features[valid], positions / POSITION_SCALE], axis=1)
    means = np.stack([np.bincount(members, weights=column) for column in features.T], axis=1) / sizes[:, None]
    low, high, count, total = region_pairs(regions, links, contrast)
    graph = RegionGraph(
        sizes,
        means,
        adjacent=(low, high, count, BOUNDARY_WEIGHT * total),
        barred=np.stack(region_pairs(regions, across)[:2], axis=1),
        size_power=SIZE_POWER,
    )
    graph.absorb_small(min_size)
    # What is still small touches nothing that it may merge with.
    current = graph.roots()[members]
    small = np.bincount(current, minlength=len(sizes)) < min_size
    graph.add_near(*nearby_pairs(current, positions, small, NEAR_RADIUS * depth[valid]))
    graph.absorb_small(min_size)
    graph.merge_to(num_segments, min_size)
    merged = np.full(depth.shape, -1, np.int32)
    merged[valid] = graph.roots()[members]
    return number_segments(merged)


def _check_frame(image, depth, intrinsics) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image at the size of the depth image, depth as float32 with 0 for no measurement, and the intrinsics."""
    image, depth, intrinsics = np.asarray(image), np.asarray(depth), np.asarray(intrinsics)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; expected uint8 [H, W, 3] RGB")
    if depth.ndim != 2 or not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"depth has shape {depth.shape} and dtype {depth.dtype}; expected float [H, W] metres")
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics has shape {intrinsics.shape}; expected [3, 3]")
    if image.shape[:2] != depth.shape:
        size = (depth.shape[1], depth.shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return image, np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32), intrinsics


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of uint8 sRGB [..., 3], float32; a difference of 1 is just noticeable."""
    level = np.arange(256) / 255
    linear = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)
    to_xyz = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    to_xyz = (to_xyz / to_xyz.sum(axis=1, keepdims=True)).astype(np.float32)
    xyz = linear[image] @ to_xyz.T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _blurred(lab: np.ndarray, depth: np.ndarray, least: float, at_one_metre: float) -> np.ndarray:
    """Colour [H, W, 3] under a Gaussian of `at_one_metre / depth` pixels, at least `least`."""
    lab = ndimage.gaussian_filter(lab, (least, least, 0))
    if at_one_metre == 0:
        return lab
    wanted = at_one_metre / np.where(depth > 0, depth, np.inf)
    # The blur of each pixel is mixed out of two neighbours of a geometric row of blurs, each made from the one before.
    result, coarser, sigma = lab, lab, least
    while sigma < wanted.max():
        finer, coarser = coarser, ndimage.gaussian_filter(coarser, (np.sqrt(3) * sigma,) * 2 + (0,))
        share = np.clip(np.log2(np.maximum(wanted, sigma) / sigma), 0, 1)[..., None]
        result = np.where(share > 0, (1 - share) * finer + share * coarser, result)
        sigma *= 2
    return result.astype(np.float32)


def _positions(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Camera coordinates of all pixels, float32 [H, W, 3] metres."""
    height, width = depth.shape
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([depth * x, depth * y[:, None], depth], axis=-1).astype(np.float32)


def _link_contrast(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared feature difference of each pixel to its right and its lower neighbour."""
    right = features[:, 1:] - features[:, :-1]
    down = features[1:] - features[:-1]
    return np.einsum("hwc,hwc->hw", right, right), np.einsum("hwc,hwc->hw", down, down)


def _pixel_contrast(contrast: tuple[np.ndarray, np.ndarray], links: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """float32 [H, W]: the largest contrast to a neighbour, above all others beside a depth edge or hole."""
    right, down = (np.where(link, value, np.inf) for value, link in zip(contrast, links, strict=True))
    height, width = down.shape[0] + 1, right.shape[1] + 1
    result = np.zeros((height, width), np.float32)
    np.maximum(result[:, :-1], right, out=result[:, :-1])
    np.maximum(result[:, 1:], right, out=result[:, 1:])
    np.maximum(result[:-1], down, out=result[:-1])
    np.maximum(result[1:], down, out=result[1:])
    return result


def _grid_seeds(valid: np.ndarray, number: int) -> np.ndarray:
    """int32 [H, W]: about `number` numbered seeds on a regular grid over the measured pixels, 0 elsewhere."""
    step = max(1, int(round(np.sqrt(np.count_nonzero(valid) / number))))
    seeds = np.zeros(valid.shape, np.int32)
    grid = (slice(step // 2, None, step),) * 2
    seeds[grid] = np.where(valid[grid], np.arange(1, seeds[grid].size + 1).reshape(seeds[grid].shape), 0)
    return seeds
