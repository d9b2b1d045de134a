"""Intervals of average precision by resampling the frames that it was measured on."""

from collections.abc import Mapping, Sequence

import numpy as np


def resampled_weights(units: Sequence[str], draws: int, seed: int) -> np.ndarray:
    """How often each frame is held by each of several random draws with replacement.

    Args:
        units: For each of F frames, the unit that it is drawn with: its own name, or the scene that it shows with
            others; a draw takes as many units as there are.
        draws: D.
        seed: Of the draws.

    Returns:
        int64 [D, F].
    """
    names, unit_of_frame = np.unique(np.asarray(units), return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, unit_of_frame]


def group_means(
    values: np.ndarray, class_names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Mean over the classes of each group.

    Args:
        values: float64 [D, C], NaN = no value, which is left out of means.
        class_names: Of the columns.
        groups: Group -> names of its classes.

    Returns:
        Group -> float64 [D].
    """
    means = {}
    for group, names in groups.items():
        chosen = values[:, [index for index, name in enumerate(class_names) if name in set(names)]]
        counts = (~np.isnan(chosen)).sum(axis=1)
        sums = np.nansum(chosen, axis=1)
        means[group] = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return means


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of draws that are not NaN; NaN without any."""
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
