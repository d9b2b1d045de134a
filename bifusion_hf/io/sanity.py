"""What a depth image and a camera can be: the impossible is refused, the doubtful is told with a guess at the reason.

Every way in passes here: files, arrays in memory, the rows of data sets and the demo page.
"""

import contextlib
import contextvars
import logging
import re
from collections.abc import Iterator

import numpy as np


logger = logging.getLogger("bifusion_hf")

# Median depth in metres: what no depth camera gives, and what is rare indoors.
POSSIBLE_DEPTH = (0.05, 50.0)
USUAL_DEPTH = (0.2, 6.0)
# A guess at the units has to lead here.
LIKELY_DEPTH = (0.4, 5.0)
FAR = 30.0
# Degrees of the whole image.
LARGEST_FIELD = 160.0
USUAL_FIELD = (20.0, 130.0)
# Of the image's size, from its middle to the principal point.
USUAL_OFFSET = 0.2
USUAL_PIXEL_ASPECT = 1.15
# The largest number of 16 bits is where a measurement ends, whatever the unit.
SATURATED = 65535
# SUN RGB-D stores millimetres with their 16 bits rotated by 3: eight times the value.
ROTATED_UNITS = 8000.0

_collector: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("doubts", default=None)
_told: set[tuple[str, str]] = set()


def tell_doubt(kind: str, name: str, text: str) -> None:
    """Warns of something doubtful, once for all inputs whose names differ in their numbers alone.

    Args:
        kind: Of the doubt.
        name: Of the frame or file.
        text: What was found, and what it may mean.
    """
    collected = _collector.get()
    if collected is not None:
        collected.append(f"{name}: {text}")
        return
    key = (kind, re.sub(r"\d+", "", name))
    if key not in _told:
        _told.add(key)
        logger.warning("%s: %s", name, text)


@contextlib.contextmanager
def collected_doubts() -> Iterator[list[str]]:
    """Gives the doubts of the block, in this thread, as a list in place of warnings."""
    token = _collector.set([])
    try:
        yield _collector.get()
    finally:
        _collector.reset(token)


def forget_doubts() -> None:
    """Lets every doubt be told once more."""
    _told.clear()


def check_stored_depth(values: np.ndarray, depth_scale: float | None, name: str) -> None:
    """Holds depth as it is stored against what cameras give.

    Args:
        values: Integers or floating point [H, W]; 0, negative, NaN and inf are no measurement.
        depth_scale: Units per metre; None = metres.
        name: Of the frame or file.

    Raises:
        ValueError: The median cannot be that of a depth camera.
    """
    sample = _sample(values)
    if not sample.size:
        return
    scale = 1.0 if depth_scale is None else float(depth_scale)
    raw = float(np.median(sample))
    guess = _guess_units(values, sample, raw, depth_scale)
    _check_median(raw / scale, name, guess)
    far = float(np.percentile(sample, 99)) / scale
    if values.dtype == np.uint8:
        tell_doubt("bits", name, f"depth has 8 bits, {raw / scale:.3g} m in the median{guess}")
    elif not USUAL_DEPTH[0] <= raw / scale <= USUAL_DEPTH[1]:
        tell_doubt("median", name, f"the median depth is {raw / scale:.3g} m{guess}")
    elif far > FAR:
        tell_doubt("range", name, f"depth reaches {far:.3g} m; values that mean no measurement? They must be 0")


def check_depth(depth: np.ndarray, name: str) -> None:
    """Refuses metres [H, W], 0 = no measurement, that no depth camera gives.

    Raises:
        ValueError: The median is too small or too large.
    """
    sample = _sample(depth)
    if sample.size:
        raw = float(np.median(sample))
        _check_median(raw, name, _guess_units(depth, sample, raw, None))


def saturated(values: np.ndarray, name: str) -> np.ndarray | None:
    """Where stored integers are the largest that 16 bits hold, bool [H, W]; None where none are."""
    if not np.issubdtype(values.dtype, np.integer) or values.dtype.itemsize < 2:
        return None
    mask = values == SATURATED
    count = int(np.count_nonzero(mask))
    if count == 0:
        return None
    tell_doubt("saturated", name, f"{count} pixels of depth are {SATURATED}; they are taken as no measurement")
    return mask


