import pytest
import torch
from built_kernels import skip_where_not_built

from bifusion_hf.sparse import lines
from bifusion_hf.sparse.lines import find_lines


def example(count=300, top=900, seed=0):
    keys = torch.randint(0, top, (count,), generator=torch.Generator().manual_seed(seed))
    return keys.unique(), torch.tensor([-950, -61, -1, 0, 33, 897])


def slow(keys, offsets, kernel_size, step):
    row = {key: index for index, key in enumerate(keys.tolist())}
    return torch.tensor(
        [
            [row.get(key + offset + x * step, len(row)) for key in keys.tolist()]
            for offset in offsets.tolist()
            for x in range(kernel_size)
        ],
        dtype=torch.int32,
    )


@pytest.fixture(params=["torch", "compiled"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(lines, "kernel_unavailable_reason", lambda: "switched off")
    else:
        skip_where_not_built(lines.KERNELS, lines.kernel_unavailable_reason)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("step", [1, 4])
def test_rows_are_those_of_the_slow_form(form, kernel_size, step):
    keys, offsets = example()
    found = find_lines(step * keys, step * offsets, kernel_size, step)
    assert found.dtype == torch.int32
    assert torch.equal(found, slow(step * keys, step * offsets, kernel_size, step))


@pytest.mark.parametrize("count", [1, 2])
def test_few_voxels(form, count):
    keys, offsets = torch.arange(count) * 2**40, torch.tensor([-(2**40), -1, 0, 2**40 - 2])
    assert torch.equal(find_lines(keys, offsets, 3, 1), slow(keys, offsets, 3, 1))


def test_any_number_of_threads():
    skip_where_not_built(lines.KERNELS, lines.kernel_unavailable_reason)
    keys, offsets = example(count=4000, top=9000, seed=1)
    expected, threads = lines._searched(keys, offsets, 3, 1), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(find_lines(keys, offsets, 3, 1), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch, caplog):
    skip_where_not_built(lines.KERNELS, lines.kernel_unavailable_reason)
    monkeypatch.setattr(lines, "_compiled", lambda keys, *_: torch.zeros(9, len(keys), dtype=torch.int32))
    lines.kernel_unavailable_reason.cache_clear()
    try:
        keys, offsets = example()
        assert torch.equal(find_lines(keys, offsets, 3, 1), slow(keys, offsets, 3, 1))
        assert "the compiled search for the voxels of kernels is wrong" in caplog.text
    finally:
        lines.kernel_unavailable_reason.cache_clear()


def test_the_kernel_is_what_answers_on_a_cpu(monkeypatch):
    skip_where_not_built(lines.KERNELS, lines.kernel_unavailable_reason)
    monkeypatch.setattr(lines, "_searched", None)
    keys, offsets = example()
    assert torch.equal(find_lines(keys, offsets, 3, 1), slow(keys, offsets, 3, 1))
