"""Parts of a mask that lie apart in space: an object is one piece, so each part is an instance of its own.

A network of superpoints answers by likeness, and like things in two places are one mask to it; then a box reaches from
one to the other. That the parts become instances, instead of all but the largest being dropped, measured better on
rendered and on real frames.
"""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch

from . import compiled_backend, scipy_backend


# Nearest points that a point may touch.
_NEIGHBOURS = 16
# Parts of fewer points than this share of the largest are left out.
_SMALLEST_SHARE = 0.1


def separate_parts(
    found: Mapping[str, torch.Tensor],
    points: torch.Tensor,
    *,
    gap: float,
    threshold: float = 0.0,
    min_points: float = 0,
    max_instances: int | None = None,
) -> dict[str, torch.Tensor]:
    """Makes each part of each instance an instance; the largest keeps the score.

    A smaller part has the score times the root of its size over that of the largest. Label and query stay.

    Args:
        found: On the CPU: `masks` bool [K, N], `scores` float32 [K], and what else there is of each instance [K].
        points: float32 [N, 3] metres.
        gap: Metres. Two points touch if one is among the nearest of the other and they lie no farther apart than
            this; where points are sparse, so that even neighbours on a surface are, than twice their usual distance.
        threshold: Only instances of a higher score are kept.
        min_points: Only parts of more points are kept.
        max_instances: So many are kept.

    Returns:
        The same entries for the parts, in descending order of score, and `num_parts` int64 [K], how many parts the
        mask had from which each comes, without those below a tenth of the largest.
    """
    masks = found["masks"].numpy()
    others, touching = touching_points(points.numpy(), gap, masks.any(axis=0))
    numbered, number = choose_backend().connected_parts(masks, others, touching)
    owners, inside = np.nonzero(masks)
    labels = numbered[masks]
    sizes = np.bincount(labels, minlength=number)
    rows = np.zeros(number, dtype=np.int64)
    rows[labels] = owners
    largest = np.zeros(len(masks), dtype=np.int64)
    np.maximum.at(largest, rows, sizes)
    large = sizes >= _SMALLEST_SHARE * largest[rows]
    counts = np.bincount(rows[large], minlength=len(masks))
    # As they are numbered: in the order of their masks, and within one in that of their first points.
    kept = np.flatnonzero(large & (sizes > min_points))
    place = np.full(len(sizes), -1)
    place[kept] = np.arange(len(kept))
    parts = np.zeros((len(kept), masks.shape[1]), dtype=bool)
    taken = place[labels] >= 0
    parts[place[labels[taken]], inside[taken]] = True
    result = {name: value[torch.from_numpy(rows[kept])] for name, value in found.items()}
    result["masks"] = torch.from_numpy(parts)
    factors = np.sqrt(sizes[kept] / largest[rows[kept]])
    result["scores"] = result["scores"] * torch.from_numpy(factors).to(result["scores"].dtype)
    result["num_parts"] = torch.from_numpy(counts[rows[kept]])
    order = torch.sort(result["scores"], descending=True, stable=True).indices[:max_instances]
    order = order[result["scores"][order] > threshold]
    return {name: value[order] for name, value in result.items()}


def touching_points(points: np.ndarray, gap: float, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest points of each point, and how many of them touch it; see `separate_parts`.

    Args:
        points: [N, 3] metres.
        gap: Metres.
        among: bool [N], the points that are asked about; the others touch nothing.

    Returns:
        int32 [N, C], the nearest points, each point itself among them, in ascending order of distance, and int32 [N],
        how many of those touch it: the first ones. Of two points that touch one may name the other alone.
    """
    count = min(_NEIGHBOURS, len(points) - 1)
    if count < 1 or not among.any():
        return np.zeros((len(points), count + 1), np.int32), np.zeros(len(points), np.int32)
    return choose_backend().touching_points(np.asarray(points, np.float64), among, gap, count)


def choose_backend() -> ModuleType:
    """The compiled form where it can be built, else scipy's; parts differ only where points are equally far away."""
    return scipy_backend if compiled_backend.unavailable_reason() else compiled_backend
