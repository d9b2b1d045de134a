"""The size in which the network sees an image."""

from collections.abc import Sequence

import numpy as np

from .augmentation import resize_image


# Sides of an image that is brought to a size of its shorter side.
MAX_ASPECT = 10


def fit_image(
    image: np.ndarray, image_size: int | Sequence[int] | None, size_divisor: int = 1, frame_id: str = "frame"
) -> np.ndarray:
    """The image at the network's size, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3].
        image_size: The shorter side, [height, width], or None for the image's own size.
        size_divisor: Both sides are rounded to multiples of it, unless `image_size` is [height, width].
        frame_id: Name used in messages.

    Raises:
        ValueError: `image_size` is [height, width] of another aspect; `point_pixels` are fractions, so stretching
            would keep them right, but the network would see objects of another shape. Or a strip of an image.
    """
    height, width = image.shape[:2]
    if isinstance(image_size, int) and max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"{frame_id}: image is {height}x{width} (height x width); with its shorter side at image_size "
            f"{image_size} the other would be huge. Expected sides of at most {MAX_ASPECT} : 1; crop it"
        )
    if image_size is None or isinstance(image_size, int):
        scale = 1 if image_size is None else image_size / min(height, width)
        sides = (max(size_divisor, round(side * scale / size_divisor) * size_divisor) for side in (height, width))
        return resize_image(image, tuple(sides))
    target_height, target_width = image_size
    # One pixel of rounding is allowed, at either size.
    if abs(width * target_height - height * target_width) > max(width, height, target_width, target_height):
        raise ValueError(
            f"{frame_id}: image is {height}x{width} (height x width) while image_size is {image_size}; "
            "expected the same aspect ratio. An image_size of one number, the shorter side, takes any aspect."
        )
    return resize_image(image, (target_height, target_width))
