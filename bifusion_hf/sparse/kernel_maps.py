"""Which input voxel each kernel offset of each output voxel reads.

Kernels are laid out as MinkowskiEngine does: offset k = rx + K ry + K^2 rz (x fastest), displacement (r - K // 2) *
dilation * stride for odd K, r * stride for even K; `out[u] = sum_k in[u + offset_k] @ W[k]`, with no flip.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from .coordinates import KEY_MARGIN, pack_offset
from .voxels import VoxelGrid


@dataclass(eq=False)
class KernelMap:
    """The pairs of a sparse convolution, as a table.

    Args:
        table: int64 [N_out, K]: input row that offset k of each output row reads; `num_inputs` = none.
        num_inputs: Number of input rows.
    """

    table: torch.Tensor
    num_inputs: int
    # The map of the input's gradient: a convolution of the output's gradient over this map, with offset
    # `backward_offsets[k]`'s transposed kernel in the place of offset k's.
    backward_map: "KernelMap" = field(init=False, repr=False)
    backward_offsets: torch.Tensor = field(init=False, repr=False)

    @property
    def num_outputs(self) -> int:
        return len(self.table)

    @property
    def volume(self) -> int:
        return self.table.shape[1]

    @cached_property
    def num_pairs(self) -> int:
        """Number of (input, output) pairs: the useful work."""
        return int((self.table < self.num_inputs).sum())


def kernel_offsets(kernel_size: int, step: int = 1) -> list[tuple[int, int, int]]:
    """Displacements (x, y, z) of a kernel's offsets in MinkowskiEngine's order; `step` = dilation x stride."""
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    line = [(first + r) * step for r in range(kernel_size)]
    return [(x, y, z) for z in line for y in line for x in line]


def build_kernel_map(grid: VoxelGrid, kind: str, kernel_size: int, dilation: int) -> KernelMap:
    """Makes a kernel map on `grid`.

    Args:
        grid: The grid of the input, and for `"submanifold"` of the output.
        kind: `"submanifold"` (odd kernel, stride 1, onto the same grid), `"strided"` (kernel 2, stride 2, onto
            `grid.coarser()`) or `"transposed"` (the same, back onto `grid.finer()`).
        kernel_size: Size along each axis.
        dilation: Spacing of the kernel's offsets in voxels of `grid`.
    """
    if kind == "submanifold":
        return _submanifold_map(grid, kernel_size, dilation)
    if kind == "strided":
        return _strided_map(grid)
    return grid.finer().kernel_map("strided", kernel_size, dilation).backward_map


def _submanifold_map(grid: VoxelGrid, kernel_size: int, dilation: int) -> KernelMap:
    step = dilation * grid.stride
    if kernel_size // 2 * step > KEY_MARGIN:
        raise ValueError(
            f"kernel {kernel_size} with dilation {dilation} at stride {grid.stride} reaches "
            f"{kernel_size // 2 * step} voxels; expected at most {KEY_MARGIN}"
        )
    offsets = kernel_offsets(kernel_size, step)
    keys = grid.keys_by_row
    table = torch.stack([grid.find(keys + pack_offset(*offset)) for offset in offsets], dim=1)
    kernel_map = KernelMap(table, len(grid))
    # A pair of offset k is, seen from its other end, a pair of the opposite offset.
    kernel_map.backward_map = kernel_map
    kernel_map.backward_offsets = torch.arange(len(offsets) - 1, -1, -1, device=grid.device)
    return kernel_map


def _strided_map(grid: VoxelGrid) -> KernelMap:
    coarse = grid.coarser()
    parents = grid.parents
    rows = torch.arange(len(grid), device=grid.device)
    digits = (grid.coordinates[:, 1:] - coarse.coordinates[parents, 1:]).long() // grid.stride
    offset = digits[:, 0] + 2 * digits[:, 1] + 4 * digits[:, 2]
    down = torch.full((len(coarse), 8), len(grid), device=grid.device)
    down[parents, offset] = rows
    up = torch.full((len(grid), 8), len(coarse), device=grid.device)
    up[rows, offset] = parents
    down_map, up_map = KernelMap(down, len(grid)), KernelMap(up, len(coarse))
    for one, other in ((down_map, up_map), (up_map, down_map)):
        one.backward_map = other
        one.backward_offsets = torch.arange(8, device=grid.device)
    return down_map
