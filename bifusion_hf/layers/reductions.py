"""Sums and means over groups of rows."""

import torch


def sample_mean(features: torch.Tensor, sample: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Mean of the rows of each sample, or other group: [R, C] and int64 [R] to [batch_size, C]; 0 without rows."""
    # Half precision cannot count: a sum of bfloat16 ones ends at 256, one of float16 overflows at 65504.
    summed = features.to(torch.promote_types(features.dtype, torch.float32))
    total = summed.new_zeros(batch_size, features.shape[1]).index_add_(0, sample, summed)
    count = torch.bincount(sample, minlength=batch_size).clamp(min=1)
    return (total / count.unsqueeze(1).to(total.dtype)).to(features.dtype)
