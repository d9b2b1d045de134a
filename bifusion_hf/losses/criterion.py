"""All losses of BiFusion: every term once, raw and weighted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..configuration_bifusion import BiFusionLossConfig
from ..labels import IGNORE
from ..layers.query_decoder import QueryHeadOutput
from .auxiliary import fusion_balance_loss, no_view_loss, no_view_samples, spatial_consistency_loss
from .branch_consistency import BranchConsistencyLoss
from .functional import no_autocast
from .instance import box_loss, classification_loss, mask_losses, match_batch
from .matcher import Matches, SparseMatcher
from .merging import merge_loss, merge_windows
from .schedule import TERM_GROUPS, stage_multiplier, warmup_multiplier
from .semantic import semantic_loss
from .targets import BatchTargets, eligible_places, eligible_queries, query_semantic_labels, visible_semantic_labels


INSTANCE_TERMS = ("loss_cls", "loss_mask", "loss_dice")
# Terms that the loss dictionaries have only if they are on.
OPTIONAL_TERMS = ("loss_balance", "loss_image_sem", "loss_box", "loss_merge")


@dataclass
class FusionOutput:
    """What the losses on features need; a term that is switched off does without.

    The P real points of a batch lie in the order of `point_mask`.

    Attributes:
        point_visible: bool [B, N].
        features_3d: [P, D], point branch in the space that it shares with the image branch.
        features_2d: [P, D], image branch at the points.
        fused_features: [P, F].
        fusion_weights: [P, 1], weight of the image branch.
        voxel_features: [V, F], fused features of the voxels.
        voxel_samples: int64 [V], sample of each voxel.
        neighbor_pairs: (row, neighbor), int64 [E] each, row ascending: pairs of neighbouring voxels.
        image_semantic_logits: [B, S, K], of each superpoint, from the image features of its visible points alone.
    """

    point_visible: Tensor | None = None
    features_3d: Tensor | None = None
    features_2d: Tensor | None = None
    fused_features: Tensor | None = None
    fusion_weights: Tensor | None = None
    voxel_features: Tensor | None = None
    voxel_samples: Tensor | None = None
    neighbor_pairs: tuple[Tensor, Tensor] | None = None
    image_semantic_logits: Tensor | None = None


@dataclass
class CriterionOutput:
    """Losses of one batch.

    Attributes:
        loss: Weighted total, a scalar.
        loss_dict: Raw terms, scalars; the instance terms are sums over the heads. A term that is switched off is 0,
            and those of `OPTIONAL_TERMS` are there only if they are on.
        weighted_loss_dict: The parts of `loss`.
        matches: Matched pairs of each head.
    """

    loss: Tensor
    loss_dict: dict[str, Tensor]
    weighted_loss_dict: dict[str, Tensor]
    matches: list[Matches]


class BiFusionCriterion(nn.Module):
    """Sums the losses on queries, masks and features.

    Every term is (sum over samples of the sample's mean) / count, where count is the number of samples that the term
    applies to: all for the classes, those with an eligible query for mask, Dice and box, those with a supervised query
    for the semantics, those with visible superpoints and a negative for the CLIP consistency, all for the spatial
    consistency, those with points in and out of view for the no-view supervision, those with visible points for the
    balance, those with a visible superpoint that has a class for the semantics of the image, the windows with two
    objects in two adjacent frames for the merge embeddings. Without such a sample it is exactly 0 and still part of
    the graph.

    Args:
        config: Weights and settings.
        num_labels: Number C of instance labels.
        num_semantic_labels: Number of semantic classes.
    """

    def __init__(self, config: BiFusionLossConfig, num_labels: int = 1, num_semantic_labels: int = 200):
        super().__init__()
        self.config = config
        self.num_labels = num_labels
        self.num_semantic_labels = num_semantic_labels
        self.weights = {
            "loss_cls": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
            "loss_sem": config.semantic_weight,
            "loss_clip": config.consistency_loss_weight,
            "loss_spatial": config.spatial_loss_weight,
            "loss_noview": config.noview_loss_weight,
            "loss_balance": config.balance_loss_weight,
            "loss_image_sem": config.image_semantic_weight,
            "loss_box": config.box_weight,
            "loss_merge": config.merge_weight,
        }
        self.matcher = SparseMatcher()
        self.branch_consistency = BranchConsistencyLoss(config)

    @property
    def terms(self) -> tuple[str, ...]:
        """Keys of the loss dictionaries and of the counts."""
        return tuple(term for term in TERM_GROUPS if term not in OPTIONAL_TERMS or self.weights[term] != 0)

    @property
    def active_terms(self) -> tuple[str, ...]:
        """The terms whose weight is not 0."""
        return tuple(term for term, weight in self.weights.items() if weight != 0)

    def term_weight(self, term: str, progress: float | None = None) -> float | tuple[float, ...]:
        """The factor that takes a raw term into the total at `progress`; for Dice it may be one for each head.

        Args:
            term: Name of the term.
            progress: Fraction of the updates done, or None where nobody said.
        """
        factor = stage_multiplier(self.config.stage_schedule, term, progress)
        if term == "loss_clip":
            factor *= warmup_multiplier(progress, *self.config.consistency_warmup)
        weight = self.weights[term]
        return weight * factor if isinstance(weight, (int, float)) else tuple(value * factor for value in weight)

    def count_samples(
        self,
        targets: BatchTargets,
        query_superpoints: Tensor,
        point_visible: Tensor | None = None,
        window_frames: int = 1,
    ) -> dict[str, Tensor]:
        """Number of samples that each term applies to, known without the network.

        Args:
            targets: Targets of the batch.
            query_superpoints: int64 [B, Q], superpoint of each query, -1 at padding.
            point_visible: bool [B, N]; needed by the terms on features.
            window_frames: See `forward`.

        Returns:
            int64 scalars by the name of the term; 0 for a term that is switched off.

        Raises:
            ValueError: A term needs `point_visible` and it is None.
        """
        matched = torch.stack([queries.any() for queries in eligible_queries(targets, query_superpoints)])
        supervised = query_semantic_labels(targets, query_superpoints) != IGNORE
        every = torch.ones_like(matched)
        applies = {"loss_cls": every, "loss_mask": matched, "loss_dice": matched, "loss_sem": supervised.any(1)}
        applies["loss_box"] = matched
        active = self.active_terms
        if "loss_merge" in active:
            _need("loss_merge", instance_ids=targets.instance_ids)
            applies["loss_merge"] = merge_windows(targets, query_superpoints, window_frames)
        if "loss_spatial" in active:
            applies["loss_spatial"] = every
        for term in ("loss_clip", "loss_noview", "loss_balance", "loss_image_sem"):
            if term in active and point_visible is None:
                raise ValueError(f"{term} has a weight, so point_visible is needed; it is None")
        if "loss_clip" in active:
            applies["loss_clip"] = self.branch_consistency.anchors(targets, point_visible).any(1)
        if "loss_noview" in active:
            applies["loss_noview"] = no_view_samples(targets, point_visible)
        if "loss_balance" in active:
            applies["loss_balance"] = (point_visible & targets.point_mask).any(1)
        if "loss_image_sem" in active:
            applies["loss_image_sem"] = (visible_semantic_labels(targets, point_visible) != IGNORE).any(1)
        return {
            term: applies[term].sum() if term in active else query_superpoints.new_zeros(()) for term in self.terms
        }

    def forward(
        self,
        heads: Sequence[QueryHeadOutput],
        semantic_logits: Tensor,
        targets: BatchTargets,
        query_superpoints: Tensor,
        fusion: FusionOutput | None = None,
        progress: float | None = None,
        loss_counts: Mapping[str, Tensor] | None = None,
        merge_embeddings: Tensor | None = None,
        window_frames: int = 1,
    ) -> CriterionOutput:
        """Losses of a batch.

        Of windows the losses of the frames are summed: each term enters the total once for each frame of a window,
        but for that of the merge embeddings, which is of whole windows.

        Args:
            heads: Predictions of the H heads.
            semantic_logits: [B, Q, K], of the last head.
            targets: Targets of the batch.
            query_superpoints: int64 [B, Q], superpoint of each query, -1 at padding.
            fusion: Needed by the terms on features.
            progress: Fraction of the updates done, or None where nobody said.
            loss_counts: What to divide each term by, `count_samples` summed over whatever the step covers; None takes
                the batch's own.
            merge_embeddings: [B, Q, D], needed by `loss_merge`.
            window_frames: F, where the B samples are B / F windows of F frames each, the frames of one time together.

        Raises:
            ValueError: An active term lacks its input or its count; the heads do not fit the labels or Dice weights.
        """
        self._check_inputs(heads, fusion, loss_counts)
        if "loss_box" in self.active_terms:
            _need("loss_box", boxes=heads[-1].boxes, object_boxes=targets.boxes)
        if "loss_merge" in self.active_terms:
            _need("loss_merge", merge_embeddings=merge_embeddings, instance_ids=targets.instance_ids)
        with no_autocast(semantic_logits):
            if loss_counts is None:
                visible = None if fusion is None else fusion.point_visible
                loss_counts = self.count_samples(targets, query_superpoints, visible, window_frames)
            head_sums, matches = self._instance_sums(heads, targets, query_superpoints)
            sums = {term: values.sum() for term, values in head_sums.items()}
            labels = query_semantic_labels(targets, query_superpoints)
            sums["loss_sem"] = semantic_loss(semantic_logits, labels, self.num_semantic_labels).sum()
            sums.update(self._feature_sums(fusion, targets))
            if "loss_merge" in self.active_terms:
                temperature = self.config.merge_temperature
                values = merge_loss(merge_embeddings, targets, query_superpoints, window_frames, temperature)
                sums["loss_merge"] = values.sum()

            loss_dict, weighted = {}, {}
            for term in self.terms:
                if term not in self.active_terms:
                    loss_dict[term] = weighted[term] = semantic_logits.new_zeros((), dtype=head_sums["loss_cls"].dtype)
                    continue
                count = torch.as_tensor(loss_counts[term], device=semantic_logits.device).clamp(min=1)
                loss_dict[term] = sums[term] / count
                weight = self.term_weight(term, progress)
                if term in head_sums:
                    per_head = head_sums[term] / count
                    if not isinstance(weight, (int, float)):
                        weight = torch.as_tensor(weight).to(per_head)
                    weighted[term] = (per_head * weight).sum()
                else:
                    weighted[term] = loss_dict[term] * weight
                if term != "loss_merge" and window_frames > 1:
                    weighted[term] = weighted[term] * window_frames
        return CriterionOutput(sum(weighted.values()), loss_dict, weighted, matches)

    def _check_inputs(
        self, heads: Sequence[QueryHeadOutput], fusion: FusionOutput | None, loss_counts: Mapping[str, Tensor] | None
    ):
        for head in heads:
            if head.class_logits.shape[-1] != self.num_labels + 1:
                raise ValueError(
                    f"class_logits has shape {tuple(head.class_logits.shape)}; expected {self.num_labels + 1} "
                    f"columns, one for each label and one for no object"
                )
        dice_weight = self.weights["loss_dice"]
        if not isinstance(dice_weight, (int, float)) and len(dice_weight) != len(heads):
            raise ValueError(
                f"dice_weight has {len(dice_weight)} entries; expected one for each of {len(heads)} heads"
            )
        needs = {
            "loss_clip": ("point_visible", "features_3d", "features_2d"),
            "loss_noview": ("point_visible", "fused_features"),
            "loss_balance": ("point_visible", "fusion_weights"),
            "loss_image_sem": ("point_visible", "image_semantic_logits"),
            "loss_spatial": ("voxel_features", "voxel_samples", "neighbor_pairs"),
        }
        for term in self.active_terms:
            missing = [name for name in needs.get(term, ()) if getattr(fusion, name, None) is None]
            if missing:
                raise ValueError(f"{term} has a weight, so {', '.join(missing)} of the fusion output is needed")
            if loss_counts is not None and term not in loss_counts:
                raise ValueError(f"loss_counts has no {term}; it has {sorted(loss_counts)}")

    def _instance_sums(
        self, heads: Sequence[QueryHeadOutput], targets: BatchTargets, query_superpoints: Tensor
    ) -> tuple[dict[str, Tensor], list[Matches]]:
        """Sums over the samples, [H] for each instance term, and each head's matches."""
        eligible = eligible_queries(targets, query_superpoints)
        places = eligible_places(eligible)
        with_boxes = "loss_box" in self.active_terms
        terms = (*INSTANCE_TERMS, "loss_box") if with_boxes else INSTANCE_TERMS
        sums: dict[str, list[Tensor]] = {term: [] for term in terms}
        matches = []
        for head in heads:
            head_matches = match_batch(self.matcher, head, targets, eligible, places)
            cross_entropy, dice = mask_losses(
                head.mask_logits, head_matches, targets.masks(head.level), targets.valid(head.level)
            )
            classification = classification_loss(
                head.class_logits,
                query_superpoints >= 0,
                head_matches,
                targets.class_labels,
                self.config.no_object_weight,
            )
            boxes = [box_loss(head.boxes, head_matches, targets.boxes)] if with_boxes else []
            for term, values in zip(terms, (classification, cross_entropy, dice, *boxes), strict=True):
                sums[term].append(values.sum())
            matches.append(head_matches)
        return {term: torch.stack(values) for term, values in sums.items()}, matches

    def _feature_sums(self, fusion: FusionOutput | None, targets: BatchTargets) -> dict[str, Tensor]:
        """Sums over the samples of the active terms on features."""
        active, sums = self.active_terms, {}
        if "loss_clip" in active:
            values = self.branch_consistency(fusion.features_3d, fusion.features_2d, targets, fusion.point_visible)
            sums["loss_clip"] = values.sum()
        if "loss_spatial" in active:
            values = spatial_consistency_loss(
                fusion.voxel_features, fusion.voxel_samples, *fusion.neighbor_pairs, targets.batch_size
            )
            sums["loss_spatial"] = values.sum()
        if "loss_noview" in active:
            values = no_view_loss(
                fusion.fused_features, targets, fusion.point_visible, self.config.noview_similarity_threshold
            )
            sums["loss_noview"] = values.sum()
        if "loss_balance" in active:
            target = self.config.balance_target
            values = fusion_balance_loss(fusion.fusion_weights, targets, fusion.point_visible, target)
            sums["loss_balance"] = values.sum()
        if "loss_image_sem" in active:
            labels = visible_semantic_labels(targets, fusion.point_visible)
            values = semantic_loss(fusion.image_semantic_logits, labels, self.num_semantic_labels)
            sums["loss_image_sem"] = values.sum()
        return sums


def _need(term: str, **inputs: object) -> None:
    missing = [name for name, value in inputs.items() if value is None]
    if missing:
        raise ValueError(f"{term} has a weight, so {' and '.join(missing)} is needed; it is None")
