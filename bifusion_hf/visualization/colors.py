"""Colours that tell instances apart."""

from functools import lru_cache

import numpy as np

from ..superpoints.colour import rgb_to_lab


def instance_colors(number: int) -> np.ndarray:
    """Distinct colours, uint8 [number, 3] RGB.

    Each next colour is the one of a fixed palette that is farthest in CIE Lab from those before, so that the first k
    colours never depend on `number`. A palette of 512 colours repeats after its end.

    Raises:
        ValueError: `number` is negative.
    """
    if number < 0:
        raise ValueError(f"number is {number}; expected at least 0")
    palette = _palette()
    return palette[np.arange(number) % len(palette)]


def instance_color(index: int) -> np.ndarray:
    """The colour of one instance, or of a scene's object, uint8 [3]."""
    return instance_colors(index + 1)[-1]


@lru_cache(maxsize=1)
def _palette(size: int = 512) -> np.ndarray:
    level = np.linspace(0, 255, 16).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb_to_lab(colors)
    # Neither greys, which the image itself is full of, nor what is too dark or too pale to see as a tint.
    vivid = (np.hypot(lab[:, 1], lab[:, 2]) > 40) & (lab[:, 0] > 40) & (lab[:, 0] < 92)
    colors, lab = colors[vivid], lab[vivid]
    chosen = [int(np.argmin(np.abs(colors.astype(int) - (238, 51, 51)).sum(axis=1)))]
    distance = np.full(len(colors), np.inf)
    while len(chosen) < size:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    palette = colors[chosen]
    palette.setflags(write=False)
    return palette
