"""Grids and kernel maps are the largest things of a forward pass: they must not wait for the garbage collector."""

import gc
import weakref

import pytest
import torch

from bifusion_hf.sparse import SparseTensor, StridedConv3d, SubmanifoldConv3d, TransposedConv3d, voxelize


def run_and_watch():
    """A forward and backward pass down and up again; weak references to its grids and kernel maps."""
    generator = torch.Generator().manual_seed(0)
    grid = voxelize(torch.rand(500, 3, generator=generator), torch.zeros(500, dtype=torch.int64), 0.05, 1)
    convolutions = (
        SubmanifoldConv3d(3, 4, 3),
        StridedConv3d(4, 4),
        SubmanifoldConv3d(4, 4, 3),
        TransposedConv3d(4, 4),
    )
    x = SparseTensor(torch.randn(len(grid), 3), grid)
    for convolution in convolutions:
        x = convolution(x)
    x.features.sum().backward()
    maps = grid.kernel_maps("submanifold", 3), grid.kernel_maps("strided", 2)
    kept = [grid, grid.coarser(), *(side for pair in maps for side in (pair.forward, pair.backward))]
    return [weakref.ref(value) for value in kept]


def test_grids_go_with_the_last_reference():
    gc.disable()
    try:
        assert not any(reference() is not None for reference in run_and_watch())
    finally:
        gc.enable()


def test_a_grid_that_was_not_kept_is_named():
    coarse = voxelize(torch.rand(50, 3), torch.zeros(50, dtype=torch.int64), 0.05, 1).coarser()
    with pytest.raises(ValueError, match="stride 2 .* has not been kept"):
        coarse.finer()