def check_camera(intrinsics: np.ndarray, width: int, height: int, name: str) -> None:
    """Holds intrinsics against the size of their depth image.

    Args:
        intrinsics: [3, 3] with positive focal lengths, pixels.
        width: Of the depth image.
        height: Of the depth image.
        name: Of the frame or file.

    Raises:
        ValueError: The principal point is outside of the image, or the field of view is that of no lens.
    """
    fx, fy, cx, cy = (float(intrinsics[index]) for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
    numbers = f"intrinsics have fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g} for a depth image of {width}x{height}"
    fields = [2 * np.degrees(np.arctan2(size / 2, focal)) for size, focal in ((width, fx), (height, fy))]
    if max(fields) > LARGEST_FIELD:
        guess = "; they are those of another image size, or no pixels"
        if fx == fy == 1 and cx == cy == 0:
            guess = "; the identity stands for no camera"
        elif fx < 10 and 0 < cx < 1 and 0 < cy < 1:
            guess = (
                f"; divided by the image's size? In pixels they are {fx * width:g}, {fy * height:g}, {cx * width:g}, "
                f"{cy * height:g}"
            )
        raise ValueError(f"{name}: {numbers}: a field of view of {max(fields):.0f} degrees{guess}")
    other = f"intrinsics of an image of about {2 * cx + 1:.0f}x{2 * cy + 1:.0f}, or of one that was cropped since?"
    if not (0 < cx < width - 1 and 0 < cy < height - 1):
        raise ValueError(f"{name}: {numbers}: the principal point is outside of the image; {other}")
    if max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5)) > USUAL_OFFSET:
        tell_doubt("principal point", name, f"{numbers}: the principal point is far from the middle; {other}")
    if max(fx / fy, fy / fx) > USUAL_PIXEL_ASPECT:
        tell_doubt("pixels", name, f"{numbers}: pixels that are no squares; is the order fx, fy, cx, cy?")
    elif not (USUAL_FIELD[0] <= max(fields) <= USUAL_FIELD[1]):
        tell_doubt("field", name, f"{numbers}: a field of view of {max(fields):.0f} degrees; {other}")


def check_fraction(option: str, value: float | None) -> None:
    """Refuses a threshold that is no probability; None passes.

    Raises:
        ValueError: It is outside of 0 to 1.
    """
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{option} is {value:g}; expected a probability, 0 to 1")


def _sample(values: np.ndarray) -> np.ndarray:
    """Some of the measurements: medians of all pixels would take longer than reading them."""
    if values.ndim != 2:
        return np.zeros(0)
    step = max(1, min(values.shape) // 96)
    sample = values[::step, ::step]
    return sample[np.isfinite(sample) & (sample > 0)]


def _check_median(median: float, name: str, guess: str) -> None:
    if not POSSIBLE_DEPTH[0] <= median <= POSSIBLE_DEPTH[1]:
        low, high = POSSIBLE_DEPTH
        raise ValueError(f"{name}: the median depth is {median:.3g} m; expected {low:g} to {high:g} m{guess}")


def _guess_units(values: np.ndarray, sample: np.ndarray, raw: float, depth_scale: float | None) -> str:
    """What the units may be instead."""
    if values.dtype == np.uint8:
        return ". Pictures of depth have 8 bits, and say little of metres: take the camera's own 16-bit images"
    is_integer = np.issubdtype(values.dtype, np.integer)
    candidates = {
        1000.0: "millimetres have 1000 units a metre",
        5000.0: "TUM RGB-D has 5000 units a metre",
        100.0: "centimetres have 100 units a metre",
    }
    if is_integer and np.mean(sample % 8 == 0) > 0.99:
        candidates = {ROTATED_UNITS: "SUN RGB-D's rotated bits make 8000 units a metre", **candidates}
    for units, words in candidates.items():
        if units != depth_scale and LIKELY_DEPTH[0] <= raw / units <= LIKELY_DEPTH[1]:
            return f"; {words} (depth_scale {units:g}), then it is {raw / units:.2g} m"
    return "; is depth_scale right?"
