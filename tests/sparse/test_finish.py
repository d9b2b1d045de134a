import pytest
import torch

from bifusion_hf.sparse.finish import VoxelBatchNorm


def test_a_single_voxel_is_normalised_as_in_evaluation_and_leaves_the_statistics():
    torch.manual_seed(0)
    norm = VoxelBatchNorm(3, eps=0.01).double()
    norm(torch.randn(20, 3, dtype=torch.float64))
    torch.nn.init.normal_(norm.weight)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    for rows in (1, 0):
        features = torch.randn(rows, 3, dtype=torch.float64, requires_grad=True)
        found = norm.train()(features)
        torch.testing.assert_close(found, norm.eval()(features), rtol=0, atol=0)
        found.sum().backward()
        assert features.grad.shape == (rows, 3)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("rows", [2, 3, 20])
def test_several_voxels_are_normalised_by_their_own_statistics(rows):
    torch.manual_seed(0)
    norm, expected = VoxelBatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    for features in torch.randn(2, rows, 3, dtype=torch.float64):
        assert torch.equal(norm(features), expected(features))
    for name, value in expected.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)
