import pytest
import torch

from bifusion_hf.sparse import VoxelGrid, radius_neighbors


def random_grid(count=200, stride=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-4, 4, (count, 3), generator=generator) * stride
    sample = torch.randint(0, 3, (count, 1), generator=generator)
    coordinates = torch.unique(torch.cat([sample, xyz], 1), dim=0).int()
    return VoxelGrid(coordinates[torch.randperm(len(coordinates), generator=generator)], 3, stride)


@pytest.mark.parametrize(("radius", "stride"), [(0, 1), (1, 1), (2, 4)])
def test_all_pairs(radius, stride):
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


@pytest.mark.parametrize("stride", [1, 4])
def test_cap_keeps_the_nearest(stride):
    grid = random_grid(stride=stride)
    row, neighbor = radius_neighbors(grid, 2)
    capped_row, capped = radius_neighbors(grid, 2, max_neighbors=5)
    assert torch.equal(capped_row, capped_row.sort().values)
    c = grid.coordinates[:, 1:].double()
    for i in range(len(grid)):
        everyone = (c[neighbor[row == i]] - c[i]).square().sum(1).sort().values
        kept = (c[capped[capped_row == i]] - c[i]).square().sum(1)
        assert torch.equal(kept, everyone[:5])


def test_rejects_bad_arguments():
    grid = random_grid(stride=4)
    with pytest.raises(ValueError, match="radius is 2000"):
        radius_neighbors(grid, 2000)
    with pytest.raises(ValueError, match="max_neighbors is 0"):
        radius_neighbors(grid, 1, max_neighbors=0)
