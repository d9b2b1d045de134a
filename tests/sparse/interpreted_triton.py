"""Triton's kernels in its interpreter, on a CPU; `test_triton_backend.py` runs this file.

The interpreter has to be chosen before Triton is imported, so these tests have a process of their own.
"""

import numpy as np
import pytest
import torch
from sparse_examples import random_coordinates, slow_convolution
from torch import nn

from bifusion_hf.sparse import (
    SparseTensor,
    StridedConv3d,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelBatchNorm,
    VoxelGrid,
    convolve_normalized,
    set_sparse_backend,
)
from bifusion_hf.sparse.backends import choose_backend, triton_backend
from bifusion_hf.sparse.backends.triton_backend import DTYPES, SortedMap, Tile, kernel_gradient, multiply
from bifusion_hf.sparse.kernel_maps import kernel_offsets


# Of the largest value, against float64 on the same rounded inputs.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Kind, kernel size, dilation, channels in and out: odd and even ones, under and over a block.
LAYERS = {
    "3x3x3": ("submanifold", 3, 1, 5, 20),
    "wide": ("strided", 2, 1, 70, 130),
    "one channel": ("submanifold", 3, 1, 1, 1),
    "dilated": ("submanifold", 3, 2, 4, 6),
    "folded": ("submanifold", 5, 1, 3, 7),
    "5x5x5": ("submanifold", 5, 1, 9, 4),
    "pointwise": ("submanifold", 1, 1, 6, 9),
    "strided": ("strided", 2, 1, 21, 35),
    "transposed": ("transposed", 2, 1, 35, 16),
}


def make_layer(kind, size, dilation, in_channels, out_channels, backend="triton"):
    torch.manual_seed(0)
    if kind == "submanifold":
        layer = SubmanifoldConv3d(in_channels, out_channels, size, dilation)
    else:
        layer = {"strided": StridedConv3d, "transposed": TransposedConv3d}[kind](in_channels, out_channels)
    set_sparse_backend(layer, backend)
    return layer


def small_grid():
    """About 40 voxels in two samples."""
    return VoxelGrid(random_coordinates(count=45, low=-2, high=2), 2)


def results(layer, grid, dtype, seed=0):
    """Output, gradient of the input, gradient of the kernel; and the inputs."""
    where = grid.coarser() if layer.kind == "transposed" else grid
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(where), layer.in_channels, generator=generator).to(dtype).requires_grad_()
    kernel = layer.kernel.detach().to(dtype).requires_grad_()
    out = torch.func.functional_call(layer, {"kernel": kernel}, (SparseTensor(features, where),))
    weights = torch.randn(out.features.shape, generator=generator).to(dtype)
    found = [out.features.detach(), *torch.autograd.grad(out.features, (features, kernel), weights)]
    return found, (features, kernel, weights), (where, out.grid)


def slow_results(layer, inputs, grids):
    """The same pair by pair in float64."""
    features, kernel, weights = (value.detach().double() for value in inputs)
    features.requires_grad_(), kernel.requires_grad_()
    here, there = (grid.coordinates for grid in grids)
    volume = kernel.view(-1, *kernel.shape[-2:])
    if layer.kind == "transposed":
        # A fine voxel reads its parent by the offset that leads from the parent to it.
        offsets = [tuple(-step for step in offset) for offset in kernel_offsets(2)]
    else:
        offsets = kernel_offsets(layer.kernel_size, layer.dilation)
    out = slow_convolution(here, features, volume, offsets, there)
    return [out.detach(), *torch.autograd.grad(out, (features, kernel), weights)]


def assert_close(found, wanted, tolerance):
    for mine, other in zip(found, wanted, strict=True):
        assert (mine.double() - other.double()).abs().max() < tolerance * other.double().abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_against_the_slow_form_and_the_torch_backend(name, dtype):
    grid = small_grid()
    layer = make_layer(*LAYERS[name])
    found, inputs, grids = results(layer, grid, dtype)
    assert all(value.dtype == dtype for value in found)
    assert_close(found, slow_results(layer, inputs, grids), TOLERANCES[dtype])
    set_sparse_backend(layer, "torch")
    assert_close(found, results(layer, grid, dtype)[0], 3 * TOLERANCES[dtype])


