"""What the network asks of its inputs; each message names the input, what it is and what was expected."""

import torch

from ..configuration_bifusion import BiFusionConfig


def check_inputs(
    config: BiFusionConfig,
    points: torch.Tensor,
    point_colors: torch.Tensor | None,
    point_mask: torch.Tensor | None,
    superpoint_ids: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    point_pixels: torch.Tensor | None,
    point_visible: torch.Tensor | None,
    camera_rotations: torch.Tensor | None,
) -> torch.Tensor:
    """Refuses what the encoder could not read, or would read wrongly; arguments as in `BiFusionModel.forward`.

    Returns:
        The mask of real superpoints, bool [B, S].

    Raises:
        ValueError: An input is missing or has a wrong shape or dtype.
    """
    if points.ndim != 3 or points.shape[2] != 3:
        raise ValueError(f"points has shape {tuple(points.shape)}; expected [B, N, 3]")
    batch_size, num_points = points.shape[:2]
    expected = {
        "point_colors": (point_colors, (batch_size, num_points, config.point_config.in_channels)),
        "point_mask": (point_mask, (batch_size, num_points)),
        "superpoint_ids": (superpoint_ids, (batch_size, num_points)),
    }
    if config.fusion_type != "none":
        expected["pixel_values"] = (pixel_values, (batch_size, 3, None, None))
        expected["point_pixels"] = (point_pixels, (batch_size, num_points, 2))
        expected["point_visible"] = (point_visible, (batch_size, num_points))
        if config.use_film:
            expected["camera_rotations"] = (camera_rotations, (batch_size, 3, 3))
    for name, (value, shape) in expected.items():
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        if value is None:
            raise ValueError(f"{name} is missing; fusion_type {config.fusion_type!r} expects {wanted}")
        matches = len(value.shape) == len(shape) and all(
            size is None or size == found for found, size in zip(value.shape, shape, strict=True)
        )
        if not matches:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {wanted}")
    for name in ("point_mask", "point_visible"):
        value = expected.get(name, (None,))[0]
        if value is not None and value.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {value.dtype}; expected torch.bool")
    return superpoints_present(superpoint_ids, point_mask)


def superpoints_present(superpoint_ids: torch.Tensor, point_mask: torch.Tensor) -> torch.Tensor:
    """Mask of the real superpoints, bool [B, S].

    Args:
        superpoint_ids: [B, N], 0..S-1 in each sample without gaps.
        point_mask: bool [B, N], False = padding.

    Raises:
        ValueError: A sample without points, a real point without a superpoint, or a superpoint without points.
    """
    ids = torch.where(point_mask, superpoint_ids, -1)
    if not bool(point_mask.any(dim=1).all()):
        empty = (~point_mask.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"point_mask has no point in samples {empty}")
    if bool((ids < 0)[point_mask].any()):
        raise ValueError("superpoint_ids is negative at a real point")
    present = ids.new_zeros(len(ids), int(ids.max()) + 2, dtype=torch.bool).scatter_(1, ids + 1, True)[:, 1:]
    counts = present.sum(dim=1)
    gaps = (ids.amax(dim=1) + 1 != counts).nonzero().flatten().tolist()
    if gaps:
        raise ValueError(f"superpoint_ids of samples {gaps} have gaps; expected 0..S-1, each with a point")
    return present
