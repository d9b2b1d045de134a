import pytest
import torch

from bifusion_hf.layers.reductions import sample_mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mean_of_each_sample_however_many_rows_it_has(dtype):
    features = torch.tensor([[2.0, 1.0], [9.0, -3.0], [4.0, 5.0]], dtype=dtype)
    found = sample_mean(features, torch.tensor([0, 3, 0]), 4)
    assert found.dtype == dtype and found.tolist() == [[3, 3], [0, 0], [0, 0], [9, -3]]
