"""Superpoints from 2D masks: a folder of them, or what a mask generator such as SAM finds in the image.

Larger masks are painted first, so that smaller ones overwrite them (a cup on a table keeps its own superpoint), as
ESAM (Xu et al. 2024) prepares its data. Pixels that no mask covers are split by `segment_superpoints`.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..io.images import read_mask
from .graph import number_segments
from .segmentation import segment_superpoints


def superpoints_from_masks(
    masks: np.ndarray | str | Path,
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    *,
    num_segments: int = 300,
) -> np.ndarray:
    """Superpoints of a frame from masks over its image.

    Args:
        masks: bool [M, Hm, Wm], M >= 0, or a folder for `load_masks`. Taken at the nearest pixel where their size is
            not that of the depth image.
        image: uint8 [Hc, Wc, 3] RGB.
        depth: float [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of the depth image.
        num_segments: Segments that the whole frame would be split into; the uncovered part gets its share.

    Returns:
        int32 [H, W], 0..S-1 in the order of their first pixel, -1 where there is no depth. A mask that others
        overwrite in part stays one superpoint.

    Raises:
        ValueError: An argument is malformed.
    """
    if isinstance(masks, str | Path):
        masks = load_masks(masks)
    masks = np.asarray(masks)
    if masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(f"masks has shape {masks.shape} and dtype {masks.dtype}; expected bool [M, H, W]")
    depth = np.asarray(depth)
    height, width = depth.shape
    rows = (np.arange(height) + 0.5) * masks.shape[1] // height
    columns = (np.arange(width) + 0.5) * masks.shape[2] // width
    masks = masks[:, rows.astype(np.intp)][:, :, columns.astype(np.intp)]

    painted = np.full(depth.shape, -1, np.int32)
    for index in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        painted[masks[index]] = index
    measured = np.isfinite(depth) & (depth > 0)
    rest = measured & (painted < 0)
    if rest.any():
        share = np.count_nonzero(rest) / np.count_nonzero(measured)
        split = segment_superpoints(
            image, np.where(rest, depth, 0), intrinsics, num_segments=max(1, round(num_segments * share))
        )
        painted = np.where(rest, split + len(masks), painted)
    return number_segments(np.where(measured, painted, -1))


def load_masks(folder: str | Path) -> np.ndarray:
    """Masks of a folder, bool [M, H, W]: one PNG each, in the order of their names, non-zero = inside.

    Raises:
        ValueError: The folder has no PNG file, or they differ in size.
    """
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise ValueError(f"{folder}: no PNG file; expected one mask a file")
    masks = []
    for path in paths:
        mask = read_mask(path)
        if masks and mask.shape != masks[0].shape:
            raise ValueError(f"{path}: mask is {mask.shape}; expected {masks[0].shape} as in {paths[0].name}")
        masks.append(mask)
    return np.stack(masks)


def load_mask_generator(model: str, *, revision: str | None = None, device: str | int | None = None) -> Callable:
    """A transformers `mask-generation` pipeline (SAM, SAM 2, ...).

    Args:
        model: Folder, or id on the Hub.
        revision: Branch, tag or commit.
        device: As of `transformers.pipeline`.

    Raises:
        ImportError: torchvision, which transformers needs for the masks' suppression, is missing.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError(
            "Mask generation needs torchvision, in the version that belongs to the installed torch. "
            'Install it with: pip install "bifusion_hf[openclip]"'
        )
    from transformers import pipeline

    return pipeline("mask-generation", model=model, revision=revision, device=device)


def superpoints_from_mask_generator(
    generator: str | Callable[..., dict[str, Any]],
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    *,
    num_segments: int = 300,
    **generate_options: Any,
) -> np.ndarray:
    """Superpoints of a frame from the masks that a model finds in its image.

    Args:
        generator: A model for `load_mask_generator`, or (better for many frames) what it returns: a callable that
            takes a PIL image and returns `{"masks": M masks [Hc, Wc], ...}`.
        image: uint8 [Hc, Wc, 3] RGB.
        depth: float [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of the depth image.
        num_segments: As of `superpoints_from_masks`.
        **generate_options: Passed to the generator, e.g. `points_per_batch`, `pred_iou_thresh`.

    Returns:
        int32 [H, W], as `superpoints_from_masks`.

    Raises:
        ValueError: An argument is malformed.
        ImportError: As `load_mask_generator`.
    """
    if isinstance(generator, str):
        generator = load_mask_generator(generator)
    found = generator(Image.fromarray(image), **generate_options)["masks"]
    masks = np.zeros((len(found), *np.asarray(image).shape[:2]), bool)
    for index, mask in enumerate(found):
        masks[index] = mask
    return superpoints_from_masks(masks, image, depth, intrinsics, num_segments=num_segments)
