"""Ground truth on superpoints and queries, from labels on points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..labels import IGNORE
from .functional import group_counts


@dataclass
class BatchTargets:
    """Labels of a batch on points and on superpoints; B samples, N points and S superpoints, both padded.

    Attributes:
        point_masks: For each sample bool [M_i, N], the points of each instance; False at padding.
        superpoint_masks: For each sample bool [M_i, S], the superpoints of each instance.
        class_labels: For each sample int64 [M_i], 0..C-1.
        superpoint_semantic: int64 [B, S], class of each superpoint, `IGNORE` where no class has the majority.
        superpoint_ids: int64 [B, N], -1 at padding.
        point_mask: bool [B, N], False at padding.
        superpoint_mask: bool [B, S], False at padding.
        boxes: For each sample float [M_i, 6], min x, y, z, max x, y, z of each whole object, seen or not.
        instance_ids: For each sample int64 [M_i], the same in all frames of a window.
    """

    point_masks: list[Tensor]
    superpoint_masks: list[Tensor]
    class_labels: list[Tensor]
    superpoint_semantic: Tensor
    superpoint_ids: Tensor
    point_mask: Tensor
    superpoint_mask: Tensor
    boxes: list[Tensor] | None = None
    instance_ids: list[Tensor] | None = None

    @property
    def batch_size(self) -> int:
        return self.point_mask.shape[0]

    @property
    def num_superpoints(self) -> int:
        return self.superpoint_mask.shape[1]

    def masks(self, level: str) -> list[Tensor]:
        """Instance masks of each sample at `level` ("superpoint" or "point")."""
        return self.point_masks if level == "point" else self.superpoint_masks

    def valid(self, level: str) -> Tensor:
        """What is not padding, bool [B, S] or [B, N], at `level` ("superpoint" or "point")."""
        return self.point_mask if level == "point" else self.superpoint_mask

    def point_superpoints(self, selected: Tensor) -> Tensor:
        """int64 [P]: for each of the P real points sample * S + superpoint, -1 where not `selected`, bool [B, N]."""
        return self.real(_flat_ids(self.superpoint_ids, selected & self.point_mask, self.num_superpoints))

    @cached_property
    def _places(self) -> Tensor:
        return self.point_mask.flatten().nonzero().squeeze(1)

    def real(self, values: Tensor) -> Tensor:
        """The real points' entries of [B, N]: [P]."""
        return values.flatten().index_select(0, self._places)

    def superpoint_instances(self) -> Tensor:
        """int64 [B, S], the instance of each superpoint (the first, should masks overlap), -1 = none."""
        rows = []
        for masks in self.superpoint_masks:
            background = masks.new_ones(1, masks.shape[1])
            first = torch.cat([masks, background]).int().argmax(0)
            rows.append(torch.where(first < masks.shape[0], first, -1))
        return torch.stack(rows)


def batch_targets(
    mask_labels: Sequence[Tensor],
    class_labels: Sequence[Tensor],
    semantic_labels: Tensor | None,
    superpoint_ids: Tensor,
    point_mask: Tensor,
    num_superpoints: int,
    num_labels: int = 1,
    num_semantic_labels: int = 200,
    object_boxes: Sequence[Tensor] | None = None,
    instance_ids: Sequence[Tensor] | None = None,
) -> BatchTargets:
    """Carries labels from points to superpoints.

    A superpoint belongs to an instance, or has a class, if strictly more than half of its points do (ESAM).

    Args:
        mask_labels: For each sample bool [M_i, N], the points of each instance.
        class_labels: For each sample int64 [M_i]. With one label they are all taken as label 0.
        semantic_labels: int64 [B, N], `IGNORE` = ignore; None ignores all.
        superpoint_ids: int64 [B, N], 0..S-1 in each sample, -1 at padding.
        point_mask: bool [B, N], False at padding.
        num_superpoints: S, the padded number of superpoints.
        num_labels: Number C of instance labels.
        num_semantic_labels: Number of semantic classes.
        object_boxes: `boxes` of the targets.
        instance_ids: Of the targets.

    Raises:
        ValueError: Shapes do not fit, or a label is out of range.
    """
    batch_size, num_points = point_mask.shape
    _check_rows("object_boxes", object_boxes, mask_labels, (6,))
    _check_rows("instance_ids", instance_ids, mask_labels, ())
    _check_labels(mask_labels, class_labels, semantic_labels, superpoint_ids, batch_size, num_points)
    _check_range("superpoint_ids", torch.where(point_mask, superpoint_ids, 0), num_superpoints)
    if num_labels == 1:
        class_labels = [torch.zeros_like(labels) for labels in class_labels]
    else:
        _check_range("class_labels", torch.cat(list(class_labels)), num_labels)

    size = batch_size, num_superpoints
    point_counts = group_counts(_flat_ids(superpoint_ids, point_mask, num_superpoints).flatten(), math.prod(size))
    point_counts = point_counts.view(size)
    point_masks, superpoint_masks = [], []
    for sample, masks in enumerate(mask_labels):
        masks = masks.bool() & point_mask[sample]
        # Sums of ones are exact in float32 up to 2^24, whatever their order.
        counts = torch.zeros(masks.shape[0], num_superpoints, device=masks.device)
        counts.index_add_(1, superpoint_ids[sample].clamp(min=0), masks.float())
        point_masks.append(masks)
        superpoint_masks.append(2 * counts > point_counts[sample])

    superpoint_semantic = torch.full_like(point_counts, IGNORE)
    if semantic_labels is not None:
        labelled = point_mask & (semantic_labels != IGNORE)
        _check_range("semantic_labels", torch.where(labelled, semantic_labels, 0), num_semantic_labels)
        bins = _flat_ids(superpoint_ids, labelled, num_superpoints) * num_semantic_labels + semantic_labels
        bins = torch.where(labelled, bins, -1).flatten()
        histogram = group_counts(bins, math.prod(size) * num_semantic_labels)
        count, majority = histogram.view(*size, num_semantic_labels).max(-1)
        superpoint_semantic = torch.where(2 * count > point_counts, majority, IGNORE)

    return BatchTargets(
        point_masks=point_masks,
        superpoint_masks=superpoint_masks,
        class_labels=list(class_labels),
        superpoint_semantic=superpoint_semantic,
        superpoint_ids=superpoint_ids,
        point_mask=point_mask,
        superpoint_mask=point_counts > 0,
        boxes=None if object_boxes is None else list(object_boxes),
        instance_ids=None if instance_ids is None else list(instance_ids),
    )


