"""Sums by group where a table is negative: what a mask leaves out of each superpoint, for every query at once."""

from functools import cache

import torch

from ..io.compiled_library import KernelError, usable_threads
from .groups import sum_rows
from .kernels import KERNELS


def sum_where_negative(
    values: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, num_groups: int
) -> torch.Tensor:
    """For each row and group the sum of the weights of the columns that are negative in this row; no gradient.

    Args:
        values: [B, R, N].
        weights: [B, N].
        groups: int64 [B, N], 0..G-1, -1 = none.
        num_groups: G.

    Returns:
        [B, R, G], float32 at least: half precision could not sum them.
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).detach()
    is_single = values.dtype == weights.dtype == torch.float32
    if values.device.type == "cpu" and is_single and kernel_unavailable_reason() is None:
        return _compiled(values, weights, groups, num_groups)
    return _by_rows(values, weights, groups, num_groups)


def _by_rows(values: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    # One row a column of the table, so that groups are sums of rows; the last group of each sample is for none.
    samples = torch.arange(len(groups), device=groups.device).unsqueeze(1)
    index = torch.where(groups < 0, num_groups, groups) + samples * (num_groups + 1)
    rows = (values.detach() < 0).transpose(1, 2) * weights.unsqueeze(2)
    sums = sum_rows(rows.flatten(0, 1), index.flatten(), len(groups) * (num_groups + 1))
    return sums.unflatten(0, (len(groups), num_groups + 1))[:, :num_groups].transpose(1, 2)


def _compiled(values: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    sums = torch.empty(*values.shape[:2], num_groups)
    tensors = [tensor.contiguous() for tensor in (values.detach(), weights, groups)]
    KERNELS.call("sum_where_negative", *tensors, sums, *values.shape, num_groups, usable_threads())
    return sums


@cache
def kernel_unavailable_reason() -> str | None:
    """Why the compiled form does not work here; None where it does. Tried once, and logged."""
    return KERNELS.failure(_test_kernel, "sums of masks take torch")


def _test_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(2, 3, 20, generator=generator), torch.rand(2, 20, generator=generator)
    groups = torch.randint(-1, 5, (2, 20), generator=generator)
    if not torch.equal(_compiled(values, weights, groups, 5), _by_rows(values, weights, groups, 5)):
        raise KernelError("the compiled sums of masks are wrong")
