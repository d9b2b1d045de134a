import numpy as np
import pytest
import torch
from sparse_examples import random_coordinates, random_grid

from bifusion_hf.sparse import SparseTensor, VoxelGrid, voxelize
from bifusion_hf.sparse.coordinates import COORDINATE_LIMIT, KEY_MARGIN, MAX_BATCH_SIZE, pack, pack_offset, unpack


def test_reference(reference):
    """MinkowskiEngine's voxels, their features and each point's voxel."""
    data = np.load(reference / "sparse_conv.npz")
    points = [torch.from_numpy(data[f"voxel_points_{i}"]) for i in (0, 1)]
    features = torch.cat([torch.from_numpy(data[f"voxel_point_feats_{i}"]) for i in (0, 1)])
    sample = torch.repeat_interleave(torch.tensor([len(p) for p in points]))
    grid = voxelize(torch.cat(points), sample, 0.02, 2)
    wanted = torch.from_numpy(data["voxel_coords"])
    assert {tuple(c) for c in grid.coordinates.tolist()} == {tuple(c) for c in wanted.tolist()}
    of_point = torch.from_numpy(data["voxel_of_point"]).long()
    assert torch.equal(grid.coordinates[grid.inverse], wanted[of_point].int())
    means = grid.to_points(grid.mean(features))
    assert torch.allclose(means, torch.from_numpy(data["voxel_feats"])[of_point], atol=1e-6)


def test_sorted_by_sample_z_y_x():
    points = torch.randn(500, 3)
    grid = voxelize(points, torch.randint(0, 3, (500,)), 0.3, 3)
    digits = grid.coordinates[:, [0, 3, 2, 1]].tolist()
    assert digits == sorted(digits)
    assert grid.stride == 1 and grid.batch_size == 3


def test_the_rule_is_a_product_with_the_rounded_reciprocal():
    """Coordinates in millimetres lie on voxel borders; a division puts some of them elsewhere."""
    points = (torch.arange(-20000, 20000).float() / 1000)[:, None].repeat(1, 3)
    grid = voxelize(points, torch.zeros(len(points), dtype=torch.int64), 0.02, 1)
    assert torch.equal(grid.coordinates[grid.inverse, 1:].float(), torch.floor(points * np.float32(50)))
    assert not torch.equal(grid.coordinates[grid.inverse, 1:].float(), torch.floor(points / 0.02))
    assert torch.equal(voxelize(points.double(), grid.inverse * 0, 0.02, 1).coordinates[:, 0], grid.coordinates[:, 0])


def test_mean_of_duplicate_points_and_its_gradient():
    points = torch.tensor([[0.001, 0, 0], [0.002, 0, 0], [0.001, 0, 0], [0.5, 0, 0]])
    grid = voxelize(points, torch.zeros(4, dtype=torch.int64), 0.02, 1)
    features = torch.tensor([[1.0], [2.0], [6.0], [5.0]], requires_grad=True)
    mean = grid.mean(features)
    assert mean.tolist() == [[3.0], [5.0]]
    grid.to_points(mean).sum().backward()
    assert torch.allclose(features.grad, torch.ones(4, 1))
    assert grid.mean(features.half()).dtype == torch.float16


def test_many_half_precision_points_are_summed_in_float32():
    count = 5000
    grid = voxelize(torch.zeros(count, 3), torch.zeros(count, dtype=torch.int64), 0.02, 1)
    assert grid.mean(torch.ones(count, 1, dtype=torch.bfloat16)).item() == 1


def test_empty_sample_and_no_points():
    grid = voxelize(torch.zeros(2, 3), torch.tensor([0, 2]), 0.02, 4)
    assert grid.coordinates[:, 0].tolist() == [0, 2]
    nothing = voxelize(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 0.02, 2)
    assert len(nothing) == 0 and len(nothing.coarser()) == 0
    assert nothing.mean(torch.zeros(0, 5)).shape == (0, 5)