def eligible_queries(targets: BatchTargets, query_superpoints: Tensor) -> list[Tensor]:
    """For each sample bool [M_i, Q]: whether the query's superpoint lies in the instance.

    Args:
        targets: Targets of the batch.
        query_superpoints: int64 [B, Q], superpoint of each query, -1 at padding.
    """
    return [
        masks[:, superpoints.clamp(min=0)] & (superpoints >= 0)
        for masks, superpoints in zip(targets.superpoint_masks, query_superpoints, strict=True)
    ]


def eligible_places(eligible: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The instances that have an eligible query and the queries that are eligible, int64 [K] and [L] of each sample.

    `eligible` is what `eligible_queries` returns. A GPU's host waits once, for all samples.
    """
    flags = [masks.any(axis) for masks in eligible for axis in (1, 0)]
    counts = iter(torch.stack([flag.sum() for flag in flags]).tolist())
    # The places that are set come first, in their order.
    places = (torch.argsort((~flag).byte(), stable=True)[: next(counts)] for flag in flags)
    return [(instances, next(places)) for instances in places]


def query_semantic_labels(targets: BatchTargets, query_superpoints: Tensor) -> Tensor:
    """int64 [B, Q], the class of each query's superpoint, `IGNORE` without one; arguments as above."""
    labels = targets.superpoint_semantic.gather(1, query_superpoints.clamp(min=0))
    return torch.where(query_superpoints >= 0, labels, IGNORE)


def visible_semantic_labels(targets: BatchTargets, point_visible: Tensor) -> Tensor:
    """int64 [B, S], the class of each superpoint with a visible point, else `IGNORE`; visible is bool [B, N]."""
    size = targets.superpoint_mask.shape
    seen = group_counts(targets.point_superpoints(point_visible), size.numel()).view(size) > 0
    return torch.where(seen, targets.superpoint_semantic, IGNORE)


def _flat_ids(superpoint_ids: Tensor, selected: Tensor, num_superpoints: int) -> Tensor:
    """int64 [B, N]: ids that differ between samples too, -1 where not selected."""
    samples = torch.arange(superpoint_ids.shape[0], device=superpoint_ids.device)[:, None]
    return torch.where(selected, superpoint_ids + samples * num_superpoints, -1)


def _check_labels(mask_labels, class_labels, semantic_labels, superpoint_ids, batch_size: int, num_points: int):
    if len(mask_labels) != batch_size or len(class_labels) != batch_size:
        raise ValueError(
            f"mask_labels and class_labels have {len(mask_labels)} and {len(class_labels)} entries; "
            f"expected one for each of {batch_size} samples"
        )
    for sample, (masks, labels) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if masks.ndim != 2 or masks.shape[1] != num_points or labels.shape != masks.shape[:1]:
            raise ValueError(
                f"mask_labels[{sample}] has shape {tuple(masks.shape)} and class_labels[{sample}] "
                f"{tuple(labels.shape)}; expected [M, {num_points}] and [M]"
            )
    for name, value in (("semantic_labels", semantic_labels), ("superpoint_ids", superpoint_ids)):
        if value is not None and value.shape != (batch_size, num_points):
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {(batch_size, num_points)}")


def _check_rows(name: str, values: Sequence[Tensor] | None, mask_labels: Sequence[Tensor], width: tuple[int, ...]):
    if values is None:
        return
    found, expected = ([tuple(v.shape) for v in values], [(len(masks), *width) for masks in mask_labels])
    if found != expected:
        raise ValueError(f"{name} has shapes {found}; expected {expected}, a row for each instance of mask_labels")


def _check_range(name: str, values: Tensor, size: int):
    if values.numel():
        low, high = torch.stack(torch.aminmax(values)).tolist()
        if low < 0 or high >= size:
            raise ValueError(f"{name} has values {low}..{high}; expected 0..{size - 1}")
