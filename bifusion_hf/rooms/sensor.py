"""What a consumer RGB-D sensor makes of a rendered view.

Depth after the published behaviour of structured-light sensors: disparity measured in steps of an eighth of a pixel,
with noise (K. Khoshelham, S. Oude Elberink, "Accuracy and Resolution of Kinect Depth Data", Sensors 2012); positions
jittered by about half a pixel (J. Barron, J. Malik, "Intrinsic Scene Properties from a Single RGB-D Image", CVPR
2013); shadows of the projector at depth edges; no measurement at grazing angles, on dark surfaces, or out of range.
"""

import numpy as np
from scipy import ndimage

from .render import RenderedView


_FOCAL_LENGTH = 577.87  # of the sensor at its native 640 pixels
_BASELINE = 0.075
_DISPARITY_STEP = 1 / 8
_DISPARITY_NOISE = 0.09
_RANGE = (0.4, 6.5)


def measure_depth(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """Depth float32 [H, W] in metres as the sensor would give it, 0 = no measurement.

    Args:
        view: The exact view.
        focal_length: Of the image, in its pixels.
        rng: Generator.
    """
    exact = view.depth
    height, width = exact.shape
    scale = focal_length / _FOCAL_LENGTH
    rows, columns = np.mgrid[0:height, 0:width]
    jitter = rng.normal(0, 0.5 * scale, size=(2, height, width))
    rows = np.clip(np.rint(rows + jitter[0]), 0, height - 1).astype(int)
    columns = np.clip(np.rint(columns + jitter[1]), 0, width - 1).astype(int)
    depth = exact[rows, columns]
    # Matching windows make the noise of neighbours alike.
    noise = ndimage.gaussian_filter(rng.normal(size=exact.shape), 1.5 * scale)
    noise *= _DISPARITY_NOISE / max(noise.std(), 1e-9)
    factor = _FOCAL_LENGTH * _BASELINE
    with np.errstate(divide="ignore"):
        disparity = np.where(depth > 0, factor / depth, 0) + noise
    disparity = np.rint(disparity / _DISPARITY_STEP) * _DISPARITY_STEP
    measured = np.where(disparity > 0, factor / np.maximum(disparity, 1e-6), 0)
    missing = (exact <= 0) | (measured < _RANGE[0]) | (measured > _RANGE[1])
    missing |= _projector_shadow(exact, focal_length)
    missing |= rng.random(exact.shape) < np.clip((0.2 - view.cosine) / 0.13, 0, 1)
    dark = ndimage.gaussian_filter((view.albedo < 0.012).astype(float), 1)
    missing |= dark * rng.uniform(0.2, 0.9) > ndimage.gaussian_filter(rng.random(exact.shape), 1)
    missing |= _dropouts(exact, view.cosine, rng)
    # A few pixels of the rim of every hole are lost with it.
    missing |= ndimage.binary_dilation(missing) & (rng.random(exact.shape) < 0.25)
    return np.where(missing, 0, measured).astype(np.float32)


def _projector_shadow(depth: np.ndarray, focal_length: float) -> np.ndarray:
    """Pixels that the projector, to the right of the camera, does not light because something nearer is in the way."""
    far = np.where(depth > 0, depth, 1e3)
    position = np.arange(depth.shape[1])[None] - focal_length * _BASELINE / far
    nearest = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1]
    return position > nearest + 0.75


def _dropouts(depth: np.ndarray, cosine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blotches without a measurement, more of them far away and at a slant."""
    field = ndimage.gaussian_filter(rng.normal(size=depth.shape), 2.0)
    field /= field.std()
    level = rng.uniform(2.9, 3.7)
    return field > level - 0.28 * np.clip(depth, 0, 6) - 0.9 * np.clip(0.5 - cosine, 0, 0.5)


def expose(view: RenderedView, rng: np.random.Generator) -> np.ndarray:
    """Colour uint8 [H, W, 3] of a view: exposure, white balance, tone curve, lens and sensor noise."""
    radiance = view.radiance.astype(np.float64)
    brightness = np.median(radiance.mean(axis=-1)) + 0.3 * radiance.mean()
    exposed = radiance * (rng.uniform(0.26, 0.55) / max(brightness, 1e-6))
    exposed *= rng.uniform(0.94, 1.06, 3)
    height, width = view.depth.shape
    y, x = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    exposed *= (1 - rng.uniform(0, 0.18) * (x**2 + y**2) / 2)[..., None]
    # Highlights roll off instead of clipping at once.
    exposed = np.where(exposed < 0.6, exposed, 0.6 + 0.4 * (1 - np.exp(-(exposed - 0.6) / 0.4)))
    exposed = ndimage.gaussian_filter(exposed, (0.45, 0.45, 0))
    exposed += rng.normal(size=exposed.shape) * np.sqrt(1e-6 + rng.uniform(1, 4) * 1e-4 * np.maximum(exposed, 0))
    exposed = np.clip(exposed, 0, 1)
    srgb = np.where(exposed <= 0.0031308, 12.92 * exposed, 1.055 * exposed ** (1 / 2.4) - 0.055)
    return np.rint(255 * srgb).astype(np.uint8)
