"""Voxel grids, and features on them."""

import weakref
from functools import cached_property

import numpy as np
import torch

from .coordinates import (
    COORDINATE_LIMIT,
    check_batch_size,
    check_coordinates,
    check_samples,
    pack,
    pack_offset,
    unpack,
)
from .groups import count_rows, sum_rows, take_rows
from .kernel_maps import KernelMaps, build_kernel_maps


class VoxelGrid:
    """A set of occupied voxels of a batch, and what is derived from it.

    The coarser grids and the kernel maps of a grid are made once and kept with it, so that all layers of a forward
    pass share them.

    Args:
        coordinates: int32 or int64 [V, 4] (sample, x, y, z), unique, in finest voxels, in any order: features on the
            grid have their rows in this order.
        batch_size: Number of samples; a sample may have no voxel.
        stride: Spacing of this grid; x, y, z are multiples of it.

    Raises:
        ValueError: Wrong dtype or shape, values out of range, off the grid, or repeated.
    """

    def __init__(self, coordinates: torch.Tensor, batch_size: int, stride: int = 1):
        check_batch_size(batch_size)
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride is {stride!r}; expected a positive int")
        check_coordinates(coordinates, batch_size, stride)
        keys, order = torch.sort(pack(coordinates))
        if repeated := int((keys[1:] == keys[:-1]).sum()):
            raise ValueError(f"{repeated} of {len(coordinates)} coordinates are repeated; expected unique ones")
        is_sorted = bool((order[1:] > order[:-1]).all())
        self._set(coordinates.int(), keys, None if is_sorted else order, batch_size, stride)

    @classmethod
    def from_sorted_keys(
        cls,
        keys: torch.Tensor,
        batch_size: int,
        stride: int,
        finer: "VoxelGrid | None" = None,
        coordinates: torch.Tensor | None = None,
    ) -> "VoxelGrid":
        """The grid of keys that are known to be right, int64 [V], ascending and unique; its rows have their order.

        `coordinates`, int32 [V, 4], are what the keys stand for, where they are known already.
        """
        grid = cls.__new__(cls)
        coordinates = unpack(keys) if coordinates is None else coordinates
        grid._set(coordinates, keys, None, batch_size, stride, finer)
        return grid

    def _set(self, coordinates, keys, order, batch_size, stride, finer=None):
        self.coordinates = coordinates
        self.batch_size = batch_size
        self.stride = stride
        # int64 [P], voxel row of each point; None where the grid was not made from points.
        self.inverse: torch.Tensor | None = None
        # int64 [V], ascending.
        self.sorted_keys = keys
        # Row of each sorted key; None = rows are in the order of their keys.
        self.order = order
        self._coarser: VoxelGrid | None = None
        # Weak, so that a forward pass's grids and maps, which are large, go as soon as nobody holds the finest grid,
        # and do not wait for the garbage collector.
        self._finer = None if finer is None else weakref.ref(finer)
        self._maps: dict[tuple, KernelMaps] = {}
        # What a backend keeps with the grid.
        self.extras: dict = {}
        self._parents: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.coordinates)

    def __repr__(self) -> str:
        return f"VoxelGrid({len(self)} voxels, batch_size={self.batch_size}, stride={self.stride}, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.coordinates.device

    @property
    def keys_by_row(self) -> torch.Tensor:
        """Key of each voxel, int64 [V], in the order of the rows."""
        return self.sorted_keys if self.order is None else pack(self.coordinates)

    def find(self, keys: torch.Tensor) -> torch.Tensor:
        """Rows of the voxels with these keys, int64 of the same shape; len(self) where there is none."""
        if not len(self):
            return torch.zeros_like(keys)
        position = torch.searchsorted(self.sorted_keys, keys).clamp_(max=len(self) - 1)
        found = self.sorted_keys[position] == keys
        return torch.where(found, self.rows_of_sorted(position), len(self))

    def rows_of_sorted(self, position: torch.Tensor) -> torch.Tensor:
        """Rows of the voxels at these places of `sorted_keys`."""
        return position if self.order is None else self.order[position]

    def coarser(self) -> "VoxelGrid":
        """The grid of twice the stride: the voxels at floor(c / s) * s, sorted by key."""
        if self._coarser is None:
            inside = self._places_in_parents
            floored = self.keys_by_row - pack_offset(*inside.long().unbind(1))
            keys, self._parents = torch.unique(floored, return_inverse=True)
            # Children agree on what they write.
            coordinates = self.coordinates.new_empty(len(keys), 4)
            coordinates[self._parents] = self.coordinates - torch.nn.functional.pad(inside, (1, 0))
            self._coarser = VoxelGrid.from_sorted_keys(keys, self.batch_size, 2 * self.stride, self, coordinates)
        return self._coarser

    def finer(self) -> "VoxelGrid":
        """The grid of half the stride that this one was made from.

        Raises:
            ValueError: There is none: this is the finest grid, or nobody holds the finer one any more.
        """
        finer = None if self._finer is None else self._finer()
        if finer is None:
            raise ValueError(
                f"this grid of stride {self.stride} knows no finer one: it was not made by `coarser()`, or the grid "
                "that it was made from has not been kept"
            )
        return finer

    @property
    def parents(self) -> torch.Tensor:
        """Row of each voxel's parent in `coarser()`, int64 [V]."""
        self.coarser()
        return self._parents

    @cached_property
    def octants(self) -> torch.Tensor:
        """Place of each voxel in its parent, x + 2 y + 4 z with each 0 or 1, int64 [V]."""
        x, y, z = (self._places_in_parents >= self.stride).long().unbind(1)
        return x + 2 * y + 4 * z

    @cached_property
    def _places_in_parents(self) -> torch.Tensor:
        """Coordinates less those of the parent, int32 [V, 3]: each 0 or the stride."""
        return self.coordinates[:, 1:].remainder(2 * self.stride)

    def kernel_maps(self, kind: str, kernel_size: int, dilation: int = 1) -> KernelMaps:
        """The kernel maps that a convolution on this grid needs, made at the first call."""
        key = (kind, kernel_size, dilation)
        if key not in self._maps:
            self._maps[key] = build_kernel_maps(self, kind, kernel_size, dilation)
        return self._maps[key]

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """Mean over each voxel's points.

        Args:
            features: [P, C], rows as the points given to `voxelize`.

        Returns:
            [V, C] of the same dtype (summed in float32 at least).

        Raises:
            ValueError: The grid was not made from points, or the number of rows is not theirs.
        """
        inverse = self._checked_inverse()
        if features.ndim != 2 or len(features) != len(inverse):
            raise ValueError(f"features have shape {tuple(features.shape)}; expected [{len(inverse)}, C]")
        summed = features if features.dtype == torch.float64 else features.float()
        total = sum_rows(summed, inverse, len(self))
        return (total / self._point_counts.to(total.dtype)[:, None]).to(features.dtype)

    def to_points(self, features: torch.Tensor) -> torch.Tensor:
        """Each point gets its voxel's features: [V, C] -> [P, C]."""
        inverse = self._checked_inverse()
        if features.ndim != 2 or len(features) != len(self):
            raise ValueError(f"features have shape {tuple(features.shape)}; expected [{len(self)}, C]")
        return take_rows(features, inverse)

    @cached_property
    def _point_counts(self) -> torch.Tensor:
        return count_rows(self._checked_inverse(), len(self))

    def _checked_inverse(self) -> torch.Tensor:
        if self.inverse is None:
            raise ValueError("this grid was not made from points by voxelize, so it has no inverse map")
        return self.inverse


