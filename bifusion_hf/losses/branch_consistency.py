"""Consistency of the point branch with the image branch, on superpoints: `loss_clip`, whatever the tower is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration_bifusion import BiFusionLossConfig
from .functional import group_counts, group_means, masked_mean, no_autocast, unit_vectors
from .targets import BatchTargets


class ScaledGradient(torch.autograd.Function):
    """ratio * f + (1 - ratio) * stop(f), but the value is f to the last bit, whatever the ratio."""

    @staticmethod
    def forward(ctx, features: Tensor, ratio: float) -> Tensor:
        ctx.ratio = ratio
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ratio * gradient, None


class BranchConsistencyLoss(nn.Module):
    """Contrastive loss between the point branch and the image branch, pooled over the visible superpoints.

    A superpoint's features are the means over its visible points. In mode "contrastive" (InfoNCE, both directions,
    arXiv:2103.00020) the two features of one superpoint attract each other, and those of superpoints of other objects
    repel. Superpoints of one ground-truth instance are never negatives of each other; nor are those outside every
    instance that share their class or their lack of one, since they may well be one wall. Mode "positive" is the
    original BiFusion's form, -log sigmoid(cosine / temperature), which has no negatives and saturates at a cosine of
    about 0.4.

    The coverage gate looks at samples of which only a small fraction of the points is visible: "soft" multiplies their
    loss by min(1, fraction / threshold), "hard" leaves them out, "none" ignores it.

    Args:
        config: Its `consistency_*` fields.
    """

    def __init__(self, config: BiFusionLossConfig):
        super().__init__()
        self.temperature = config.consistency_temperature
        # Fraction r of the gradient that reaches the image side, r f + (1 - r) stop(f); the point side gets all of it.
        self.gradient_flow_ratio = config.consistency_gradient_flow_ratio
        self.mode = config.consistency_loss_mode
        self.across_batch = config.consistency_negatives_across_batch
        self.coverage_gate = config.consistency_coverage_gate
        self.coverage_threshold = config.consistency_coverage_threshold

    def anchors(self, targets: BatchTargets, point_visible: Tensor) -> Tensor:
        """Superpoints, bool [B, S], that have a loss, known from labels and visibility alone.

        Args:
            targets: Targets of the batch.
            point_visible: bool [B, N].
        """
        visible = self._visible_superpoints(targets, point_visible)
        if self.mode == "positive":
            return visible
        return self._negatives(targets, visible).any(-1).view_as(visible)

    def forward(
        self, features_3d: Tensor, features_2d: Tensor, targets: BatchTargets, point_visible: Tensor
    ) -> Tensor:
        """Loss of each sample.

        Args:
            features_3d: [P, D] of the batch's P real points (in the order of `point_mask`): the point branch in the
                shared space.
            features_2d: [P, D], the image branch sampled at the points.
            targets: Targets of the batch.
            point_visible: bool [B, N]; features of other points take no part.

        Returns:
            [B], mean over each sample's anchors; exactly 0, still in the graph, without any.
        """
        with no_autocast(features_3d):
            rows = targets.point_superpoints(point_visible)
            size = targets.superpoint_mask.shape
            pooled_3d = unit_vectors(group_means(features_3d, rows, size.numel())).view(*size, -1)
            means_2d = ScaledGradient.apply(group_means(features_2d, rows, size.numel()), self.gradient_flow_ratio)
            pooled_2d = unit_vectors(means_2d).view(*size, -1)
            if self.mode == "positive":
                losses = -F.logsigmoid((pooled_3d * pooled_2d).sum(-1) / self.temperature)
            else:
                losses = self._contrast(pooled_3d, pooled_2d, targets, point_visible)
            values = masked_mean(losses, self.anchors(targets, point_visible))
            if self.coverage_gate == "soft":
                values = values * (self._coverage(targets, point_visible) / self.coverage_threshold).clamp(max=1)
            return values

    def _contrast(self, pooled_3d: Tensor, pooled_2d: Tensor, targets: BatchTargets, point_visible: Tensor) -> Tensor:
        shape = pooled_3d.shape
        if self.across_batch:
            pooled_3d, pooled_2d = pooled_3d.flatten(0, 1)[None], pooled_2d.flatten(0, 1)[None]
        logits = pooled_3d @ pooled_2d.transpose(1, 2) / self.temperature
        positives = logits.diagonal(dim1=1, dim2=2)
        negatives = self._negatives(targets, self._visible_superpoints(targets, point_visible))
        itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(~(negatives | itself), -torch.inf)
        losses = (logits.logsumexp(1) + logits.logsumexp(2)) / 2 - positives
        return losses.view(shape[:2])

    def _visible_superpoints(self, targets: BatchTargets, point_visible: Tensor) -> Tensor:
        size = targets.superpoint_mask.shape
        visible = group_counts(targets.point_superpoints(point_visible), size.numel()).view(size) > 0
        if self.coverage_gate == "hard":
            visible &= (self._coverage(targets, point_visible) >= self.coverage_threshold)[:, None]
        return visible

    def _negatives(self, targets: BatchTargets, visible: Tensor) -> Tensor:
        """Symmetric bool [B, S, S], or [1, B*S, B*S] across the batch: visible superpoints of different objects."""
        instance = targets.superpoint_instances()
        offset = max(len(labels) for labels in targets.class_labels)
        samples = torch.arange(targets.batch_size, device=instance.device)[:, None]
        # Outside every instance the class (or its lack, a negative number too) tells objects apart.
        background = -1000 - targets.superpoint_semantic
        group = torch.where(instance >= 0, instance + offset * samples, background)
        if self.across_batch:
            group, visible = group.flatten()[None], visible.flatten()[None]
        different = group[:, :, None] != group[:, None, :]
        return different & visible[:, :, None] & visible[:, None, :]

    @staticmethod
    def _coverage(targets: BatchTargets, point_visible: Tensor) -> Tensor:
        """Fraction of each sample's points that are visible, float32 [B]."""
        return (point_visible & targets.point_mask).sum(1) / targets.point_mask.sum(1).clamp(min=1)
