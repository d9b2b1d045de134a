"""What the compiled kernels of sparse convolution are given, and what becomes of them where they lack something."""

import pytest
import torch
from built_kernels import skip_where_not_built
from sparse_examples import Scaled, random_grid

from bifusion_hf.io.compiled_library import KernelError
from bifusion_hf.sparse.backends import compiled_backend
from bifusion_hf.sparse.backends.compiled_backend import PairLists
from bifusion_hf.sparse.finish import Finish
from bifusion_hf.sparse.kernel_maps import KernelMap
from bifusion_hf.sparse.kernels import KERNELS


@pytest.fixture(autouse=True)
def kernels():
    skip_where_not_built(KERNELS, compiled_backend.kernels_unavailable_reason)


@pytest.mark.parametrize(
    ("outputs", "block_rows"),
    # About eight blocks, of a multiple of 32 rows and at most 256.
    [(1, 32), (32, 32), (33, 32), (256, 32), (257, 64), (512, 64), (1793, 256), (2048, 256), (2049, 256), (3000, 256)],
)
def test_pairs_are_listed_by_block_and_offset(outputs, block_rows):
    inputs = 50
    generator = torch.Generator().manual_seed(outputs)
    table = torch.randint(0, 2 * inputs, (3, outputs), dtype=torch.int32, generator=generator).clamp(max=inputs)
    kernel_map = KernelMap(table, inputs)
    pairs = PairLists.of(kernel_map)
    assert pairs.block_rows == block_rows and PairLists.of(kernel_map) is pairs
    starts, expected = [0], []
    for first in range(0, outputs, block_rows):
        for offset in range(3):
            row = table[offset, first : first + block_rows].tolist()
            expected += [(read, write) for write, read in enumerate(row) if read < inputs]
            starts.append(len(expected))
    assert pairs.starts.tolist() == starts
    assert list(zip(pairs.reads.tolist(), pairs.writes.tolist(), strict=True)) == expected


@pytest.mark.parametrize("shortcut", [None, torch.ones])
def test_a_processor_without_products_of_bfloat16_computes_them_in_float32(shortcut, monkeypatch):
    of_kernels, asked = KERNELS.call, []

    def call(name, *arguments):
        if name == "has_bfloat16":
            return 0
        if name == "convolve":
            asked.append(arguments[0].dtype)
        return of_kernels(name, *arguments)

    grid = random_grid()
    maps = grid.kernel_maps("submanifold", 3)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(grid), 4, generator=generator).bfloat16()
    kernel = torch.randn(27, 4, 6, generator=generator).bfloat16()
    scale, shift = torch.rand(2, 6, generator=generator)
    shortcut = None if shortcut is None else 3 * torch.ones(len(grid), 6).bfloat16()
    finish = Finish(scale, shift, shortcut, True)
    exact = compiled_backend.convolve_over(features.float(), kernel.float(), maps)
    expected = exact * scale + shift + (0 if shortcut is None else 3)
    monkeypatch.setattr(KERNELS, "call", call)
    found = compiled_backend.convolve_over(features, kernel, maps, finish)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.relu(), rtol=8e-3, atol=1e-2)
    features.requires_grad_()
    plain = compiled_backend.convolve_over(features, kernel, maps)
    assert torch.equal(plain, exact.bfloat16()) and plain.requires_grad
    assert set(asked) == {torch.float32}


def test_a_gradient_that_finds_no_memory_says_so(monkeypatch):
    of_kernels = KERNELS.call
    monkeypatch.setattr(
        KERNELS, "call", lambda name, *given: 1 if name == "kernel_gradient" else of_kernels(name, *given)
    )
    grid = random_grid()
    kernel = torch.ones(27, 2, 3, requires_grad=True)
    out = compiled_backend.convolve_over(torch.ones(len(grid), 2), kernel, grid.kernel_maps("submanifold", 3))
    with pytest.raises(MemoryError, match="gradient of a sparse convolution's kernel"):
        out.sum().backward()


@pytest.mark.parametrize("place", range(3), ids=["result", "gradient of the input", "gradient of the kernel"])
@pytest.mark.parametrize(("dtype", "factor", "is_right"), [
    (torch.float32, 1 + 8e-5, True),
    (torch.float32, 1 + 1.5e-4, False),
    (torch.bfloat16, 1.006, True),
    (torch.bfloat16, 1.05, False),
    (torch.bfloat16, float("nan"), False),
])  # fmt: skip
def test_kernels_are_compared_with_torch_before_they_are_trusted(place, dtype, factor, is_right, monkeypatch):
    factors = [factor if index == place else 1.0 for index in range(3)]

    def convolve_over(features, kernel, maps):
        if features.dtype != dtype:
            return of_backend(features, kernel, maps)
        out = of_backend(Scaled.apply(features, factors[1]), Scaled.apply(kernel, factors[2]), maps)
        return out + (out * (factors[0] - 1)).detach()

    of_backend = compiled_backend.convolve_over
    monkeypatch.setattr(compiled_backend, "convolve_over", convolve_over)
    if is_right:
        compiled_backend._test_kernels()
    else:
        with pytest.raises(KernelError, match=f"the compiled kernels are wrong by .* of the largest value in {dtype}"):
            compiled_backend._test_kernels()