@torch.compiler.disable
def voxelize(points: torch.Tensor, batch_indices: torch.Tensor, voxel_size: float, batch_size: int) -> VoxelGrid:
    """The occupied voxels of a batch of point clouds.

    A point lies in the voxel floor(xyz * float32(1 / voxel_size)): a product with the rounded reciprocal, as
    MinkowskiEngine's CUDA build has it, and not a division, which differs for points on voxel borders.

    Args:
        points: float32 or float64 [P, 3] metres. Ragged batches come concatenated; leave padding out.
        batch_indices: int64 [P], sample of each point.
        voxel_size: Metres.
        batch_size: Number of samples.

    Returns:
        The grid, stride 1, sorted by (sample, z, y, x), with `.inverse` set.

    Raises:
        ValueError: Wrong dtype, shape or device, a point that is not finite or beyond +-2^17 voxels, or a sample index
            out of range.
    """
    check_batch_size(batch_size)
    if points.dtype not in (torch.float32, torch.float64) or points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(
            f"points have shape {tuple(points.shape)} and dtype {points.dtype}; expected float32 or float64 [P, 3]"
        )
    if batch_indices.dtype != torch.int64 or batch_indices.shape != points.shape[:1]:
        raise ValueError(
            f"batch_indices have shape {tuple(batch_indices.shape)} and dtype {batch_indices.dtype}; "
            f"expected int64 [{len(points)}]"
        )
    if batch_indices.device != points.device:
        raise ValueError(f"points are on {points.device} and batch_indices on {batch_indices.device}; expected one")
    if not (np.isfinite(voxel_size) and voxel_size > 0):
        raise ValueError(f"voxel_size is {voxel_size}; expected a positive number of metres")
    cells = torch.floor(points.detach() * float(np.float32(1 / voxel_size)))
    if len(cells):
        # One transfer for all four; samples are so few that every precision holds them.
        extremes = [*cells.aminmax(), *batch_indices.aminmax()]
        lowest, highest, first, last = torch.stack([value.to(cells.dtype) for value in extremes]).tolist()
        if not (lowest >= -COORDINATE_LIMIT and highest <= COORDINATE_LIMIT):  # NaN fails too
            raise ValueError(
                f"points reach from voxel {lowest:g} to {highest:g} at {voxel_size} m; "
                f"expected -{COORDINATE_LIMIT} to {COORDINATE_LIMIT}"
            )
        check_samples(int(first), int(last), batch_size)
    places = torch.cat([batch_indices[:, None], cells.long()], dim=1)
    keys, inverse = torch.unique(pack(places), return_inverse=True)
    # A voxel's points agree on what they write.
    coordinates = torch.empty(len(keys), 4, dtype=torch.int32, device=keys.device)
    coordinates[inverse] = places.int()
    grid = VoxelGrid.from_sorted_keys(keys, batch_size, stride=1, coordinates=coordinates)
    grid.inverse = inverse
    return grid


class SparseTensor:
    """Features on a voxel grid.

    Args:
        features: [V, C] floating point, one row per voxel of `grid`.
        grid: The grid.

    Raises:
        ValueError: The shape, dtype or device does not fit the grid.
    """

    def __init__(self, features: torch.Tensor, grid: VoxelGrid):
        if features.ndim != 2 or len(features) != len(grid) or not features.is_floating_point():
            raise ValueError(
                f"features have shape {tuple(features.shape)} and dtype {features.dtype}; "
                f"expected floating point [{len(grid)}, C]"
            )
        if features.device != grid.device:
            raise ValueError(f"features are on {features.device} and the grid on {grid.device}; expected one device")
        self.features = features
        self.grid = grid

    def __repr__(self) -> str:
        return f"SparseTensor({tuple(self.features.shape)} {self.features.dtype}, {self.grid})"

    def replace(self, features: torch.Tensor) -> "SparseTensor":
        """The same grid with other features [V, C']."""
        return SparseTensor(features, self.grid)
