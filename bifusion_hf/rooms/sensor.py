"""What consumer RGB-D sensors make of a rendered view: `SENSORS`.

Structured light (`kinect1`) after its published behaviour: disparity measured in steps of an eighth of a pixel, with
noise (K. Khoshelham, S. Oude Elberink, "Accuracy and Resolution of Kinect Depth Data", Sensors 2012); positions
jittered by about half a pixel (J. Barron, J. Malik, "Intrinsic Scene Properties from a Single RGB-D Image", CVPR
2013); shadows of the projector at depth edges; no measurement at grazing angles, on dark surfaces, or out of range.
The others have the faults that their principle is known for.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from .render import RenderedView


_FOCAL_LENGTH = 577.87  # of the sensor at its native 640 pixels
_BASELINE = 0.075
_DISPARITY_STEP = 1 / 8
_DISPARITY_NOISE = 0.09
_RANGE = (0.4, 6.5)
_LUMA = np.array([0.299, 0.587, 0.114])
_WHITE = 1.5  # exposure that the tone curve makes all but white
# Mean luma that cameras aim at, of 255, and what they do now and then.
_AIM, _RARE_AIM = (70, 150), (45, 185)


def measure_depth(
    view: RenderedView, focal_length: float, rng: np.random.Generator, sensor: str = "kinect1"
) -> np.ndarray:
    """Depth float32 [H, W] in metres as a sensor would give it, 0 = no measurement.

    Args:
        view: The exact view.
        focal_length: Of the image, in its pixels.
        rng: Generator.
        sensor: A name out of `SENSORS`, or "mixed" for any of them that measures a quarter of the pixels here.
    """
    if sensor != "mixed":
        return SENSORS[sensor](view, focal_length, rng).astype(np.float32)
    for name in rng.permutation(list(SENSORS)):
        depth = SENSORS[name](view, focal_length, rng).astype(np.float32)
        if np.mean(depth > 0) > 0.25:
            break
    return depth


def kinect1(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """Structured light: disparity in steps, the projector's shadow, holes."""
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


def _correlated(rng: np.random.Generator, shape: tuple[int, int], width: float) -> np.ndarray:
    """Noise of deviation 1 whose neighbours are alike over `width` pixels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), width)
    return noise / max(noise.std(), 1e-9)


def tof(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """Time of flight: noise by the returned light, flying pixels between near and far, often seams of a coarser grid
    that was projected into the colour image.
    """
    exact = np.where(view.depth > 0, view.depth, 0)
    light = np.clip(view.albedo * view.cosine, 1e-3, 1)
    sigma = rng.uniform(0.0008, 0.003) * (1 + exact**2 / 4) / np.sqrt(light + 0.05)
    near, far = ndimage.minimum_filter(exact, 3), ndimage.maximum_filter(exact, 3)
    measured = exact + sigma * (0.6 * rng.normal(size=exact.shape) + 0.6 * _correlated(rng, exact.shape, 1.0))
    flying = (far - near > 0.04 * exact + 0.01) & (rng.random(exact.shape) < rng.uniform(0.2, 0.7))
    measured = np.where(flying, near + (far - near) * rng.random(exact.shape), measured)
    missing = (exact <= 0) | (exact > rng.uniform(3.5, 8)) | (near <= 0) & flying
    missing |= light / np.maximum(exact, 0.3) ** 2 < rng.uniform(0.0005, 0.004) * rng.uniform(0.7, 1.3, exact.shape)
    if rng.random() < 0.5:
        missing |= _seams(exact, focal_length, rng)
    return np.where(missing, 0, measured)


def _seams(depth: np.ndarray, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels that no pixel of another camera falls on when its depth is projected into this one."""
    height, width = depth.shape
    step, baseline = rng.uniform(1.006, 1.03), rng.uniform(-0.03, 0.03, 2)
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    z = depth[np.rint(rows).astype(int).clip(max=height - 1), np.rint(columns).astype(int).clip(max=width - 1)]
    shift = focal_length / np.maximum(z, 0.2)
    middle = np.median(shift)
    rows = np.rint(rows + baseline[1] * (shift - middle)).astype(int)
    columns = np.rint(columns + baseline[0] * (shift - middle)).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    hit = np.zeros(depth.shape, bool)
    hit[rows[inside], columns[inside]] = True
    return ~hit


