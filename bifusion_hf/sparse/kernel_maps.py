"""Which input voxel each kernel offset of each output voxel reads.

Kernels are laid out as MinkowskiEngine does: offset k = rx + K ry + K^2 rz (x fastest), displacement (r - K // 2) *
dilation * stride for odd K, r * stride for even K; `out[u] = sum_k in[u + offset_k] @ W[k]`, with no flip.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from .coordinates import KEY_MARGIN, pack_offset
from .gather_plan import GatherPlan


@dataclass(eq=False)
class KernelMap:
    """The pairs of a sparse convolution, as a table.

    Args:
        table: int32 [K, N_out]: input row that offset k of each output row reads; `num_inputs` = none.
        num_inputs: Number of input rows.
    """

    table: torch.Tensor
    num_inputs: int
    # What a backend keeps with the map.
    extras: dict = field(init=False, repr=False, default_factory=dict)
    _plans: dict[int, GatherPlan] = field(init=False, repr=False, default_factory=dict)

    def plan(self, parts: int) -> GatherPlan:
        """How the torch backend walks over the output rows, with the kernel in so many parts; made once."""
        if parts not in self._plans:
            self._plans[parts] = GatherPlan(self.table, self.num_inputs, parts)
        return self._plans[parts]

    @property
    def volume(self) -> int:
        """Number of the kernel's offsets."""
        return len(self.table)

    @property
    def num_outputs(self) -> int:
        return self.table.shape[1]

    @cached_property
    def num_pairs(self) -> int:
        """Number of (input, output) pairs: the useful work."""
        return int((self.table < self.num_inputs).sum())


@dataclass(frozen=True, eq=False)
class KernelMaps:
    """The kernel map of a convolution, and the one of its input's gradient.

    That gradient is a convolution of the output's gradient with the transposed kernels. (Neither map knows the other:
    they are large, and a cycle of references would keep them until the garbage collector runs.)

    Args:
        forward: From the input to the output.
        backward: From the output to the input.
        is_mirrored: Whether offset k of the one is offset K - 1 - k of the other; otherwise it is offset k there too.
    """

    forward: KernelMap
    backward: KernelMap
    is_mirrored: bool


class Grid(Protocol):
    """What kernel maps are made from: `VoxelGrid`, which keeps them."""

    stride: int
    sorted_keys: torch.Tensor
    order: torch.Tensor | None
    parents: torch.Tensor
    octants: torch.Tensor
    device: torch.device

    def __len__(self) -> int: ...

    def coarser(self) -> "Grid": ...

    def finer(self) -> "Grid": ...

    def kernel_maps(self, kind: str, kernel_size: int, dilation: int = 1) -> KernelMaps: ...


class ConvolutionLayer(Protocol):
    """What a backend has to know of a layer beside its kernel."""

    kind: str
    in_channels: int
    kernel_size: int
    dilation: int
    backend: str


def kernel_offsets(kernel_size: int, step: int = 1) -> list[tuple[int, int, int]]:
    """Displacements (x, y, z) of a kernel's offsets in MinkowskiEngine's order; `step` = dilation x stride."""
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    line = [(first + r) * step for r in range(kernel_size)]
    return [(x, y, z) for z in line for y in line for x in line]


def build_kernel_maps(grid: Grid, kind: str, kernel_size: int, dilation: int) -> KernelMaps:
    """Makes the kernel maps of a convolution on `grid`.

    Args:
        grid: The grid of the input, and for `"submanifold"` of the output.
        kind: `"submanifold"` (odd kernel, stride 1, onto the same grid), `"strided"` (kernel 2, stride 2, onto
            `grid.coarser()`) or `"transposed"` (the same, back onto `grid.finer()`).
        kernel_size: Size along each axis.
        dilation: Spacing of the kernel's offsets in voxels of `grid`.
    """
    if kind == "submanifold":
        return _submanifold_maps(grid, kernel_size, dilation)
    if kind == "strided":
        return _strided_maps(grid)
    strided = grid.finer().kernel_maps("strided", kernel_size, dilation)
    return KernelMaps(strided.backward, strided.forward, is_mirrored=False)


def _submanifold_maps(grid: Grid, kernel_size: int, dilation: int) -> KernelMaps:
    step = dilation * grid.stride
    if kernel_size // 2 * step > KEY_MARGIN:
        raise ValueError(
            f"kernel {kernel_size} with dilation {dilation} at stride {grid.stride} reaches "
            f"{kernel_size // 2 * step} voxels; expected at most {KEY_MARGIN}"
        )
    kernel_map = KernelMap(_submanifold_table(grid, kernel_size, step), len(grid))
    # A pair of offset k is, seen from its other end, a pair of the opposite offset.
    return KernelMaps(kernel_map, kernel_map, is_mirrored=True)


def _submanifold_table(grid: Grid, kernel_size: int, step: int) -> torch.Tensor:
    """The table int32 [K, V], found line by line.

    Keys are consecutive along x, so one search finds where a kernel's line along x begins among the sorted keys, and
    the voxels of that line follow from there: K^2 searches and not K^3.
    """
    keys, count = grid.sorted_keys, len(grid)
    table = torch.full((kernel_size**3, count), count, dtype=torch.int32, device=grid.device)
    if not count:
        return table
    # The step along x that leads from one sorted key to the next, where there is one.
    dense = step == grid.stride
    position = None
    for k, offset in enumerate(kernel_offsets(kernel_size, step)):
        wanted = keys + pack_offset(*offset)
        if position is None or not dense or k % kernel_size == 0:
            position = torch.searchsorted(keys, wanted, out_int32=True)
        found = keys.index_select(0, position.clamp(max=count - 1)) == wanted
        torch.where(found, position, table[k], out=table[k])
        position = position + found
    if grid.order is None:
        return table
    by_row = torch.empty_like(table)
    by_row[:, grid.order] = torch.cat([grid.order, grid.order.new_tensor([count])]).int()[table.long()]
    return by_row


def _strided_maps(grid: Grid) -> KernelMaps:
    coarse = grid.coarser()
    parents = grid.parents
    rows = torch.arange(len(grid), dtype=torch.int32, device=grid.device)
    octants = grid.octants
    down = torch.full((8, len(coarse)), len(grid), dtype=torch.int32, device=grid.device)
    down[octants, parents] = rows
    up = torch.full((8, len(grid)), len(coarse), dtype=torch.int32, device=grid.device)
    up[octants, rows.long()] = parents.int()
    return KernelMaps(KernelMap(down, len(grid)), KernelMap(up, len(coarse)), is_mirrored=False)
