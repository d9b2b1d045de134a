import pytest
import torch

from bifusion_hf.configuration_bifusion import BiFusionPointConfig
from bifusion_hf.layers.frame_memory import FrameAdapter
from bifusion_hf.layers.point_encoder import Res16UNet
from bifusion_hf.layers.reductions import sample_mean
from bifusion_hf.sparse import SparseTensor, VoxelBatchNorm, VoxelGrid, voxelize


PLANES = {"stem_channels": 8, "planes": [8, 12, 16, 20, 18, 14, 10, 8], "blocks": [1] * 8}


def network(**changes):
    torch.manual_seed(0)
    return Res16UNet(BiFusionPointConfig(**{**PLANES, **changes}))


def grid_of(points=800, batch_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(points, 3, generator=generator) * 2 - 1
    return voxelize(positions, torch.arange(points) % batch_size, 0.05, batch_size)


def test_shift_by_the_coarsest_stride_changes_nothing():
    model = network().double().eval()
    grid = grid_of()
    colors = torch.randn(len(grid), 3, dtype=torch.float64)
    shifted = grid.coordinates.clone()
    shifted[:, 1:] += torch.tensor([16, -32, 48], dtype=torch.int32)
    torch.testing.assert_close(model(colors, VoxelGrid(shifted, 2)), model(colors, grid))


@pytest.mark.parametrize("adapters", [False, True])
def test_samples_do_not_see_each_other(adapters):
    model = network(use_frame_adapters=adapters).double().eval()
    for adapter in model.frame_adapters or []:
        torch.nn.init.ones_(adapter.norm_mix.weight)
    grid = grid_of()
    colors = torch.randn(len(grid), 3, dtype=torch.float64)
    together = model(colors, grid)
    for index in range(2):
        own = grid.coordinates[:, 0] == index
        coordinates = grid.coordinates[own].clone()
        coordinates[:, 0] = 0
        torch.testing.assert_close(model(colors[own], VoxelGrid(coordinates, 1)), together[own])


@pytest.mark.parametrize("voxels", [1, 2, 30])
def test_few_voxels_train(voxels):
    """Deep levels of a small sample hold a single voxel: no variance, and yet no crash and no NaN."""
    model = network().train()
    coordinates = torch.zeros(voxels, 4, dtype=torch.int32)
    coordinates[:, 1] = torch.arange(voxels)
    model(torch.randn(voxels, 3), VoxelGrid(coordinates, 1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    for name, buffer in model.named_buffers():
        assert torch.isfinite(buffer.float()).all(), name


def test_one_voxel_leaves_the_statistics_alone():
    norm = VoxelBatchNorm(4).train()
    norm(torch.randn(1, 4))
    assert torch.equal(norm.running_mean, torch.zeros(4)) and norm.num_batches_tracked == 0
    norm(torch.randn(5, 4))
    assert not torch.equal(norm.running_mean, torch.zeros(4))


def test_adapter_adds_the_mean_of_its_own_sample():
    torch.manual_seed(0)
    adapter = FrameAdapter(6, 1e-5).double().eval()
    grid = grid_of(points=60)
    features = torch.randn(len(grid), 6, dtype=torch.float64)
    with torch.no_grad():
        # Only the mean's part of the mixing matrix is left.
        adapter.conv_mix.kernel[:12] = 0
        adapter.norm_mix.weight.uniform_(0.5, 1.5)
    out = adapter(SparseTensor(features, grid)).features
    sample = grid.coordinates[:, 0].long()
    means = torch.stack([features[sample == index].mean(0) for index in range(2)])[sample]
    expected = torch.relu(adapter.norm_mix(means @ adapter.conv_mix.kernel[12:]) + features)
    torch.testing.assert_close(out, expected)


def test_mean_of_a_sample_without_rows_is_zero():
    mean = sample_mean(torch.ones(2, 3), torch.tensor([0, 2]), 3)
    assert mean.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
