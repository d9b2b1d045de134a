"""What augmentation does to colours and to the depth of a frame: linear maps, new colours of objects, noise, holes."""

import numpy as np
from PIL import Image


# Weights of the luma of ITU-R BT.601, as Pillow's own "L" conversion has them.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# Cells of the noise that holes are cut by, along the shorter side: a hole is about a tenth of the picture wide.
_HOLE_CELLS = 10


def hue_rotation(angle: float) -> np.ndarray:
    """Matrix [3, 3] that turns RGB colours about the grey axis by radians; greys stay."""
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    other = (1 - cos) / 3
    around = sin * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return cos * np.eye(3) + other + around


def saturation_matrix(factor: float) -> np.ndarray:
    """Matrix [3, 3] that scales the difference of RGB colours from their own grey; 0 leaves grey."""
    return factor * np.eye(3) + (1 - factor) * LUMA


def apply_colors(
    colors: np.ndarray, matrix: np.ndarray, offset: np.ndarray | float = 0.0, gamma: float = 1.0
) -> np.ndarray:
    """`matrix @ (255 (c / 255) ^ gamma) + offset` of colours c, clipped and rounded.

    Args:
        colors: uint8 [..., 3].
        matrix: [3, 3].
        offset: [3] or a number, in 0..255.
        gamma: Exponent; 1 = none.

    Returns:
        uint8 [..., 3].
    """
    table = (255 * (np.arange(256) / 255) ** gamma).astype(np.float32)
    changed = table[colors].reshape(-1, 3) @ matrix.T.astype(np.float32)
    changed += np.asarray(offset + 0.5, dtype=np.float32)
    np.clip(changed, 0, 255, out=changed)
    return changed.astype(np.uint8).reshape(colors.shape)


def recolor_objects(image: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Gives objects other colours: their own, turned in hue and made lighter or darker, or one with their shading.

    Args:
        image: uint8 [Hc, Wc, 3].
        labels: int [H, W], -1 = none, of the same aspect.
        share: Probability of each object.
        rng: Source of the draws.

    Returns:
        uint8 [Hc, Wc, 3]; the image given where no object is chosen.
    """
    ids = np.flatnonzero(np.bincount(labels.reshape(-1) + 1)[1:])
    ids = ids[rng.random(len(ids)) < share]
    if not len(ids):
        return image
    if labels.shape != image.shape[:2]:
        rows, columns = (
            np.arange(size) * count // size for size, count in zip(image.shape, labels.shape, strict=False)
        )
        labels = labels[rows[:, None], columns]
    pixels, labels = image.reshape(-1, 3).copy(), labels.reshape(-1)
    for index in ids:
        chosen = np.flatnonzero(labels == index)
        if not len(chosen):
            continue
        own = pixels[chosen]
        gain = np.exp(rng.uniform(-0.5, 0.5))
        if rng.random() < 0.5:
            matrix = gain * hue_rotation(rng.uniform(-np.pi, np.pi))
        else:
            # A colour that the object has as a whole; what is lighter on it stays lighter.
            mean = max(own.mean(axis=0) @ LUMA, 1.0)
            matrix = np.outer(rng.uniform(20, 235, 3) * gain, LUMA / mean)
        pixels[chosen] = apply_colors(own, matrix)
    return pixels.reshape(image.shape)


def noisy_depth(depth: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Depth with independent noise of `strength * z^2` metres (Khoshelham and Elberink 2012), float32 [H, W].

    Args:
        depth: float32 [H, W] metres, 0 = no measurement; those pixels stay 0.
        strength: Standard deviation at one metre.
        rng: Source of the noise.
    """
    noise = rng.standard_normal(depth.shape, dtype=np.float32)
    return np.maximum(depth + np.float32(strength) * depth**2 * noise, depth / 2)


def cut_holes(depth: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Depth without the measurements of connected blots.

    Args:
        depth: float32 [H, W] metres, 0 = no measurement.
        share: Of the picture that the blots cover.
        rng: Source of the blots.

    Returns:
        float32 [H, W].
    """
    height, width = depth.shape
    cell = min(height, width) / _HOLE_CELLS
    coarse = rng.standard_normal((round(height / cell) + 1, round(width / cell) + 1), dtype=np.float32)
    field = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.where(field < np.quantile(field[::4, ::4], share), np.float32(0), depth)
