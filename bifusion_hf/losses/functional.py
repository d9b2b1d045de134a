"""What several losses share: precision, unit vectors, means over groups of points."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..labels import IGNORE
from ..sparse import count_rows, sum_rows


# Bounds the gradient of a vector that is exactly zero: 1e6 where the default of F.normalize would allow 1e12.
UNIT_VECTOR_EPS = 1e-6


def full_precision(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def no_autocast(like: Tensor) -> torch.autocast:
    """Context in which autocast is off on the device of `like`; a matrix product would run in 16 bits otherwise."""
    return torch.autocast(device_type=like.device.type, enabled=False)


def unit_vectors(features: Tensor) -> Tensor:
    """L2-normalises the last axis, at least in float32; a zero vector stays zero."""
    return F.normalize(full_precision(features), dim=-1, eps=UNIT_VECTOR_EPS)


def group_counts(groups: Tensor, num_groups: int) -> Tensor:
    """Number of members of each group, int64 [G]; `groups` is int64 [P], 0..G-1, negative = in no group."""
    # One group more takes those in none, which spares a selection.
    return count_rows(torch.where(groups < 0, num_groups, groups), num_groups + 1)[:num_groups]


def group_means(features: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Mean feature of each group, at least in float32.

    Args:
        features: [P, D].
        groups: int64 [P], 0..G-1, negative = in no group.
        num_groups: G.

    Returns:
        [G, D]; a group without members has 0.
    """
    rows = torch.where(groups < 0, num_groups, groups)
    values = full_precision(features)
    sums = sum_rows(values, rows, num_groups + 1)[:num_groups]
    return sums / group_counts(groups, num_groups).clamp(min=1).unsqueeze(1)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross entropy of logits [B, K, Q] and labels int64 [B, Q] at each entry, [B, Q]; 0 where the label is ignored.

    torch's own has no deterministic form on a GPU for three axes.
    """
    is_ignored = labels == ignore_index
    places = labels.masked_fill(is_ignored, 0).unsqueeze(1)
    return -F.log_softmax(logits, dim=1).gather(1, places).squeeze(1).masked_fill(is_ignored, 0)


def masked_mean(values: Tensor, selected: Tensor) -> Tensor:
    """Mean over the selected entries of the last axis; exactly 0, still in the graph, without any."""
    return torch.where(selected, values, 0).sum(-1) / selected.sum(-1).clamp(min=1)
