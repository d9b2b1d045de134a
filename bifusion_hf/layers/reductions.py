"""Means over groups of rows."""

import torch

from ..sparse import count_rows, sum_rows


def sample_mean(features: torch.Tensor, sample: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Mean of the rows of each sample, or other group: [R, C] and int64 [R] to [batch_size, C]; 0 without rows."""
    # Half precision cannot count: a sum of bfloat16 ones ends at 256, one of float16 overflows at 65504.
    summed = features.to(torch.promote_types(features.dtype, torch.float32))
    total = sum_rows(summed, sample, batch_size)
    count = count_rows(sample, batch_size).clamp(min=1)
    return (total / count.unsqueeze(1).to(total.dtype)).to(features.dtype)
