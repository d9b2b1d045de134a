"""Touching points and connected parts by scipy's trees and graphs."""

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree


def touching_points(points: np.ndarray, among: np.ndarray, gap: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest points of each point, and how many of them touch it; see `separation.touching_points`.

    Args:
        points: float64 [N, 3] metres.
        among: bool [N].
        gap: Metres.
        count: C of each point's nearest ones count, 1 <= C < N.

    Returns:
        int32 [N, C + 1] and int32 [N]; 0 in both where a point is not asked about.
    """
    others = np.zeros((len(points), count + 1), dtype=np.int32)
    touching = np.zeros(len(points), dtype=np.int32)
    # The nearest is the point itself, or one in the same place.
    distances, found = cKDTree(points).query(points[among], k=count + 1, workers=torch.get_num_threads())
    nearest = distances[:, 1 : 1 + (count + 1) // 2]
    # The median of the nearer half, which comes sorted.
    middle = nearest.shape[1] // 2
    spacing = (nearest[:, -1 - middle] + nearest[:, middle]) / 2
    others[among] = found
    touching[among] = (distances <= np.maximum(gap, 2 * spacing)[:, None]).sum(axis=1)
    return others, touching


def connected_parts(masks: np.ndarray, others: np.ndarray, touching: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of the part that each point of each mask is in, and how many parts there are.

    Args:
        masks: bool [K, N].
        others: int32 [N, C], see `touching_points`.
        touching: int32 [N].

    Returns:
        int32 [K, N], -1 outside of the mask; parts are numbered in the order of their masks and first points.
    """
    owners, inside = np.nonzero(masks)
    place = (np.cumsum(masks, dtype=np.int32) - 1).reshape(masks.shape)
    others, owner = others[inside], owners[:, None]
    kept = (np.arange(others.shape[1]) < touching[inside, None]) & masks[owner, others]
    columns = place[owner, others][kept]
    ends = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    graph = csr_matrix((np.ones(len(columns), dtype=np.int8), columns, ends), shape=(len(inside), len(inside)))
    number, labels = connected_components(graph, directed=False)
    parts = np.full(masks.shape, -1, dtype=np.int32)
    parts[owners, inside] = labels
    return parts, number
