"""The numbers of a frame's superpoints, without gaps among the sampled points."""

import numpy as np


def renumber_superpoints(superpoints: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the superpoints that hold a sampled point without gaps.

    Args:
        superpoints: int [H, W], -1 = none.
        pixels: int [N], flat indices of sampled pixels; all lie in a superpoint.

    Returns:
        int32 [H, W] with the new ids, -1 = none or without a sampled point; int64 [N], the new id of each point.
    """
    used, superpoint_ids = np.unique(superpoints.reshape(-1)[pixels], return_inverse=True)
    place = np.minimum(np.searchsorted(used, superpoints), len(used) - 1)
    return np.where(used[place] == superpoints, place, -1).astype(np.int32), superpoint_ids.astype(np.int64)
