"""What the network is given: the tensors of a batch of frames, checked once; everything behind `forward` takes it."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.utils import logging


if TYPE_CHECKING:
    from ..configuration_bifusion import BiFusionConfig

logger = logging.get_logger(__name__)
HALF_PRECISION = (torch.float16, torch.bfloat16)
# Inputs in metres, pixels or angles: in half precision a point moves by millimetres and its pixel by more than one.
POSITIONS = ("points", "point_pixels", "camera_rotations")


@dataclass
class FrameBatch:
    """B frames of up to N points, S superpoints and one image each; P = the real points of all, without padding.

    Args:
        points: [B, N, 3] metres, z up, centred.
        point_colors: [B, N, C], normalised RGB.
        point_mask: bool [B, N], False = padding.
        superpoint_ids: int64 [B, N], 0..S-1 in each sample without gaps, -1 at padding.
        pixel_values: [B, 3, H, W], normalised RGB image; needed with an image branch, as are the next two.
        point_pixels: [B, N, 2], place in the image as fractions of width and height.
        point_visible: bool [B, N], the point is seen in the image.
        camera_rotations: [B, 3, 3], camera axes to point axes; needed with FiLM.
    """

    points: Tensor
    point_colors: Tensor
    point_mask: Tensor
    superpoint_ids: Tensor
    pixel_values: Tensor | None = None
    point_pixels: Tensor | None = None
    point_visible: Tensor | None = None
    camera_rotations: Tensor | None = None

    @property
    def batch_size(self) -> int:
        return len(self.points)

    @cached_property
    def superpoint_mask(self) -> Tensor:
        """Mask of the real superpoints, bool [B, S]."""
        return superpoints_present(self.superpoint_ids, self.point_mask)

    @cached_property
    def _places(self) -> Tensor:
        """The place of each real point in the flattened batch, int64 [P]; found once, a GPU's host waits for it."""
        return self.point_mask.flatten().nonzero().squeeze(1)

    @cached_property
    def _is_full(self) -> bool:
        """Whether there is no padding, so that no row need be moved; a compiled graph holds for all batches."""
        return not torch.compiler.is_compiling() and len(self._places) == self.point_mask.numel()

    @cached_property
    def sample(self) -> Tensor:
        """The sample of each real point, int64 [P]."""
        return self._places.div(self.point_mask.shape[1], rounding_mode="floor")

    @cached_property
    def point_superpoints(self) -> Tensor:
        """For each real point sample * S + superpoint, int64 [P]."""
        return self.sample * self.superpoint_mask.shape[1] + self.real(self.superpoint_ids)

    def real(self, values: Tensor) -> Tensor:
        """The real points' rows of [B, N, ...]: [P, ...]."""
        rows = values.flatten(0, 1)
        return rows.contiguous() if self._is_full else rows.index_select(0, self._places)

    def pad(self, rows: Tensor) -> Tensor:
        """Rows of the real points [P, C] to [B, N, C], 0 at padding."""
        if not self._is_full:
            rows = rows.new_zeros(self.point_mask.numel(), rows.shape[1]).index_copy_(0, self._places, rows)
        return rows.unflatten(0, self.point_mask.shape)

    def to(self, device: torch.device, **kwargs) -> "FrameBatch":
        """The batch on a device; `kwargs` as in `torch.Tensor.to`."""
        return self._map(lambda name, value: value.to(device, **kwargs))

    def cast(self, dtype: torch.dtype) -> "FrameBatch":
        """Colours and image in the network's precision, positions never below float32."""
        precise = torch.promote_types(dtype, torch.float32)
        dtypes = {"points": precise, "point_colors": dtype, "pixel_values": dtype}
        return self._map(lambda name, value: value.to(dtypes[name]) if name in dtypes else value)

    def _map(self, change) -> "FrameBatch":
        values = {name: getattr(self, name) for name in FORWARD_INPUTS}
        return FrameBatch(**{name: None if value is None else change(name, value) for name, value in values.items()})

    def split(self, count: int) -> list["FrameBatch"]:
        """The batch in `count` parts of as many consecutive frames each."""
        size = self.batch_size // count
        rows = [slice(start, start + size) for start in range(0, self.batch_size, size)]
        return [self._map(lambda name, value, part=part: value[part]) for part in rows]

    def check(self, config: "BiFusionConfig") -> None:
        """Refuses what the network could not read, or would read wrongly; warns of positions in half precision.

        Raises:
            ValueError: An input is missing or has a wrong shape or dtype; the message names it.
        """
        if self.points.ndim != 3 or self.points.shape[2] != 3:
            raise ValueError(f"points has shape {tuple(self.points.shape)}; expected [B, N, 3]")
        batch_size, num_points = self.points.shape[:2]
        expected = {
            "point_colors": (batch_size, num_points, config.point_config.in_channels),
            "point_mask": (batch_size, num_points),
            "superpoint_ids": (batch_size, num_points),
        }
        if config.fusion_type != "none":
            expected["pixel_values"] = (batch_size, 3, None, None)
            expected["point_pixels"] = (batch_size, num_points, 2)
            expected["point_visible"] = (batch_size, num_points)
            if config.use_film:
                expected["camera_rotations"] = (batch_size, 3, 3)
        for name, shape in expected.items():
            value = getattr(self, name)
            wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
            if value is None:
                raise ValueError(f"{name} is missing; fusion_type {config.fusion_type!r} expects {wanted}")
            matches = len(value.shape) == len(shape) and all(
                size is None or size == found for found, size in zip(value.shape, shape, strict=True)
            )
            if not matches:
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {wanted}")
            if name in ("point_mask", "point_visible") and value.dtype != torch.bool:
                raise ValueError(f"{name} has dtype {value.dtype}; expected torch.bool")
        for name in POSITIONS:
            if (name == "points" or name in expected) and getattr(self, name).dtype in HALF_PRECISION:
                logger.warning_once(
                    f"{name} has dtype {getattr(self, name).dtype}, in which points move by millimetres and masks "
                    "suffer; expected torch.float32, also in a half-precision network. The processor's "
                    "`inputs.to(device, dtype)` keeps it"
                )


