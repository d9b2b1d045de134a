import pytest
import torch
from launch_counter import DEVICE, LaunchCounter

from bifusion_hf.sparse import groups


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("num_groups", [3, 40])
def test_sums_and_their_gradients_on_a_gpu(num_groups, is_deterministic):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(500, 7, generator=generator, dtype=torch.float64)
    index = torch.randint(num_groups - 1, (500,), generator=generator)
    weights = torch.randn(num_groups, 7, generator=generator, dtype=torch.float64)
    expected = values.clone().requires_grad_()
    out = values.new_zeros(num_groups, 7).index_add(0, index, expected)
    (out * weights).sum().backward()
    taken = weights.clone().requires_grad_()
    (taken[index] * values).sum().backward()
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        with LaunchCounter() as counter:
            x, w, places = values.to(DEVICE).requires_grad_(), weights.to(DEVICE).requires_grad_(), index.to(DEVICE)
            found = groups.sum_rows(x, places, num_groups)
            (found * w.detach()).sum().backward()
            assert torch.allclose(found.detach().cpu(), out.detach()) and torch.allclose(x.grad.cpu(), expected.grad)
            rows = groups.take_rows(w, places)
            assert torch.equal(rows.detach().cpu(), weights[index])
            (rows * x.detach()).sum().backward()
            assert torch.allclose(w.grad.cpu(), taken.grad)
            counts = groups.count_rows(places, num_groups).cpu()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(counts, torch.bincount(index, minlength=num_groups))
    # What is moved here, there and back, and nothing else.
    assert counter.waits.total() == 3 + 5
