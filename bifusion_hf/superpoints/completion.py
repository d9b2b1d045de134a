"""A frame's own superpoints, completed where they leave measured pixels out."""

import numpy as np


def complete_superpoints(
    superpoints: np.ndarray | None,
    image: np.ndarray,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    *,
    num_segments: int,
    color_blur: float = 0.0,
) -> np.ndarray:
    """Superpoints of all measured pixels: the given ones, and segments of what they leave out.

    Args:
        superpoints: int [H, W], -1 = none; None = every measured pixel is segmented here.
        image: uint8 [Hc, Wc, 3] RGB.
        depth: float [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of the depth image, pixel centres at integers.
        num_segments: Number of segments aimed at for the whole frame; its share for a part.
        color_blur: As of `segmentation.segment_superpoints`.

    Returns:
        int [H, W]; new segments are numbered behind the given ones. `superpoints` itself where nothing is missing.

    Raises:
        ValueError: As of `segmentation.segment_superpoints`.
    """
    share = 1.0
    if superpoints is not None:
        measured = depth > 0
        missing = measured & (superpoints < 0)
        if not missing.any():
            return superpoints
        depth = np.where(missing, depth, 0)
        share = np.count_nonzero(missing) / np.count_nonzero(measured)
    # scikit-image is imported only where it is used.
    from .segmentation import segment_superpoints

    found = segment_superpoints(
        image, depth, intrinsics, num_segments=max(1, round(num_segments * share)), color_blur=color_blur
    )
    return found if superpoints is None else np.where(missing, found + superpoints.max() + 1, superpoints)
