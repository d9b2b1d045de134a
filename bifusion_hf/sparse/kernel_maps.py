"""Which input voxel each kernel offset of each output voxel reads.

Kernels are laid out as MinkowskiEngine does: offset k = rx + K ry + K^2 rz (x fastest), displacement (r - K // 2) *
dilation * stride for odd K, r * stride for even K; `out[u] = sum_k in[u + offset_k] @ W[k]`, with no flip.
"""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import torch

from .coordinates import KEY_MARGIN, pack_offset
from .gather_plan import GatherPlan
from .lines import are_keys, find_lines


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
    """The table int32 [K, V].

    On a CPU a kernel's lines along x are found one by one; a GPU is faster with all voxels at once.
    """
    keys, count = grid.sorted_keys, len(grid)
    if not count:
        return torch.empty(kernel_size**3, 0, dtype=torch.int32, device=grid.device)
    if step == grid.stride and grid.device.type == "cpu":
        table = find_lines(keys, step * _key_offsets(kernel_size, grid.device)[::kernel_size], kernel_size, step)
    else:
        wanted = keys + step * _key_offsets(kernel_size, grid.device)[:, None]
        position = torch.searchsorted(keys, wanted, out_int32=True)
        table = torch.where(are_keys(keys, position, wanted), position, count)
    if grid.order is None:
        return table
    rows = torch.nn.functional.pad(grid.order, (0, 1), value=count).int()
    return torch.empty_like(table).index_copy_(1, grid.order, rows[table])


@lru_cache(maxsize=64)
def _key_offsets(kernel_size: int, device: torch.device) -> torch.Tensor:
    """What `pack_offset` says of each of the kernel's offsets, int64 [K^3]; it grows with the step."""
    return torch.tensor([pack_offset(*offset) for offset in kernel_offsets(kernel_size)], device=device)


def _strided_maps(grid: Grid) -> KernelMaps:
    coarse = grid.coarser()
    parents, octants = grid.parents, grid.octants
    down = torch.full((8, len(coarse)), len(grid), dtype=torch.int32, device=grid.device)
    down[octants, parents] = torch.arange(len(grid), dtype=torch.int32, device=grid.device)
    offsets = torch.arange(8, device=grid.device).unsqueeze(1)
    up = torch.where(octants == offsets, parents.int(), len(coarse))
    return KernelMaps(KernelMap(down, len(grid)), KernelMap(up, len(coarse)), is_mirrored=False)
