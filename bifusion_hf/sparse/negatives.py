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
        values: [B, R, N]; fastest on a CPU where they are `[B, N, R]` in memory.
        weights: [B, N].
        groups: int64 [B, N], 0..G-1, -1 = none.
        num_groups: G.

    Returns:
        [B, R, G], float32 at least: half precision could not sum them.
    """
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).detach()
    has_kernel = values.dtype in (torch.float32, torch.bfloat16) and weights.dtype == torch.float32
    if values.device.type == "cpu" and has_kernel and kernel_unavailable_reason() is None:
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
    samples, rows, columns = values.shape
    sums = torch.empty(samples, num_groups, rows)
    # By columns, so that a column's weight is added to many rows at once.
    tensors = [tensor.contiguous() for tensor in (values.detach().transpose(1, 2), weights, groups)]
    is_half = values.dtype == torch.bfloat16
    KERNELS.call("sum_where_negative", *tensors, sums, samples, rows, columns, num_groups, is_half, usable_threads())
    return sums.transpose(1, 2)


@cache
def kernel_unavailable_reason() -> str | None:
    """Why the compiled form does not work here; None where it does. Tried once, and logged."""
    return KERNELS.failure(_test_kernel, "sums of masks take torch")


def _test_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.randn(2, 3, 20, generator=generator), torch.rand(2, 20, generator=generator)
    groups = torch.randint(-1, 5, (2, 20), generator=generator)
    for kind in (values, values.bfloat16()):
        if not torch.equal(_compiled(kind, weights, groups, 5), _by_rows(kind, weights, groups, 5)):
            raise KernelError("the compiled sums of masks are wrong")