# Arguments of the network's forward beside labels.
FORWARD_INPUTS = tuple(field.name for field in dataclasses.fields(FrameBatch))


def superpoints_present(superpoint_ids: Tensor, point_mask: Tensor) -> Tensor:
    """Mask of the real superpoints, bool [B, S].

    Args:
        superpoint_ids: [B, N], 0..S-1 in each sample without gaps.
        point_mask: bool [B, N], False = padding.

    Raises:
        ValueError: A sample without points, a real point without a superpoint, or a superpoint without points.
    """
    ids = torch.where(point_mask, superpoint_ids, -1)
    # All that is to be known in one transfer: sums over samples, as numbers of one row. No id reaches N without a gap.
    longest = point_mask.shape[1]
    present = ids.new_zeros(len(ids), longest + 2, dtype=torch.bool)
    present.scatter_(1, (ids + 1).clamp(0, longest + 1), True)
    is_empty = ~point_mask.any(dim=1)
    is_negative = ((superpoint_ids < 0) & point_mask).any(dim=1)
    highest = ids.amax(dim=1)
    has_gap = highest + 1 != present[:, 1:].sum(dim=1)
    facts = torch.stack([is_empty, is_negative, has_gap, highest]).tolist()
    empty, negative, gaps = ([sample for sample, is_so in enumerate(row) if is_so] for row in facts[:3])
    if empty:
        raise ValueError(f"point_mask has no point in samples {empty}")
    if negative:
        raise ValueError("superpoint_ids is negative at a real point")
    if gaps:
        raise ValueError(f"superpoint_ids of samples {gaps} have gaps; expected 0..S-1, each with a point")
    return present[:, 1 : max(facts[3]) + 2]
