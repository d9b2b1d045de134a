"""The closed form against torch's solver, in float64."""

import itertools

import pytest
import torch

from bifusion_hf.layers.eigen import smallest_eigenpair
from bifusion_hf.layers.fusion import surface_shape


def rotated(spectrum, count=500):
    """Symmetric matrices with these eigenvalues in random directions, float64 [count, 3, 3]."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator))[0]
    return (axes * torch.tensor(spectrum, dtype=torch.float64)) @ axes.transpose(1, 2)


def assert_is_smallest(matrices, tolerance=1e-14):
    value, vector = smallest_eigenpair(matrices)
    assert value.dtype == vector.dtype == torch.float64
    expected, vectors = torch.linalg.eigh(matrices.double())
    size = expected.abs().amax(1).clamp(min=1e-300)
    assert ((value - expected[:, 0]).abs() / size).max() < tolerance
    assert (vector.norm(dim=1) - 1).abs().max() < tolerance
    # Where several directions are possible, it is one of them.
    residual = (matrices.double() @ vector[:, :, None]).squeeze(2) - value[:, None] * vector
    assert (residual.norm(dim=1) / size).max() < tolerance
    is_apart = (expected[:, 1] - expected[:, 0]) / size > 1e-3
    if is_apart.any():
        alike = (vector * vectors[:, :, 0]).sum(1).abs()
        assert (1 - alike[is_apart]).abs().max() < tolerance


@pytest.mark.parametrize("scale", [1.0, 1e-14, 1e30])
def test_random_matrices(scale):
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(2000, 3, 3, dtype=torch.float64, generator=generator)
    assert_is_smallest(scale * (matrices + matrices.transpose(1, 2)))
    assert_is_smallest(scale * (matrices @ matrices.transpose(1, 2)))


@pytest.mark.parametrize(
    "spectrum",
    [
        # Planes, lines, balls, points, exact and nearly so, on either side of a double eigenvalue.
        [0, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 2], [1, 2, 2], [-1, -1, 2], [-3, 0, 0],
        [1e-8, 1, 1], [1e-14, 1, 5], [0, 1e-10, 1], [1e-5, 1e-5 + 1e-9, 1], [1, 1 + 1e-12, 2], [0, 1, 1 + 1e-12],
        [1, 1 + 1e-9, 1 + 2e-9], [1, 1 + 1e-15, 1 + 2e-15], [-1e-16, 1, 1.5],
    ],
)  # fmt: skip
def test_equal_and_nearly_equal_eigenvalues(spectrum):
    assert_is_smallest(rotated(spectrum))
    # Along the axes, in each order.
    orders = torch.tensor(list(itertools.permutations(spectrum)), dtype=torch.float64)
    assert_is_smallest(torch.diag_embed(orders))


def test_float32_is_computed_in_float64():
    assert_is_smallest(rotated([1e-7, 3e-4, 4e-4]).float())


def test_without_matrices():
    value, vector = smallest_eigenpair(torch.zeros(0, 3, 3))
    assert value.shape == (0,) and vector.shape == (0, 3)


def test_shapes_are_those_of_the_solver():
    """Normal and variation of random neighbourhoods, as `torch.linalg.eigh` has them."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(300, 3, generator=generator) * torch.tensor([1.0, 1.0, 0.05])
    distances = torch.cdist(positions, positions)
    row, neighbor = ((distances < 0.15) & (distances > 0)).nonzero(as_tuple=True)
    found = surface_shape(positions, row, neighbor)
    for voxel in range(0, 300, 7):
        around = positions[torch.cat([torch.tensor([voxel]), neighbor[row == voxel]])].double()
        if len(around) < 4:
            assert found[voxel].tolist() == pytest.approx([0, 0, 1, 1 / 3])
            continue
        values, vectors = torch.linalg.eigh(torch.cov(around.T, correction=0))
        normal = vectors[:, 0] * (1 if vectors[2, 0] >= 0 else -1)
        assert torch.allclose(found[voxel, :3].double(), normal, atol=1e-3)
        assert float(found[voxel, 3]) == pytest.approx(float(values[0] / values.sum()), abs=1e-5)


@pytest.mark.gpu
def test_a_gpu_takes_as_many_as_there_are():
    matrices = rotated([1e-4, 1, 2], count=100_000)
    value, vector = smallest_eigenpair(matrices.cuda())
    expected, direction = smallest_eigenpair(matrices)
    assert (value.cpu() - expected).abs().max() < 1e-13
    assert (1 - (vector.cpu() * direction).sum(1).abs()).abs().max() < 1e-13
