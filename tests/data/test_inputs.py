import numpy as np
import pytest
import torch

from bifusion_hf.data.inputs import to_array


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1.5, -2.0]], np.float64),
        (np.array([[1.5, -2.0]], np.float16), np.float16),
        (torch.tensor([[1.5, -2.0]], requires_grad=True), np.float32),
        # numpy has no bfloat16.
        (torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), np.float32),
    ],
)
def test_numbers_of_any_kind_become_an_array(value, dtype):
    found = to_array(value)
    assert found.dtype == dtype and found.tolist() == [[1.5, -2.0]]
