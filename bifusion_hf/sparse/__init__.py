"""Sparse 3-D convolution on voxel grids, in plain torch, by kernels that are compiled on first use, or through spconv.

Knows nothing of the networks that are built with it.
"""

from .backends import kernels_unavailable_reason, working_backends
from .convolution import (
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    convolve_normalized,
    set_sparse_backend,
)
from .finish import VoxelBatchNorm
from .groups import count_rows, sum_rows, take_rows
from .negatives import sum_where_negative
from .neighbors import radius_neighbors
from .voxels import SparseTensor, VoxelGrid, voxelize


__all__ = [
    "SparseTensor",
    "StridedConv3d",
    "SubmanifoldConv3d",
    "TransposedConv3d",
    "VoxelBatchNorm",
    "VoxelGrid",
    "convolve_normalized",
    "count_rows",
    "kernels_unavailable_reason",
    "radius_neighbors",
    "set_sparse_backend",
    "sum_rows",
    "sum_where_negative",
    "take_rows",
    "voxelize",
    "working_backends",
]
