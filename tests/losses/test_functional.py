import pytest
import torch

from bifusion_hf.losses.functional import cross_entropy, group_means, masked_mean, unit_vectors


def test_means_of_what_is_selected_and_nothing_without_any():
    values = torch.tensor([[3.0, 5.0, float("nan")], [7.0, 1.0, 2.0], [9.0, 9.0, 9.0]], requires_grad=True)
    selected = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    found = masked_mean(values, selected)
    assert found.tolist() == [4, 1, 0]
    found.sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]


def test_means_of_groups():
    features = torch.tensor([[2.0, 1.0], [9.0, -3.0], [4.0, 5.0], [8.0, 8.0]])
    found = group_means(features, torch.tensor([1, 3, 1, -1]), 4)
    assert found.tolist() == [[0, 0], [3, 3], [0, 0], [9, -3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_and_lengths_of_16_bit_values_are_those_in_float32(dtype):
    """A sum of 1,000 ones is 256 in bfloat16."""
    found = group_means(torch.full((1000, 2), 1.0, dtype=dtype), torch.zeros(1000, dtype=torch.int64), 1)
    assert found.dtype == torch.float32 and found.tolist() == [[1, 1]]
    rows = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert unit_vectors(rows).dtype == torch.float32
    torch.testing.assert_close(unit_vectors(rows).norm(dim=1), torch.ones(20), rtol=1e-6, atol=0)
    assert not unit_vectors(torch.zeros(1, 3)).any()


def test_the_gradient_of_a_vector_without_length_is_bounded():
    """Up to the bound a vector is divided by the bound, beyond it by its length."""
    rows = torch.tensor([[0.0, 0, 0], [3e-7, 4e-7, 0], [3e-5, 4e-5, 0], [3, 4, 0]], requires_grad=True)
    units = unit_vectors(rows)
    torch.testing.assert_close(units.detach()[:, :2], torch.tensor([[0, 0], [0.3, 0.4], [0.6, 0.8], [0.6, 0.8]]))
    (units * torch.tensor([0, 0, 1.0])).sum().backward()
    torch.testing.assert_close(rows.grad[:, 2], torch.tensor([1e6, 1e6, 2e4, 0.2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_torchs(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=dtype)
    labels = torch.tensor([[0, 3, -100, 1, 2], [-100, -100, 2, 2, 0]])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    assert cross_entropy(logits[:, :1, :2], torch.tensor([[0, -100], [-100, 0]])).tolist() == [[0, 0], [0, 0]]
