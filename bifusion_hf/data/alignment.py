"""Do points and image belong together? The colour of a point against the image at the point's pixel.

That a point projects into the image proves nothing: a cloud turned about its own centre still does. Its colour tells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


# Below it lie frames resized or cropped; at native resolution the error is under 2 / 255.
ALIGNMENT_THRESHOLD = 8 / 255


class ColorStatistics(Protocol):
    """What `BiFusionProcessor` normalised a batch by, as fractions of 255."""

    image_mean: Sequence[float]
    image_std: Sequence[float]
    color_mean: Sequence[float]
    color_std: Sequence[float]


def sample_image(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear values of an image at points, border pixels repeated (`grid_sample`, `align_corners=False`).

    Args:
        image: [H, W, C].
        pixels: [N, 2], x and y as fractions of width and height; pixel i's centre is at (i + 0.5) / W.

    Returns:
        float32 [N, C].
    """
    height, width = image.shape[:2]
    size = np.array([width, height])
    places = np.clip(pixels * size - 0.5, 0, size - 1)
    first = places.astype(np.int64)
    # What stands in for a pixel behind the last one has weight 0.
    second = np.minimum(first + 1, size - 1)
    weight = (places - first).astype(np.float32)[..., None]
    (x0, y0), (x1, y1) = first.T, second.T
    upper = image[y0, x0] * (1 - weight[:, 0]) + image[y0, x1] * weight[:, 0]
    lower = image[y1, x0] * (1 - weight[:, 0]) + image[y1, x1] * weight[:, 0]
    return upper * (1 - weight[:, 1]) + lower * weight[:, 1]


def _error(image: np.ndarray, pixels: np.ndarray, visible: np.ndarray, colors: np.ndarray, frame_id: str) -> float:
    """Arguments in 0..255; the result in 0..1."""
    if not visible.any():
        raise ValueError(
            f"{frame_id}: point_visible is False for all {len(visible)} points; expected some in the image"
        )
    difference = sample_image(image, pixels[visible]) - colors[visible]
    return float(np.abs(difference).mean()) / 255


def alignment_error(sample: Mapping[str, Any]) -> float:
    """Mean |image colour at the point's pixel - point colour| over the visible points and the three channels.

    Args:
        sample: A sample of `BiFusionProcessor.prepare_frame`, augmented or not, before colour jitter.

    Returns:
        A fraction of the colour range: 1 / 255 is one grey level.

    Raises:
        ValueError: No point is visible.
    """
    names = ("image", "point_pixels", "point_visible", "point_rgb", "frame_id")
    return _error(*(sample[name] for name in names))


def batch_alignment_errors(batch: Mapping[str, Any], processor: ColorStatistics) -> np.ndarray:
    """`alignment_error` of each frame of a batch, float64 [B].

    Args:
        batch: A batch of torch tensors. Errors that the data set measured before its colour jitter
            (`alignment_errors`) are taken as they are.
        processor: The processor that made the batch; its normalisation is undone.

    Raises:
        ValueError: A frame has no visible point.
    """
    if batch.get("alignment_errors") is not None:
        return batch["alignment_errors"].double().cpu().numpy()

    def colors(values: Any, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
        return 255 * (values.float().cpu().numpy() * std + mean)

    images = colors(batch["pixel_values"].permute(0, 2, 3, 1), processor.image_mean, processor.image_std)
    points = colors(batch["point_colors"], processor.color_mean, processor.color_std)
    visible = (batch["point_visible"] & batch["point_mask"]).cpu().numpy()
    pixels = batch["point_pixels"].cpu().numpy()
    frames = zip(images, pixels, visible, points, batch["frame_ids"], strict=True)
    return np.array([_error(*frame) for frame in frames])


def check_alignment(
    data: Mapping[str, Any], processor: ColorStatistics | None = None, threshold: float = ALIGNMENT_THRESHOLD
) -> float:
    """Fails where the points do not lie on their pixels (a shifted image, BGR for RGB, a wrong pose).

    Args:
        data: A sample, or a batch of tensors.
        processor: Needed for a batch.
        threshold: Largest error of a frame, as a fraction of the colour range.

    Returns:
        The largest error of the frames.

    Raises:
        ValueError: A frame is above the threshold; the message has its name and the numbers. Or a frame has no
            visible point.
    """
    if "image" in data:
        errors, names = np.array([alignment_error(data)]), [data["frame_id"]]
    elif processor is None:
        raise ValueError("check_alignment of a batch needs the processor, to undo its normalisation")
    else:
        errors, names = batch_alignment_errors(data, processor), data["frame_ids"]
    if errors.max() > threshold:
        bad = ", ".join(
            f"{name} {255 * error:.1f}/255" for name, error in zip(names, errors, strict=True) if error > threshold
        )
        raise ValueError(
            f"points and image are misaligned: mean colour difference {bad}; expected at most "
            f"{255 * threshold:.1f}/255. Check the order of the colour channels, the registration of colour to depth, "
            "intrinsics and pose."
        )
    return float(errors.max())
