"""Segments of a frame as plain JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def segments_to_json(
    frame_id: str, segmentation: np.ndarray, segments_info: Sequence[Mapping[str, Any]], **extra: Any
) -> dict[str, Any]:
    """What `json.dump` writes for one frame's prediction.

    Args:
        frame_id: Name of the frame.
        segmentation: int [H, W], ids of `segments_info`, -1 = none.
        segments_info: As `BiFusionProcessor.post_process_instance_segmentation` gives them.
        **extra: Further entries of the top level.

    Returns:
        `frame_id`, `height`, `width` (of the depth image), the extra entries, and `segments`: each one's own entries,
        `num_pixels` and `box_2d` [left, top, right, bottom] in pixels, the last two exclusive (None for a segment
        without pixels).
    """
    segmentation = np.asarray(segmentation)
    segments = []
    for segment in segments_info:
        rows, columns = np.nonzero(segmentation == segment["id"])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None
        segments.append(
            {
                **{key: _plain(value) for key, value in segment.items()},
                "num_pixels": len(rows),
                "box_2d": _plain(box),
            }
        )
    height, width = segmentation.shape
    return {"frame_id": frame_id, "height": height, "width": width, **extra, "segments": segments}


def _plain(value: Any) -> Any:
    """Numbers and lists of Python for those of numpy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
