"""Sums of rows by group, and rows taken by group: each is the gradient of the other.

On a CPU both are torch's own. A GPU has a form for few groups, where thousands of rows would
queue for the same sum, and one for `torch.use_deterministic_algorithms`; neither asks for a number on the host.
"""

import torch
from torch.autograd.function import once_differentiable


# Up to so many groups are summed as a product with their indicators.
FEW_GROUPS = 32


def count_rows(groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Number of rows of each group: int64 [R], 0..G-1 -> int64 [G]; `bincount`, which would ask for the highest."""
    return groups.new_zeros(num_groups).scatter_add_(0, groups, torch.ones_like(groups))


def sum_rows(values: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Sum of the rows of each group.

    Args:
        values: [R, C], of float32 or float64: half precision cannot sum many.
        groups: int64 [R], 0..G-1.
        num_groups: G.

    Returns:
        [G, C]; 0 without rows.
    """
    if values.device.type == "cpu":
        if num_groups == 1:
            return values.sum(dim=0, keepdim=True)
        return values.new_zeros(num_groups, values.shape[1]).index_add(0, groups, values)
    return _Sum.apply(values, groups, num_groups)


def take_rows(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The row of its group for each of R rows: [G, C] and int64 [R], 0..G-1 -> [R, C]; many may take the same."""
    if values.device.type == "cpu":
        return values.expand(len(groups), -1) if len(values) == 1 else values.index_select(0, groups)
    return _Take.apply(values, groups)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, groups, num_groups):
        ctx.save_for_backward(groups)
        return _sums(values, groups, num_groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (groups,) = ctx.saved_tensors
        return grad.index_select(0, groups), None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, groups):
        ctx.save_for_backward(groups)
        ctx.num_groups = len(values)
        return values.index_select(0, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (groups,) = ctx.saved_tensors
        precision = torch.promote_types(grad.dtype, torch.float32)
        return _sums(grad.to(precision), groups, ctx.num_groups).to(grad.dtype), None


def _sums(values: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """`sum_rows` on a GPU."""
    if num_groups <= FEW_GROUPS:
        indicators = groups == torch.arange(num_groups, device=groups.device).unsqueeze(1)
        with torch.autocast(values.device.type, enabled=False):
            return indicators.to(values.dtype) @ values
    if torch.are_deterministic_algorithms_enabled():
        return sums_in_order(values, groups, num_groups)
    return values.new_zeros(num_groups, values.shape[1]).index_add_(0, groups, values)


def sums_in_order(values: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """`sum_rows` without atomic additions: each sum is one thread's, over its rows in their order; no gradient."""
    ordered, order = torch.sort(groups, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(num_groups, device=groups.device))
    return torch.nn.functional.embedding_bag(order, values, starts, mode="sum")
