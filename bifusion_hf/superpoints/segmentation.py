"""Superpoints of a frame: an over-segmentation of colour and geometry, and superpoints from given masks.

A superpoint map is int32 [H, W] of the depth image, ids 0..S-1, -1 exactly where there is no depth.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from .backends import choose_backend


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
    regions merge greedily, the most similar first. No strong depth edge (`geometry.depth_edges`) runs
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
    stages = choose_backend()
    links = stages.surface_links(depth)
    # One "unit" is a pixel at 320x240, so that the result depends little on the resolution.
    unit = max(1.0, float(np.sqrt(height * width / 76800)))
    features = stages.pixel_features(
        image,
        depth,
        intrinsics,
        links,
        sigma=0.5 * unit,
        window=2 * round(1.5 * unit) + 1,
        color_scale=COLOUR_SCALE,
        normal_scale=NORMAL_SCALE,
    )
    # A blur of 0 changes nothing, and takes time.
    if color_blur > 0:
        features[:3] = _blurred(features[:3], depth, 0.5 * unit, color_blur * float(intrinsics[0, 0]))
    contrast, levels = stages.link_contrast(features, links)

    regions = stages.watershed(levels, _grid_seeds(levels, valid, max(FIRST_REGIONS, 5 * num_segments)), valid)
    across = (~links[0] & valid[:, :-1] & valid[:, 1:], ~links[1] & valid[:-1] & valid[1:])
    regions = stages.connected_segments(np.where(valid, regions, -1), links)
    regions = stages.cut_at_barred_pairs(regions, depth, links, across)
    sizes, means = stages.region_means(regions, features, depth, intrinsics, POSITION_SCALE)
    low, high, count, total = stages.region_pairs(regions, links, contrast)
    graph = stages.RegionGraph(
        sizes,
        means,
        adjacent=(low, high, count, BOUNDARY_WEIGHT * total),
        barred=np.stack(stages.region_pairs(regions, across)[:2], axis=1),
        size_power=SIZE_POWER,
    )
    graph.absorb_small(min_size)
    # What is still small touches nothing that it may merge with.
    roots = graph.roots()
    pixels = np.bincount(roots, weights=sizes, minlength=len(sizes))
    small = (pixels > 0) & (pixels < min_size)
    if small.any():
        graph.add_near(*stages.nearby_pairs(_merged(regions, roots), depth, intrinsics, small, NEAR_RADIUS))
        graph.absorb_small(min_size)
    graph.merge_to(num_segments, min_size)
    return stages.number_segments(_merged(regions, graph.roots()))


def _merged(regions: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """int32 [H, W], the region that each pixel's first region has become part of, -1 where there is none."""
    # The entry behind the last region answers for the index -1.
    return np.append(roots, -1).astype(np.int32).take(regions, mode="wrap")


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
    measured = np.isfinite(depth) & (depth > 0)
    # Row by row, as every stage wants it: numpy would keep another order of the depth image.
    return image, np.where(measured, depth, 0).astype(np.float32, order="C"), intrinsics


def _blurred(colours: np.ndarray, depth: np.ndarray, least: float, at_one_metre: float) -> np.ndarray:
    """Planes [3, H, W] of the blur `least`, under a Gaussian of `at_one_metre / depth` pixels where that is more."""
    wanted = at_one_metre / np.where(depth > 0, depth, np.inf)
    # The blur of each pixel is mixed out of two neighbours of a geometric row of blurs, each made from the one before.
    result, coarser, sigma = colours, colours, least
    while sigma < wanted.max():
        finer, coarser = coarser, ndimage.gaussian_filter(coarser, (0,) + (np.sqrt(3) * sigma,) * 2)
        # Where it is more than 1, a coarser round takes its place.
        share = np.log2(np.maximum(wanted, sigma) / sigma)
        result = np.where(share > 0, (1 - share) * finer + share * coarser, result)
        sigma *= 2
    return result


def _grid_seeds(levels: np.ndarray, valid: np.ndarray, number: int) -> np.ndarray:
    """int32 [H, W]: about `number` numbered seeds over the measured pixels, 0 elsewhere.

    They lie on a regular grid, each moved by at most one pixel to where the level is lowest, so that few begin on an
    edge.
    """
    step = max(1, round(np.sqrt(np.count_nonzero(valid) / number)))
    height, width = valid.shape
    rows, columns = np.meshgrid(*(np.arange(step // 2, size, step) for size in (height, width)), indexing="ij")
    rows, columns = rows[valid[rows, columns]], columns[valid[rows, columns]]
    shifts = np.stack(np.meshgrid([0, -1, 1], [0, -1, 1], indexing="ij"), axis=-1).reshape(-1, 2)
    near_rows = np.clip(rows + shifts[:, :1], 0, height - 1)
    near_columns = np.clip(columns + shifts[:, 1:], 0, width - 1)
    level = np.where(valid[near_rows, near_columns], levels[near_rows, near_columns], 65535)
    best = level.argmin(axis=0), np.arange(len(rows))
    seeds = np.zeros(valid.shape, np.int32)
    seeds[near_rows[best], near_columns[best]] = np.arange(1, len(rows) + 1)
    return seeds