def test_keys_at_the_limits():
    """Corners of the largest grid in the largest batch, and their farthest neighbours, keep distinct ordered keys."""
    ends = (-COORDINATE_LIMIT, COORDINATE_LIMIT)
    corners = [(s, x, y, z) for s in (0, 127, MAX_BATCH_SIZE - 1) for z in ends for y in ends for x in ends]
    coordinates = torch.tensor(corners)
    keys = pack(coordinates)
    assert torch.equal(unpack(keys), coordinates.int())
    assert (keys[1:] > keys[:-1]).all()
    for reach in (-KEY_MARGIN, KEY_MARGIN):
        moved = keys + pack_offset(reach, reach, reach)
        assert torch.equal(unpack(moved), (coordinates + torch.tensor([0, reach, reach, reach])).int())
        assert not torch.isin(moved, keys).any()
    assert VoxelGrid(coordinates, MAX_BATCH_SIZE).coordinates.shape == (24, 4)
    grid = voxelize(0.25 * coordinates[:, 1:].double(), coordinates[:, 0], 0.25, MAX_BATCH_SIZE)
    assert torch.equal(grid.coordinates, coordinates.int())


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("end", [-COORDINATE_LIMIT, COORDINATE_LIMIT])
def test_one_coordinate_beyond_the_limits_is_refused(axis, end):
    coordinates = torch.zeros(1, 4, dtype=torch.int32)
    coordinates[0, axis] = end
    VoxelGrid(coordinates, 1)
    coordinates[0, axis] += 1 if end > 0 else -1
    with pytest.raises(ValueError, match="coordinates reach from .*; expected -"):
        VoxelGrid(coordinates, 1)


@pytest.mark.parametrize("stride", [1, 4])
def test_coarser(stride):
    grid = random_grid(stride=stride)
    # Asked for first, they make the coarser grid.
    assert len(random_grid(stride=stride).parents) == len(grid)
    coarse = grid.coarser()
    assert coarse is grid.coarser() and coarse.finer() is grid and coarse.stride == 2 * stride
    floored = grid.coordinates.clone()
    floored[:, 1:] = torch.floor(floored[:, 1:] / (2 * stride)) * 2 * stride
    assert torch.equal(coarse.coordinates[grid.parents], floored)
    assert len(torch.unique(floored, dim=0)) == len(coarse)
    inside = (grid.coordinates - floored)[:, 1:] // stride
    assert torch.equal(grid.octants, (inside * torch.tensor([1, 2, 4])).sum(1))


@pytest.mark.parametrize("end", [-1, 1])
def test_points_in_the_first_voxel_beyond_the_limits_are_refused(end):
    """The last one that is allowed is whole."""
    edge = COORDINATE_LIMIT + 1 if end > 0 else -COORDINATE_LIMIT
    inside, beyond = (edge - 0.25, edge) if end > 0 else (edge, edge - 0.25)
    only = torch.zeros(1, dtype=torch.int64)
    grid = voxelize(torch.tensor([[0.0, inside, 0.0]], dtype=torch.float64), only, 1.0, 1)
    assert grid.coordinates.tolist() == [[0, 0, end * COORDINATE_LIMIT, 0]]
    with pytest.raises(ValueError, match="points reach from voxel .* at 1.0 m; expected -131072 to 131072"):
        voxelize(torch.tensor([[0.0, beyond, 0.0]], dtype=torch.float64), only, 1.0, 1)


def test_means_of_double_precision_stay_that_exact():
    grid = voxelize(torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), 0.02, 1)
    values = torch.tensor([[1.0], [1 + 2**-40], [1 + 2**-39]], dtype=torch.float64)
    assert grid.mean(values).item() == 1 + 2**-40


def test_an_empty_grid_finds_nothing():
    grid = VoxelGrid(torch.zeros(0, 4, dtype=torch.int32), 1)
    assert grid.find(torch.tensor([[5, 7]])).tolist() == [[0, 0]]


def test_points_that_learn_have_voxels_that_do_not():
    where = torch.tensor([[0.5, 1.5, 2.5]], requires_grad=True)
    grid = voxelize(where, torch.zeros(1, dtype=torch.int64), 1.0, 1)
    assert grid.coordinates.tolist() == [[0, 0, 1, 2]] and not grid.coordinates.requires_grad


def test_find_gives_rows_of_the_callers_order():
    grid = random_grid()
    keys = pack(grid.coordinates)
    assert torch.equal(grid.find(keys), torch.arange(len(grid)))
    assert grid.find(keys + pack_offset(0, 0, 100)).eq(len(grid)).all()


def test_coordinates_are_of_32_bits_whatever_they_are_given_as():
    for dtype in (torch.int32, torch.int64):
        assert VoxelGrid(random_coordinates().to(dtype), 2).coordinates.dtype == torch.int32


def points(count=4, **options):
    return torch.zeros(count, 3, **options)