@pytest.mark.parametrize("name", ["3x3x3", "strided", "transposed"])
def test_without_splits_and_with_shares_of_pairs(name, monkeypatch):
    """Large grids are not cut along the offsets, and their kernels' gradients are cut along the pairs."""
    split, inputs, grids = results(make_layer(*LAYERS[name]), small_grid(), torch.float32)
    monkeypatch.setattr(triton_backend, "MAX_SPLITS", 1)
    monkeypatch.setattr(triton_backend, "MIN_SHARE", 5)
    assert triton_backend.choose_shares(len(small_grid().coarser()), 27) > 1
    whole, _, _ = results(make_layer(*LAYERS[name]), small_grid(), torch.float32)
    wanted = slow_results(make_layer(*LAYERS[name]), inputs, grids)
    for found in (split, whole):
        assert_close(found, wanted, 1e-6)
    # Their sums run in another order.
    assert not torch.equal(split[0], whole[0]) or name == "transposed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tile_gives_the_same(dtype):
    generator = torch.Generator().manual_seed(0)
    maps = small_grid().kernel_maps("strided", 2)
    features = torch.randn(maps.forward.num_inputs, 20, generator=generator).to(dtype)
    kernel = torch.randn(8, 20, 40, generator=generator).to(dtype)
    grad = torch.randn(maps.forward.num_outputs, 40, generator=generator).to(dtype)
    wanted = [multiply(features, kernel, maps.forward), kernel_gradient(features, grad, maps.forward)]
    for tile in (Tile(16, 16, 64), Tile(128, 64, 32, 8), Tile(32, 32, 16, 4, 2)):
        found = [multiply(features, kernel, maps.forward, tile=tile)]
        found.append(kernel_gradient(features, grad, maps.forward, tile))
        assert_close(found, wanted, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_every_time(dtype):
    for name in ("3x3x3", "strided", "transposed") if dtype == torch.float32 else ("3x3x3",):
        first, *_ = results(make_layer(*LAYERS[name]), small_grid(), dtype)
        torch.use_deterministic_algorithms(True)
        try:
            second, *_ = results(make_layer(*LAYERS[name]), small_grid(), dtype)
        finally:
            torch.use_deterministic_algorithms(False)
        for one, two in zip(first, second, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["3x3x3", "folded", "strided", "transposed"])
def test_one_voxel_empty_samples_and_no_voxel(name):
    layer = make_layer(*LAYERS[name])
    one = VoxelGrid(torch.tensor([[2, -1, 4, 7]], dtype=torch.int32), 4)
    found, inputs, grids = results(layer, one, torch.float32)
    assert_close(found, slow_results(layer, inputs, grids), 1e-6)
    middle = random_coordinates(count=20, samples=1)
    middle[:, 0] = 1
    found, inputs, grids = results(layer, VoxelGrid(middle, 3), torch.float32)
    assert_close(found, slow_results(layer, inputs, grids), 1e-6)
    found, inputs, _ = results(layer, VoxelGrid(middle[:0], 3), torch.float32)
    assert [value.shape for value in found] == [(0, layer.out_channels), inputs[0].shape, inputs[1].shape]
    assert not found[2].any()


def test_rows_that_are_not_contiguous():
    maps = small_grid().kernel_maps("submanifold", 3)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, maps.forward.num_inputs, generator=generator).T
    kernel = torch.randn(27, 9, 5, generator=generator).transpose(1, 2)
    grad = torch.ones(1, 1).expand(len(features), 9)
    assert torch.equal(
        multiply(features, kernel, maps.forward),
        multiply(features.contiguous(), kernel.contiguous(), maps.forward),
    )
    assert torch.equal(
        kernel_gradient(features, grad, maps.forward),
        kernel_gradient(features.contiguous(), grad.contiguous(), maps.forward),
    )


def test_not_a_number_stays_where_it_is():
    """It reaches its voxel's neighbours and no other, through a rectifier too."""
    grid = small_grid()
    features = torch.ones(len(grid), 4)
    features[7] = float("nan")
    reached = (grid.kernel_maps("submanifold", 3).forward.table == 7).any(0)
    layer, norm = make_layer("submanifold", 3, 1, 4, 20), VoxelBatchNorm(20).eval()
    with torch.no_grad():
        for out in (
            layer(SparseTensor(features, grid)),
            convolve_normalized(layer, norm, SparseTensor(features, grid)),
        ):
            assert torch.equal(out.features.isnan().all(1), reached)
            assert torch.equal(out.features.isnan().any(1), reached)


