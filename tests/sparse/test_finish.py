import pytest
import torch

from bifusion_hf.sparse.finish import Finish, VoxelBatchNorm, can_finish


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scale_and_shift_stand_for_evaluation_and_are_float32_whatever_the_weights_are(dtype):
    generator = torch.Generator().manual_seed(0)
    norm = VoxelBatchNorm(5, eps=3e-3).eval().to(dtype)
    for value in (norm.weight, norm.bias, norm.running_mean):
        torch.nn.init.normal_(value, generator=generator)
    norm.running_var.uniform_(0.5, 2, generator=generator)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        scale, shift = norm(None)
        assert scale.dtype == shift.dtype == torch.float32
        expected = norm.double()(features)
        torch.testing.assert_close(features * scale + shift, expected, rtol=1e-6, atol=1e-6)


def test_a_finish_for_groups_of_channels_side_by_side():
    finish = Finish(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), None, True).repeated(3)
    assert finish.scale.tolist() == [1, 2] * 3 and finish.shift.tolist() == [3, 4] * 3
    assert finish.shortcut is None and finish.is_rectified


def test_only_what_learns_nothing_and_is_not_traced_is_finished(monkeypatch):
    norm = VoxelBatchNorm(3).eval()
    others = [
        VoxelBatchNorm(3, affine=False).eval(),
        VoxelBatchNorm(3, track_running_stats=False).eval(),
        VoxelBatchNorm(3).train(),
        torch.nn.BatchNorm1d(3).eval(),
        torch.nn.Identity(),
    ]
    assert not can_finish(norm)
    with torch.no_grad():
        assert can_finish(norm) and not any(map(can_finish, others))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not can_finish(norm)


@pytest.mark.parametrize("rows", [2, 3, 20])
def test_several_voxels_are_normalised_by_their_own_statistics(rows):
    torch.manual_seed(0)
    norm, expected = VoxelBatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    for features in torch.randn(2, rows, 3, dtype=torch.float64):
        assert torch.equal(norm(features), expected(features))
    for name, value in expected.state_dict().items():
        assert torch.equal(norm.state_dict()[name], value)