def indices(*values):
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((points(dtype=torch.int32), indices(0, 0, 0, 0), 0.02, 1), r"\(4, 3\) and dtype torch.int32"),
        ((points().half(), indices(0, 0, 0, 0), 0.02, 1), "torch.float16"),
        ((torch.zeros(4, 2), indices(0, 0, 0, 0), 0.02, 1), r"\(4, 2\)"),
        ((points(), indices(0, 0, 0), 0.02, 1), r"\(3,\).*int64 \[4\]"),
        ((points(), indices(0, 0, 0, 0).int(), 0.02, 1), "torch.int32"),
        ((points(), indices(0, 0, 0, 2), 0.02, 2), "from 0 to 2; expected 0 to 1"),
        ((points(), indices(0, -1, 0, 1), 0.02, 2), "from -1 to 1"),
        ((points(), indices(0, 0, 0, 0), 0.0, 1), "voxel_size is 0.0"),
        ((points(), indices(0, 0, 0, 0), float("nan"), 1), "voxel_size is nan"),
        ((points(), indices(0, 0, 0, 0), float("inf"), 1), "voxel_size is inf; expected a positive number"),
        ((points(), indices(0, 0, 0, 0), -0.02, 1), "voxel_size is -0.02"),
        ((torch.zeros(4), indices(0, 0, 0, 0), 0.02, 1), r"\(4,\)"),
        ((points(), indices(0, 0, 0, 0)[:, None], 0.02, 1), r"\(4, 1\)"),
        ((points(), indices(0, 0, 0, 0), 0.02, True), "batch_size is True; expected an int from 1 to 256"),
        ((points(), indices(0, 0, 0, 0), 0.02, 1.0), "batch_size is 1.0"),
        ((points(), indices(0, 0, 0, 0), 0.02, 0), "batch_size is 0"),
        ((points(), indices(0, 0, 0, 0), 0.02, 257), "batch_size is 257"),
        ((points() + 2622, indices(0, 0, 0, 0), 0.02, 1), "131100"),
        ((points() - 2622, indices(0, 0, 0, 0), 0.02, 1), "-131100"),
        ((points() + float("nan"), indices(0, 0, 0, 0), 0.02, 1), "nan"),
        ((points() + float("inf"), indices(0, 0, 0, 0), 0.02, 1), "inf"),
        ((points(device="meta"), indices(0, 0, 0, 0), 0.02, 1), "points are on meta and batch_indices on cpu"),
    ],
)
def test_voxelize_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        voxelize(*arguments)


@pytest.mark.parametrize(
    ("coordinates", "stride", "message"),
    [
        (torch.zeros(2, 4), 1, "dtype torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int32), 1, r"\(2, 3\)"),
        (torch.zeros(2, 4, dtype=torch.int32), 1, "1 of 2 coordinates are repeated"),
        (torch.tensor([[0, 0, 0, 131073]]), 1, "131073"),
        (torch.tensor([[2, 0, 0, 0]]), 1, "from 2 to 2"),
        (torch.tensor([[0, 2, 0, 3]]), 2, "1 of 1 coordinates are no multiples of the stride 2"),
        (torch.tensor([[0, 2, 0, 3]]), 0, "stride is 0"),
        (torch.tensor([[0, 2, 0, 3]]), 1.0, "stride is 1.0; expected a positive int"),
        (torch.zeros(4, dtype=torch.int32), 1, r"\(4,\)"),
        (
            torch.tensor([[0, 0, 0, 4], [1, 2, 4, 1], [0, 2, 0, 0], [0, 0, 0, 8]]),
            4,
            "2 of 4 coordinates are no multip",
        ),
        (torch.tensor([[0, 0, 0, 0], [-1, 0, 0, 0]]), 1, "from -1 to 0; expected 0 to 1"),
    ],
)
def test_grid_rejects(coordinates, stride, message):
    with pytest.raises(ValueError, match=message):
        VoxelGrid(coordinates, 2, stride)


def test_features_that_do_not_fit():
    grid = voxelize(torch.randn(50, 3), torch.zeros(50, dtype=torch.int64), 1.0, 1)
    count = len(grid)
    with pytest.raises(ValueError, match=rf"\({count - 1}, 3\).*\[{count}, C\]"):
        SparseTensor(torch.zeros(count - 1, 3), grid)
    with pytest.raises(ValueError, match="torch.int64"):
        SparseTensor(torch.zeros(count, 3, dtype=torch.int64), grid)
    with pytest.raises(ValueError, match="features are on meta and the grid on cpu"):
        SparseTensor(torch.zeros(count, 3, device="meta"), grid)
    with pytest.raises(ValueError, match=r"\[50, C\]"):
        grid.mean(torch.zeros(49, 3))
    with pytest.raises(ValueError, match=rf"\[{count}, C\]"):
        grid.to_points(torch.zeros(count + 1, 3))
    with pytest.raises(ValueError, match="not made from points"):
        VoxelGrid(random_coordinates(), 2).mean(torch.zeros(49, 3))


def test_tensor_says_what_it_is():
    grid = random_grid()
    assert "stride=1" in repr(SparseTensor(torch.zeros(len(grid), 3), grid))