@pytest.mark.parametrize(
    ("name", "dtype", "is_split"),
    [
        *[(name, torch.float32, True) for name in ("3x3x3", "folded", "pointwise", "transposed")],
        ("3x3x3", torch.float32, False),
        ("pointwise", torch.float16, False),
        ("strided", torch.bfloat16, True),
        ("transposed", torch.bfloat16, False),
    ],
)
def test_finished_convolution(name, dtype, is_split, monkeypatch):
    """Normalisation, shortcut and rectifier in the kernel, against the same as layers."""
    if not is_split:
        monkeypatch.setattr(triton_backend, "MAX_SPLITS", 1)
    grid, layer = small_grid(), make_layer(*LAYERS[name]).to(dtype)
    generator = torch.Generator().manual_seed(1)
    where = grid.coarser() if name == "transposed" else grid
    x = SparseTensor(torch.randn(len(where), layer.in_channels, generator=generator).to(dtype), where)
    norm = VoxelBatchNorm(layer.out_channels).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(value, generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    with torch.no_grad():
        out = layer(x)
        normalised = norm(out.features.float())
        called = []
        norm.register_forward_pre_hook(lambda _, given: called.append(given[0] is not None))
        shortcut = torch.randn(out.features.shape, generator=generator).to(dtype)
        for added, is_rectified in [(None, True)] + [(shortcut, True), (shortcut, False)] * (name != "folded"):
            found = convolve_normalized(layer, norm, x, added, is_rectified).features
            wanted = normalised if added is None else normalised + added
            assert found.dtype == dtype
            assert_close([found], [wanted.relu() if is_rectified else wanted], 2 * TOLERANCES[dtype])
    # By the kernel, which asks the layer for scale and shift.
    assert called and not any(called)


def test_under_autocast():
    grid, layer = small_grid(), make_layer(*LAYERS["3x3x3"])
    x = SparseTensor(torch.randn(len(grid), 5), grid)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x).features
    assert found.dtype == torch.bfloat16
    assert_close([found], [layer(x).features], 2e-2)


def test_three_products_of_tf32(monkeypatch):
    """The interpreter knows one precision; that the other is asked for can be seen."""
    assert triton_backend.precision(torch.float32) == "ieee"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert triton_backend.precision(torch.float32) == "tf32x3"
        assert triton_backend.precision(torch.bfloat16) == "ieee"
        layer = make_layer(*LAYERS["3x3x3"])
        found, inputs, grids = results(layer, small_grid(), torch.float32)
        assert_close(found, slow_results(layer, inputs, grids), 1e-6)
    finally:
        torch.set_float32_matmul_precision(before)


def test_reference(reference):
    """MinkowskiEngine's strided case, gradients included."""
    data = np.load(reference / "sparse_conv.npz")
    layer = StridedConv3d(*data["k2s2_kernel"].shape[1:])
    set_sparse_backend(layer, "triton")
    with torch.no_grad():
        layer.kernel.copy_(torch.from_numpy(data["k2s2_kernel"]))
    grid = VoxelGrid(torch.from_numpy(data["k2s2_in_coords"]), 2)
    out = layer(SparseTensor(torch.from_numpy(data["k2s2_in_feats"]), grid))
    row = {tuple(coordinate): i for i, coordinate in enumerate(out.grid.coordinates.tolist())}
    found = out.features[torch.tensor([row[tuple(c)] for c in data["k2s2_out_coords"].tolist()])]
    (found * torch.from_numpy(data["k2s2_grad_weights"])).sum().backward()
    wanted = [torch.from_numpy(data[f"k2s2_{name}"]) for name in ("out_feats", "grad_kernel")]
    assert_close([found.detach(), layer.kernel.grad], wanted, 1e-5)


def test_blocks_name_the_offsets_that_their_rows_use():
    maps = small_grid().kernel_maps("submanifold", 3)
    sorted_map = SortedMap(maps.forward)
    assert torch.equal(sorted_map.order.sort().values, torch.arange(maps.forward.num_outputs))
    used, counts = sorted_map.blocks(16)
    for block, (offsets, count) in enumerate(zip(used.tolist(), counts.tolist(), strict=True)):
        rows = sorted_map.order[16 * block : 16 * block + 16]
        present = (maps.forward.table[:, rows] < maps.forward.num_inputs).any(1)
        assert sorted(offsets[:count]) == present.nonzero().flatten().tolist()
        assert sorted(offsets) == list(range(27))
    # Sorting brings rows with the same offsets together: fewer are walked over than in the order of the voxels.
    unsorted = torch.nn.functional.pad(
        maps.forward.table < maps.forward.num_inputs, (0, -maps.forward.num_outputs % 16)
    )
    assert counts.sum() < unsorted.view(27, -1, 16).any(2).sum()
    reads, writes, numbers = sorted_map.pairs
    for offset, number in enumerate(numbers.tolist()):
        found = set(zip(writes[offset, :number].tolist(), reads[offset, :number].tolist(), strict=True))
        table = maps.forward.table[offset].tolist()
        assert found == {(row, read) for row, read in enumerate(table) if read < maps.forward.num_inputs}


def test_choice():
    for dtype in DTYPES:
        assert choose_backend("triton", "cpu", dtype) == "triton"
    assert choose_backend("triton", "cpu", torch.float64) == "torch"
    assert choose_backend("auto", "cpu", torch.float32) != "triton"
