"""The numbers of a frame's superpoints, without gaps among the sampled points."""

import numpy as np

from ..labels import NONE


def renumber_superpoints(superpoints: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the superpoints that hold a sampled point without gaps.

    Args:
        superpoints: int [H, W], -1 = none.
        pixels: int [N], flat indices of sampled pixels; all lie in a superpoint.

    Returns:
        int32 [H, W] with the new ids, -1 = none or without a sampled point; int64 [N], the new id of each point.
    """
    superpoints = np.maximum(superpoints, -1)
    if superpoints.max() >= superpoints.size:
        # Numbers that would make the table below larger than the image.
        superpoints = np.where(superpoints < 0, -1, np.searchsorted(np.unique(superpoints), superpoints))
    of_points = superpoints.reshape(-1)[pixels]
    used = np.flatnonzero(np.bincount(of_points))
    # The entry behind the last number answers for `NONE`.
    numbers = np.full(superpoints.size + 1, NONE, np.int32)
    numbers[used] = np.arange(len(used), dtype=np.int32)
    return numbers[superpoints], numbers[of_points].astype(np.int64)
