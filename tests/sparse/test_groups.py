import pytest
import torch
from launch_counter import DEVICE, LaunchCounter

from bifusion_hf.sparse import groups


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("num_groups", [3, 40])
def test_sums_and_their_gradients_on_a_gpu(num_groups, is_deterministic, monkeypatch):
    called = []
    for name in ("_sums", "sums_in_order"):
        of_groups = getattr(groups, name)
        monkeypatch.setattr(groups, name, lambda *given, n=name, f=of_groups: called.append(n) or f(*given))
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
    # The one sum, and the other as the gradient of what was taken: in order only where that is asked for.
    assert called == ["_sums", "sums_in_order"][: 1 + (is_deterministic and num_groups == 40)] * 2


def test_autocast_leaves_sums_in_single_precision():
    """Of a GPU, computed here: as a product with few groups, which autocast would turn into half precision."""
    values, index = torch.full((2000, 3), 1.001), torch.arange(2000) % 2
    with torch.autocast("cpu", torch.bfloat16):
        sums = groups._sums(values, index, 2)
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, torch.full((2, 3), 1001.0), rtol=1e-4, atol=0)


def test_on_a_cpu_gradients_have_gradients():
    """They are torch's own there."""
    index = torch.tensor([2, 0, 2, 1, 2])
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: groups.sum_rows(x.square(), index, 4), values)
    table = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: groups.take_rows(x.square(), index), table)


def test_a_single_group_is_summed_and_taken_as_any():
    index = torch.zeros(5, dtype=torch.int64)
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(groups.sum_rows(values, index, 1), groups.sum_rows(values, index, 2)[:1])
    assert groups.sum_rows(values[:0], index[:0], 1).tolist() == [[0, 0]]
    table = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(groups.take_rows(table, index), groups.take_rows(torch.cat([table, table]), index))
    assert groups.take_rows(table, index[:0]).shape == (0, 2)
    assert torch.autograd.gradcheck(lambda x: groups.sum_rows(x, index, 1), values)
    assert torch.autograd.gradcheck(lambda x: groups.take_rows(x, index), table)
