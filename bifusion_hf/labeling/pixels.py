"""What the models of all packages share: pixels for a tower, features of unit length."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def patch_pixels(
    image: np.ndarray, side: int, patch: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """A whole image for a tower, both sides rounded to multiples of the patch.

    Args:
        image: uint8 [H, W, 3] RGB.
        side: Of its shorter side.
        patch: Side of a patch.
        mean: Fractions of 255.
        std: Fractions of 255.

    Returns:
        float32 [1, 3, h * patch, w * patch], and (h, w).
    """
    scale = side / min(image.shape[:2])
    rows, columns = (max(1, round(length * scale / patch)) for length in image.shape[:2])
    resized = Image.fromarray(image).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    values = (np.asarray(resized, dtype=np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(values).permute(2, 0, 1)[None], (rows, columns)


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features [..., D] of length 1, float32, on the CPU."""
    features = features.float().cpu()
    return features / features.norm(dim=-1, keepdim=True)
