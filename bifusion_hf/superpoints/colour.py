"""Colour as the over-segmentation compares it."""

import numpy as np


_LEVELS = np.arange(256) / 255
# Light of each level of sRGB, and the matrix to CIE XYZ, each as a fraction of white's (D65).
LINEAR_LIGHT = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)
_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
TO_XYZ = (_XYZ / _XYZ.sum(axis=1, keepdims=True)).astype(np.float32)


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of uint8 sRGB [..., 3], float32; a difference of 1 is just noticeable."""
    xyz = LINEAR_LIGHT[image] @ TO_XYZ.T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def gaussian_taps(sigma: float) -> np.ndarray:
    """float32 [2 radius + 1], a Gaussian that is cut off at four sigma, as scipy's is."""
    radius = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)
