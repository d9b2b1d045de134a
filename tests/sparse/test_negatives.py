import pytest
import torch
from built_kernels import skip_where_not_built

from bifusion_hf.sparse import negatives
from bifusion_hf.sparse.negatives import sum_where_negative


def example(dtype=torch.float32, samples=2, rows=7, columns=500, groups=11):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(samples, rows, columns, generator=generator).to(dtype)
    values[:, :, ::9] = 0
    weights = 2 * torch.rand(samples, columns, generator=generator).to(dtype)
    return values, weights, torch.randint(-1, groups, (samples, columns), generator=generator), groups


def slow(values, weights, groups, num_groups):
    sums = torch.zeros(*values.shape[:2], num_groups, dtype=torch.float64)
    for sample, row, column in (values < 0).nonzero().tolist():
        if (group := groups[sample, column]) >= 0:
            sums[sample, row, group] += weights[sample, column].double()
    return sums


@pytest.fixture(params=["torch", "compiled"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(negatives, "kernel_unavailable_reason", lambda: "switched off")
    else:
        skip_where_not_built(negatives.KERNELS, negatives.kernel_unavailable_reason)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_are_those_of_the_slow_form(form, dtype):
    inputs = example(dtype)
    found = sum_where_negative(*inputs)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), slow(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "of_weights", "expected"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_values_and_weights_may_be_of_several_kinds(form, kind, of_weights, expected):
    values, weights, groups, num_groups = example()
    inputs = values.to(kind).requires_grad_(), weights.to(of_weights).requires_grad_(), groups, num_groups
    found = sum_where_negative(*inputs)
    assert found.dtype == expected and not found.requires_grad
    torch.testing.assert_close(found.double(), slow(*inputs).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 3, 0, 4), (0, 3, 5, 4), (1, 0, 5, 4), (3, 5, 17, 1)])
def test_sizes(form, sizes):
    samples, rows, columns, groups = sizes
    inputs = example(torch.float32, *sizes)
    found = sum_where_negative(*inputs)
    assert found.shape == (samples, rows, groups)
    torch.testing.assert_close(found.double(), slow(*inputs))


def test_both_forms_give_the_same_bits_with_any_number_of_threads_and_layout():
    skip_where_not_built(negatives.KERNELS, negatives.kernel_unavailable_reason)
    values, weights, groups, num_groups = example(rows=300)
    expected = negatives._by_rows(values, weights, groups, num_groups)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            turned = values.transpose(1, 2).contiguous().transpose(1, 2)
            assert torch.equal(sum_where_negative(turned, weights, groups, num_groups), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_what_is_no_number_are_not_negative(form, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    values = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), -tiny, tiny, -3.0])
    inputs = values.to(dtype)[None, None].expand(1, 130, -1), torch.ones(1, 9), torch.arange(9)[None], 9
    assert (sum_where_negative(*inputs) == torch.tensor([0.0] * 5 + [1.0, 1.0, 0.0, 1.0])).all()


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, caplog):
    skip_where_not_built(negatives.KERNELS, negatives.kernel_unavailable_reason)
    monkeypatch.setattr(negatives, "_compiled", lambda *_: torch.zeros(2, 3, 5))
    negatives.kernel_unavailable_reason.cache_clear()
    try:
        inputs = example()
        torch.testing.assert_close(sum_where_negative(*inputs).double(), slow(*inputs), rtol=1e-5, atol=1e-6)
        assert "sums of masks" in caplog.text
    finally:
        negatives.kernel_unavailable_reason.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_what_answers_on_a_cpu(dtype, monkeypatch):
    skip_where_not_built(negatives.KERNELS, negatives.kernel_unavailable_reason)
    monkeypatch.setattr(negatives, "_by_rows", None)
    inputs = example(dtype)
    torch.testing.assert_close(sum_where_negative(*inputs).double(), slow(*inputs), rtol=1e-5, atol=1e-6)
