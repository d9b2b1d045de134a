"""Sixteen bits and what is not a number: results are rounded, sums are wider, and nothing is hidden."""

import ctypes
import os
import shlex
import subprocess

import pytest
import torch
from built_kernels import skip_where_not_built
from sparse_examples import random_grid

from bifusion_hf.sparse import (
    SparseTensor,
    SubmanifoldConv3d,
    VoxelBatchNorm,
    VoxelGrid,
    convolve_normalized,
    set_sparse_backend,
    voxelize,
)
from bifusion_hf.sparse.backends import compiled_backend
from bifusion_hf.sparse.backends.products import multiply_to_float32
from bifusion_hf.sparse.kernels import KERNELS


@pytest.fixture(params=["torch", "compiled"])
def backend(request):
    if request.param == "compiled":
        skip_where_not_built(KERNELS, compiled_backend.kernels_unavailable_reason)
    return request.param


def convolution(backend, kernel):
    """A layer of a kernel [27, in, out]."""
    layer = SubmanifoldConv3d(*kernel.shape[1:], 3).to(kernel.dtype)
    set_sparse_backend(layer, backend)
    with torch.no_grad():
        layer.kernel.copy_(kernel)
    return layer


def identity(channels):
    """A normalisation that changes nothing, of the kind that a kernel does while it writes."""
    norm = VoxelBatchNorm(channels, eps=0).eval()
    assert norm.running_var.eq(1).all()
    return norm


@pytest.mark.parametrize("is_finished", [False, True])
def test_results_are_rounded_to_the_nearest(backend, is_finished):
    """Sums of two, which float32 holds exactly: cut off they would be smaller in half of the cases."""
    grid = random_grid(count=400, low=-4, high=5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(grid), 2, generator=generator).bfloat16()
    kernel = torch.zeros(27, 2, 16, dtype=torch.bfloat16)
    kernel[13] = 1
    layer = convolution(backend, kernel)
    exact = features.float().sum(1, keepdim=True).expand(-1, 16)
    assert (exact.bfloat16().float() != exact).float().mean() > 0.3
    with torch.no_grad():
        if is_finished:
            norm = identity(16).bfloat16()
            found = convolve_normalized(layer, norm, SparseTensor(features, grid), is_rectified=False).features
        else:
            found = layer(SparseTensor(features, grid)).features
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())


def test_the_kernels_round_on_processors_without_such_products_too(tmp_path):
    """Their own conversion: ties to even, what is too small or too large, and what is not a number."""
    skip_where_not_built(KERNELS, compiled_backend.kernels_unavailable_reason)
    kernels = KERNELS.sources[0]
    source, library = tmp_path / "round.c", tmp_path / "round.so"
    source.write_text(
        f'#include "{kernels}"\n'
        "void rounded(float *sums, void *halves, int64_t count, int is_rectified)\n"
        "{ finish_row(1, sums, halves, count, NULL, NULL, NULL, is_rectified); }\n"
    )
    compiler = shlex.split(os.environ.get("CC") or "cc")
    subprocess.run([*compiler, "-O0", "-shared", "-fPIC", "-o", library, source], check=True)
    rounded = ctypes.CDLL(str(library)).rounded
    bits = torch.randint(-(2**31), 2**31, (4000,), generator=torch.Generator().manual_seed(0))
    # Half-way between two of sixteen bits, and one bit beside it; the last numbers of a range.
    ties = bits[:1000] & ~0xFFFF | 0x8000
    values = torch.cat([bits, ties, ties + 1, ties - 1, torch.tensor([0x7F7FFFFF, 0x7F800000, 0x7F800001, 1, 0])])
    values = values.int().view(torch.float32)
    for is_rectified in (False, True):
        sums, halves = values.clone(), torch.empty(len(values), dtype=torch.bfloat16)
        rounded(*(ctypes.c_void_p(x.data_ptr()) for x in (sums, halves)), ctypes.c_int64(len(values)), is_rectified)
        expected = torch.where(values < 0, 0, values) if is_rectified else values
        assert expected.isnan().any() and expected.isinf().any()
        torch.testing.assert_close(halves, expected.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_wider_than_what_is_summed(backend, dtype):
    """Ones added up in bfloat16 end at 256, in float16 at 2048; and a sum beyond 65504 is none in float16."""
    cells = torch.cartesian_prod(torch.arange(1), *[torch.arange(10)] * 3)
    grid = VoxelGrid(cells, 1)
    features = torch.ones(len(grid), 160, dtype=dtype, requires_grad=True)
    layer = convolution(backend, torch.ones(27, 160, 3, dtype=dtype))
    out = layer(SparseTensor(features, grid)).features
    inner = ((cells[:, 1:] > 0) & (cells[:, 1:] < 9)).all(1)
    assert (out[inner] == 27 * 160).all() and out.dtype == dtype
    (out * torch.full_like(out, 8)).sum().backward()
    assert (features.grad[inner] == 27 * 3 * 8).all()
    # The middle of the kernel has a pair in each of the 1000 voxels.
    assert (layer.kernel.grad[13] == 8000).all()


def test_gradients_of_kernels_are_rounded_once():
    """Not once for each of the torch backend's chunks."""
    ones = torch.ones(1, 301, dtype=torch.bfloat16)
    assert multiply_to_float32(ones, ones.T).dtype == torch.float32 and multiply_to_float32(ones, ones.T) == 301
    grid = VoxelGrid(torch.cartesian_prod(torch.arange(1), *[torch.arange(15)] * 3), 1)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(len(grid), 8, generator=generator).bfloat16() + 0.25 for _ in range(2)]
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        features, weights = (value.to(dtype) for value in values)
        layer = convolution("torch", torch.zeros(27, 8, 8, dtype=dtype))
        (layer(SparseTensor(features, grid)).features * weights).sum().backward()
        gradients.append(layer.kernel.grad)
    assert (gradients[0].bfloat16() != gradients[1]).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_over_points_are_wider_too(dtype):
    points = torch.full((3000, 3), 0.5)
    grid = voxelize(points, torch.zeros(3000, dtype=torch.int64), 1.0, 1)
    mean = grid.mean(torch.full((3000, 2), 40.0, dtype=dtype))
    assert mean.dtype == dtype and mean.tolist() == [[40.0, 40.0]]


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_rectifier_does_not_hide_what_is_not_a_number(backend, is_finished):
    grid = random_grid()
    features = torch.randn(len(grid), 4, generator=torch.Generator().manual_seed(0))
    features[7] = float("nan")
    features[20] = float("inf")
    layer = convolution(backend, torch.randn(27, 4, 20, generator=torch.Generator().manual_seed(1)))
    table = grid.kernel_maps("submanifold", 3).forward.table
    with torch.set_grad_enabled(not is_finished):
        out = convolve_normalized(layer, identity(20), SparseTensor(features, grid)).features
    assert out[(table == 7).any(0)].isnan().all()
    assert not torch.isfinite(out[(table == 20).any(0)]).all(1).any()
    rest = out[~((table == 7) | (table == 20)).any(0)]
    assert torch.isfinite(rest).all() and (rest >= 0).all() and (rest == 0).any()
