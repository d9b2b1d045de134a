"""Where the voxels of a kernel's lines along x are among sorted keys.

Keys are consecutive along x, so from where a line begins its voxels follow one after the other: K^2 searches for K^3
offsets. The compiled form needs no search at all, since the beginnings ascend as the keys do.
"""

from functools import cache

import torch

from ..io.compiled_library import KernelError, usable_threads
from .kernels import KERNELS


def find_lines(keys: torch.Tensor, lines: torch.Tensor, kernel_size: int, step: int) -> torch.Tensor:
    """Rows of the voxels of each line beside each voxel.

    Args:
        keys: int64 [V], ascending, each once.
        lines: int64 [L], key offset of each line's first voxel.
        kernel_size: K, voxels of a line.
        step: What keys grow by from one voxel of a line to the next; no key lies between.

    Returns:
        int32 [L K, V], rows of `keys`, V = none.
    """
    if keys.device.type == "cpu" and kernel_unavailable_reason() is None:
        return _compiled(keys, lines, kernel_size, step)
    return _searched(keys, lines, kernel_size, step)


def are_keys(keys: torch.Tensor, position: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether the keys at these places are the wanted ones; bool of the places' shape."""
    found = keys.index_select(0, position.clamp(max=len(keys) - 1).view(-1))
    return found.view_as(wanted) == wanted


def _searched(keys: torch.Tensor, lines: torch.Tensor, kernel_size: int, step: int) -> torch.Tensor:
    wanted = keys + lines[:, None]
    position = torch.searchsorted(keys, wanted, out_int32=True)
    table = position.new_empty(len(lines), kernel_size, len(keys))
    for x in range(kernel_size):
        found = are_keys(keys, position, wanted)
        table[:, x] = torch.where(found, position, len(keys))
        # The step along x leads from one sorted key to the next, where there is one.
        position, wanted = position + found, wanted + step
    return table.view(-1, len(keys))


def _compiled(keys: torch.Tensor, lines: torch.Tensor, kernel_size: int, step: int) -> torch.Tensor:
    table = torch.empty(len(lines) * kernel_size, len(keys), dtype=torch.int32)
    keys, lines = keys.contiguous(), lines.contiguous()
    KERNELS.call("find_lines", keys, lines, table, len(keys), len(lines), kernel_size, step, usable_threads())
    return table


@cache
def kernel_unavailable_reason() -> str | None:
    """Why the compiled form does not work here; None where it does. Tried once, and logged."""
    return KERNELS.failure(_test_kernel, "the voxels of kernels are searched with torch")


def _test_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(0, 200, (60,), generator=generator).unique()
    lines = torch.tensor([-31, -1, 19])
    if not torch.equal(_compiled(keys, lines, 3, 1), _searched(keys, lines, 3, 1)):
        raise KernelError("the compiled search for the voxels of kernels is wrong")
