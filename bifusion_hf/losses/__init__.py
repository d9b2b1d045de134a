"""Losses of BiFusion: plain functions of predictions and labels, without parameters."""

from .branch_consistency import BranchConsistencyLoss
from .criterion import BiFusionCriterion, CriterionOutput, FusionOutput
from .instance import QueryHeadOutput
from .matcher import Matches, SparseMatcher
from .targets import BatchTargets, batch_targets


__all__ = [
    "BatchTargets",
    "BiFusionCriterion",
    "BranchConsistencyLoss",
    "CriterionOutput",
    "FusionOutput",
    "Matches",
    "QueryHeadOutput",
    "SparseMatcher",
    "batch_targets",
]