def stereo(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """Active stereo: windows of a block matcher fatten what is near, round its edges and make flat things wavy;
    nothing where only one of the two cameras sees, at the image's left border too.
    """
    exact = view.depth
    scale, baseline = focal_length / _FOCAL_LENGTH, rng.uniform(0.03, 0.08)
    factor = focal_length * baseline
    with np.errstate(divide="ignore"):
        disparity = np.where(exact > 0, factor / np.maximum(exact, 1e-6), 0)
    window = 2 * int(np.rint(rng.uniform(1.5, 4) * scale)) + 1
    fat = ndimage.maximum_filter(disparity, window)
    disparity = np.where(fat - disparity > np.maximum(1.0 * scale, 0.06 * disparity), fat, disparity)
    smooth = ndimage.gaussian_filter(disparity, window / 4)
    even = ndimage.maximum_filter(disparity, window) - ndimage.minimum_filter(disparity, window) < 0.1 * disparity
    disparity = np.where(even, smooth, disparity)
    disparity = disparity + scale * rng.uniform(0.05, 0.25) * _correlated(rng, exact.shape, window / 2)
    measured = np.where(disparity > 0, factor / np.maximum(disparity, 1e-6), 0)
    # Users often cut off what is beyond their table; some of the scene they keep.
    reach = max(rng.choice([0.9, 1.5, 3.0, 6.0, 9.0]), 1.2 * np.percentile(exact, 40))
    missing = (exact <= 0) | (measured < 0.2) | (measured > reach)
    missing |= _projector_shadow(np.where(measured > 0, measured, 0), focal_length, baseline)
    missing |= np.arange(exact.shape[1]) < np.where(exact > 0, disparity, 0)
    missing |= rng.random(exact.shape) < np.clip((0.15 - view.cosine) / 0.1, 0, 1)
    missing |= _dropouts(exact, view.cosine, rng)
    return np.where(missing, 0, measured)


def lidar(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """A phone's lidar: few spots, spread smoothly over the image: edges are slopes, small things shallow."""
    height, width = view.depth.shape
    columns = int(rng.integers(56, 128))
    rows = round(columns * height / width)
    coarse = ndimage.zoom(ndimage.median_filter(view.depth, 3), (rows / height, columns / width), order=1)
    coarse = coarse * (1 + rng.uniform(0.001, 0.006) * rng.normal(size=coarse.shape))
    measured = ndimage.zoom(coarse, (height / coarse.shape[0], width / coarse.shape[1]), order=1)
    return np.where((view.depth <= 0) | (view.depth > 5), 0, measured)


def dense(view: RenderedView, focal_length: float, rng: np.random.Generator) -> np.ndarray:
    """The exact depth, of a simulator or a scanned mesh."""
    return view.depth


SENSORS: dict[str, Callable[[RenderedView, float, np.random.Generator], np.ndarray]] = {
    "kinect1": kinect1, "tof": tof, "stereo": stereo, "lidar": lidar, "dense": dense,
}  # fmt: skip


def about_sensors(sensor: str) -> dict[str, str]:
    """What a sensor, or with "mixed" each of all, does to depth: a sentence by name."""
    names = SENSORS if sensor == "mixed" else [sensor]
    return {name: " ".join((SENSORS[name].__doc__ or "").split()) for name in names}


def _projector_shadow(depth: np.ndarray, focal_length: float, baseline: float = _BASELINE) -> np.ndarray:
    """Pixels that the projector, to the right of the camera, does not light because something nearer is in the way."""
    far = np.where(depth > 0, depth, 1e3)
    position = np.arange(depth.shape[1])[None] - focal_length * baseline / far
    nearest = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1]
    return position > nearest + 0.75


def _dropouts(depth: np.ndarray, cosine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blotches without a measurement, more of them far away and at a slant."""
    field = ndimage.gaussian_filter(rng.normal(size=depth.shape), 2.0)
    field /= field.std()
    level = rng.uniform(2.9, 3.7)
    return field > level - 0.28 * np.clip(depth, 0, 6) - 0.9 * np.clip(0.5 - cosine, 0, 0.5)


def expose(view: RenderedView, rng: np.random.Generator, luma: float | None = None) -> np.ndarray:
    """Colour uint8 [H, W, 3] of a view: exposure, white balance, tone curve, lens and sensor noise.

    Args:
        view: The exact view.
        rng: Generator.
        luma: Mean that an automatic exposure brings the picture to, of 255; None = by the view's median.
    """
    radiance = view.radiance.astype(np.float64)
    brightness = np.median(radiance.mean(axis=-1)) + 0.3 * radiance.mean()
    gain = rng.uniform(0.26, 0.55) / max(brightness, 1e-6)
    exposed = radiance * (gain if luma is None else _automatic_gain(radiance, luma))
    exposed *= rng.uniform(0.94, 1.06, 3)
    height, width = view.depth.shape
    y, x = np.mgrid[-1 : 1 : 1j * height, -1 : 1 : 1j * width]
    exposed *= (1 - rng.uniform(0, 0.18) * (x**2 + y**2) / 2)[..., None]
    exposed = _roll_off(exposed)
    exposed = ndimage.gaussian_filter(exposed, (0.45, 0.45, 0))
    exposed += rng.normal(size=exposed.shape) * np.sqrt(1e-6 + rng.uniform(1, 4) * 1e-4 * np.maximum(exposed, 0))
    return np.rint(255 * _to_srgb(np.clip(exposed, 0, 1))).astype(np.uint8)


def _roll_off(exposed: np.ndarray) -> np.ndarray:
    """Highlights roll off instead of clipping at once."""
    return np.where(exposed < 0.6, exposed, 0.6 + 0.4 * (1 - np.exp(-(exposed - 0.6) / 0.4)))


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _automatic_gain(radiance: np.ndarray, luma: float) -> float:
    """The gain that brings a picture to a mean luma of 255, less where more than 2 % would be white."""
    sample = radiance[::4, ::4].reshape(-1, 3)
    low, high = -12.0, 12.0
    for _ in range(16):
        middle = (low + high) / 2
        mean = 255 * np.mean(_to_srgb(_roll_off(sample * 2.0**middle)) @ _LUMA)
        low, high = (middle, high) if mean < luma else (low, middle)
    gain = 2.0**low
    white = _WHITE / max(float(np.quantile(sample.max(axis=1), 0.98)), 1e-9)
    return max(min(gain, white), gain / 2)


def photograph(view: RenderedView, rng: np.random.Generator) -> np.ndarray:
    """Colour uint8 [H, W, 3] of a view by a cheap camera with automatic exposure."""
    aim = _AIM if rng.random() < 0.92 else _RARE_AIM
    return develop(expose(view, rng, luma=rng.uniform(*aim)), rng)


def develop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What cheap cameras add to a picture uint8 [H, W, 3]: blur, casts, contrast, noise and JPEG blocks."""
    values = image.astype(np.float64) / 255
    if rng.random() < 0.3:
        length, angle = rng.uniform(1, 5), rng.uniform(0, np.pi)
        shifts = np.linspace(-0.5, 0.5, 5)[:, None] * length * [np.sin(angle), np.cos(angle)]
        values = np.mean([ndimage.shift(values, (*shift, 0), order=1, mode="nearest") for shift in shifts], axis=0)
    if rng.random() < 0.3:
        values = ndimage.gaussian_filter(values, (rng.uniform(0.3, 1.0),) * 2 + (0,))
    values *= np.exp(rng.normal(0, 0.03 if rng.random() < 0.92 else 0.1, 3)) * np.exp(rng.normal(0, 0.06))
    grey = values.mean(axis=-1, keepdims=True)
    values = grey + rng.uniform(0.6, 1.35) * (values - grey)
    values = np.clip(values, 0, 1) ** np.exp(rng.normal(0, 0.1))
    values += rng.uniform(0, 0.025) * rng.normal(size=values.shape)
    image = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.6:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=int(rng.integers(35, 96)))
        image = np.asarray(Image.open(buffer).convert("RGB"))
    return image
