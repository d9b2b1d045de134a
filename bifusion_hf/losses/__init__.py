"""Losses of BiFusion: plain functions of predictions and labels, without parameters."""

from .clip_consistency import ClipConsistencyLoss
from .criterion import BiFusionCriterion, CriterionOutput, FusionOutput
from .instance import QueryHeadOutput
from .matcher import Matches, SparseMatcher
from .targets import BatchTargets, batch_targets, point_instances_from_labels


__all__ = [
    "BatchTargets",
    "BiFusionCriterion",
    "ClipConsistencyLoss",
    "CriterionOutput",
    "FusionOutput",
    "Matches",
    "QueryHeadOutput",
    "SparseMatcher",
    "batch_targets",
    "point_instances_from_labels",
]
