"""What the tests of the processor share."""

from types import SimpleNamespace

import torch

from bifusion_hf.data.frames import RGBDFrame


THING_LABELS = [-1, -1, *range(198)]
THING_NAMES = [f"thing {index}" for index in range(198)]


def arguments(frame: RGBDFrame) -> dict:
    return {
        "images": frame.image,
        "depth": frame.depth,
        "intrinsics": frame.intrinsics,
        "poses": frame.camera_to_world,
    }


def outputs_from_masks(masks: list[torch.Tensor], classes: list[torch.Tensor], num_points: int) -> SimpleNamespace:
    """What a model would give that is sure of these masks; padded to a common number of queries."""
    queries = max(len(rows) for rows in masks)
    result = SimpleNamespace(
        class_queries_logits=torch.full((len(masks), queries, classes[0].shape[1]), 7.0),
        masks_queries_logits=torch.full((len(masks), queries, num_points), 30.0),
        query_mask=torch.zeros(len(masks), queries, dtype=torch.bool),
    )
    for index, rows in enumerate(masks):
        result.class_queries_logits[index, : len(rows)] = classes[index]
        result.masks_queries_logits[index, : len(rows), : rows.shape[1]] = torch.where(rows, 12.0, -12.0)
        result.query_mask[index, : len(rows)] = True
    return result
