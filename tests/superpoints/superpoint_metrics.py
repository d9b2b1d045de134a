"""How good an over-segmentation is: boundary recall, under-segmentation error, and what it lets a model reach.

Definitions as in Stutz et al. 2018 ("Superpixels: an evaluation of the state of the art").
"""

import numpy as np
from scipy import ndimage


def _check(superpoints: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    superpoints, labels = np.asarray(superpoints), np.asarray(labels)
    if superpoints.ndim != 2 or superpoints.shape != labels.shape:
        raise ValueError(f"superpoints {superpoints.shape} and labels {labels.shape}; expected two maps of one size")
    return superpoints, labels


def boundary_recall(superpoints: np.ndarray, labels: np.ndarray, tolerance: int = 2) -> float:
    """Fraction of the pixels on label boundaries that have a superpoint boundary within `tolerance` pixels.

    Args:
        superpoints: int [H, W], -1 = none; those pixels take no part.
        labels: int [H, W], any value is a label.
        tolerance: Chessboard distance in pixels; 2 is usual at 640x480.

    Returns:
        0..1; NaN without a boundary.
    """
    superpoints, labels = _check(superpoints, labels)
    wanted = _boundaries(labels, superpoints >= 0)
    found = _boundaries(superpoints, superpoints >= 0)
    near = ndimage.maximum_filter(found, 2 * tolerance + 1)
    return float(near[wanted].mean()) if wanted.any() else float("nan")


def _boundaries(labels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label; both must be valid."""
    result = np.zeros(labels.shape, bool)
    result[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & valid[:, :-1] & valid[:, 1:]
    result[:-1] |= (labels[:-1] != labels[1:]) & valid[:-1] & valid[1:]
    return result


def _overlaps(superpoints: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts [S, L] of superpoints against the L label values found (returned sorted, [L]) on their pixels."""
    valid = superpoints >= 0
    values, columns = np.unique(labels[valid], return_inverse=True)
    number = int(superpoints.max(initial=-1)) + 1
    counts = np.bincount(superpoints[valid].astype(np.int64) * len(values) + columns, minlength=number * len(values))
    return counts.reshape(number, len(values)), values


def undersegmentation_error(superpoints: np.ndarray, labels: np.ndarray) -> float:
    """Neubert and Protzel's under-segmentation error: the area that superpoints leak over label boundaries.

    Args:
        superpoints: int [H, W], -1 = none; those pixels take no part.
        labels: int [H, W], any value is a label.

    Returns:
        Sum over superpoints and labels of the smaller of their overlap and the superpoint's remainder, as a fraction
        of the pixels.
    """
    counts, _ = _overlaps(*_check(superpoints, labels))
    return float(np.minimum(counts, counts.sum(axis=1, keepdims=True) - counts).sum() / counts.sum())


def oracle_ious(superpoints: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a perfect choice of whole superpoints reaches for each instance.

    A superpoint belongs to an instance if more than half of its pixels do. With scores to match, the average
    precision of such a prediction at an IoU threshold is the fraction of instances above it.

    Args:
        superpoints: int [H, W], -1 = none; those pixels take no part.
        instances: int [H, W], -1 = none.

    Returns:
        IoU float [M] and size int [M] in pixels of the instances with at least one pixel, by ascending id.
    """
    counts, values = _overlaps(*_check(superpoints, instances))
    chosen = 2 * counts > counts.sum(axis=1, keepdims=True)
    sizes = counts.sum(axis=0)
    inside = (counts * chosen).sum(axis=0)
    selected = (counts.sum(axis=1, keepdims=True) * chosen).sum(axis=0)
    kept = values >= 0
    return (inside / (sizes + selected - inside))[kept], sizes[kept]
