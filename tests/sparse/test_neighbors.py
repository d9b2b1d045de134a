import pytest
import torch

from bifusion_hf.sparse import VoxelGrid, neighbors, radius_neighbors
from bifusion_hf.sparse.coordinates import KEY_MARGIN


def random_grid(count=200, stride=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-4, 4, (count, 3), generator=generator) * stride
    sample = torch.randint(0, 3, (count, 1), generator=generator)
    coordinates = torch.unique(torch.cat([sample, xyz], 1), dim=0).int()
    return VoxelGrid(coordinates[torch.randperm(len(coordinates), generator=generator)], 3, stride)


@pytest.mark.parametrize("rows_at_once", [2048, 50])
@pytest.mark.parametrize(("radius", "stride"), [(0, 1), (1, 1), (2, 4)])
def test_all_pairs(radius, stride, rows_at_once, monkeypatch):
    monkeypatch.setattr(neighbors, "CPU_CHUNK_ROWS", rows_at_once)
    # Of a GPU, which has more memory.
    monkeypatch.setattr(neighbors, "CUDA_CHUNK_ROWS", None)
    grid = random_grid(stride=stride)
    row, neighbor = radius_neighbors(grid, radius)
    c = grid.coordinates
    distance = (c[:, None, 1:] - c[None, :, 1:]).abs().amax(2)
    near = (distance <= radius * stride) & (c[:, None, 0] == c[None, :, 0]) & ~torch.eye(len(c), dtype=torch.bool)
    found = torch.zeros_like(near)
    found[row, neighbor] = True
    assert len(row) == near.sum()
    assert torch.equal(found, near)
    assert torch.equal(row, row.sort().values)


@pytest.mark.parametrize("rows_at_once", [2048, 37])
@pytest.mark.parametrize(("stride", "most"), [(1, 5), (4, 5), (4, 1), (1, 10**6)])
def test_cap_keeps_the_nearest(stride, most, rows_at_once, monkeypatch):
    """Of equally near ones those that come first by z, y and x; in the order of the distance."""
    monkeypatch.setattr(neighbors, "CPU_CHUNK_ROWS", rows_at_once)
    grid = random_grid(stride=stride)
    row, neighbor = radius_neighbors(grid, 2)
    capped_row, capped = radius_neighbors(grid, 2, max_neighbors=most)
    assert torch.equal(capped_row, capped_row.sort().values)
    c = grid.coordinates[:, 1:].tolist()
    for i in range(len(grid)):
        everyone = sorted(
            neighbor[row == i].tolist(),
            key=lambda j: (sum((a - b) ** 2 for a, b in zip(c[i], c[j], strict=True)), *c[j][::-1]),
        )
        assert capped[capped_row == i].tolist() == everyone[:most]


@pytest.mark.parametrize("most", [None, 3])
def test_no_voxel_and_one_have_no_neighbours(most):
    for count in (0, 1):
        grid = VoxelGrid(torch.zeros(count, 4, dtype=torch.int32), 1)
        assert [found.tolist() for found in radius_neighbors(grid, 1, most)] == [[], []]


def test_the_farthest_that_can_be_reached():
    """As far as keys of one axis are kept from those of the next."""
    cells = torch.tensor([[0, 0, 0, 0], [0, KEY_MARGIN, 0, 0], [0, 0, -KEY_MARGIN, KEY_MARGIN]])
    row, neighbor = radius_neighbors(VoxelGrid(cells, 1, KEY_MARGIN), 1)
    assert row.tolist() == [0, 0, 1, 1, 2, 2] and neighbor.tolist() == [1, 2, 0, 2, 0, 1]


def test_rejects_bad_arguments():
    grid = random_grid(stride=4)
    for radius in (2000, 1025, -1, 1.0):
        with pytest.raises(ValueError, match=f"radius is {radius}; expected an int from 0 to 1024$"):
            radius_neighbors(grid, radius)
    with pytest.raises(ValueError, match="radius is 2; expected an int from 0 to 1$"):
        radius_neighbors(VoxelGrid(torch.zeros(1, 4, dtype=torch.int32), 1, KEY_MARGIN), 2)
    with pytest.raises(ValueError, match="max_neighbors is 0"):
        radius_neighbors(grid, 1, max_neighbors=0)
