"""Auxiliary losses on the fused features: spatial consistency, no-view supervision, fusion balance."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sparse import count_rows
from .functional import group_counts, group_means, masked_mean, no_autocast, unit_vectors
from .targets import BatchTargets


def spatial_consistency_loss(
    features: Tensor, samples: Tensor, row: Tensor, neighbor: Tensor, batch_size: int
) -> Tensor:
    """Neighbouring voxels should have similar features: mean of 1 - cosine over the pairs.

    The cosines are summed as unit_i . (sum of unit_j over the neighbours j of i), so that nothing of size E x D is
    made.

    Args:
        features: [V, D], of the batch's voxels.
        samples: int64 [V], sample of each voxel.
        row: int64 [E], ascending.
        neighbor: int64 [E]; pair e is (row[e], neighbor[e]), both in one sample.
        batch_size: B.

    Returns:
        [B], mean over each sample's pairs; exactly 0, still in the graph, without any.

    Raises:
        ValueError: `row` is not ascending.
    """
    if (row[1:] < row[:-1]).any():
        raise ValueError("row is not ascending; expected pairs sorted by their first voxel")
    with no_autocast(features):
        unit = unit_vectors(features)
        counts = count_rows(row, len(unit))
        starts = counts.cumsum(0) - counts
        neighbor_sums = F.embedding_bag(neighbor, unit, starts, mode="sum")
        distances = counts - (unit * neighbor_sums).sum(1)
        sums = distances.new_zeros(batch_size).index_add(0, samples, distances)
        pairs = counts.new_zeros(batch_size).index_add(0, samples, counts)
        return sums / pairs.clamp(min=1)


def no_view_samples(targets: BatchTargets, point_visible: Tensor) -> Tensor:
    """Samples, bool [B], to which `no_view_loss` applies, with visible points and with others."""
    has_view = (targets.point_mask & point_visible).any(1)
    return has_view & (targets.point_mask & ~point_visible).any(1)


def no_view_loss(
    features: Tensor, targets: BatchTargets, point_visible: Tensor, similarity_threshold: float = 0.8
) -> Tensor:
    """Points that no image shows learn from what the image says of points that look like them.

    Each point without a view is compared with the mean feature of the visible points of every superpoint; where the
    closest has a cosine above the threshold, the loss is 1 - cosine. The means are fixed: they teach.

    Args:
        features: [P, D], fused, of the batch's P real points (in the order of `point_mask`).
        targets: Targets of the batch.
        point_visible: bool [B, N].
        similarity_threshold: Cosine below which a point has no teacher.

    Returns:
        [B], mean over each sample's taught points; exactly 0, still in the graph, without any.
    """
    with no_autocast(features):
        size = targets.superpoint_mask.shape
        rows = targets.point_superpoints(point_visible)
        teachers = unit_vectors(group_means(features.detach(), rows, size.numel())).view(*size, -1)
        is_teacher = group_counts(rows, size.numel()).view(size) > 0
        # A sample to which the loss does not apply passes through as an empty selection.
        unseen = targets.point_mask & ~point_visible & no_view_samples(targets, point_visible)[:, None]
        counts = unseen.sum(1).tolist()
        # The unseen points' rows come first, in their order.
        rows = torch.argsort((~targets.real(unseen)).byte(), stable=True)[: sum(counts)]
        students = unit_vectors(features.index_select(0, rows)).split(counts)
        values = []
        for sample, sample_students in enumerate(students):
            cosines = sample_students @ teachers[sample].T
            closest = cosines.masked_fill(~is_teacher[sample], -torch.inf).amax(1)
            values.append(masked_mean(1 - closest, closest > similarity_threshold))
        return torch.stack(values)


def fusion_balance_loss(
    fusion_weights: Tensor, targets: BatchTargets, point_visible: Tensor, target: float = 0.4
) -> Tensor:
    """Squared distance of the mean gate weight of the visible points from a target (original BiFusion).

    Args:
        fusion_weights: [P, 1], weight of the image branch at each of the batch's P real points.
        targets: Targets of the batch.
        point_visible: bool [B, N].
        target: Mean that costs nothing.

    Returns:
        [B]; exactly 0, still in the graph, for a sample without visible points.
    """
    visible = targets.point_mask & point_visible
    samples = torch.arange(targets.batch_size, device=visible.device)[:, None]
    samples = targets.real(torch.where(visible, samples, -1))
    mean = group_means(fusion_weights, samples, targets.batch_size).squeeze(1)
    return (mean - target * visible.any(1)).square()
